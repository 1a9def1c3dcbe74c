//! Pinned bytes, documented JSON, and decoders fed with anything.

use proptest::prelude::*;

use super::{
    codec::{self, ClientHello, CodecError, MAX_FRAME, ServerHello},
    messages::*,
    truncate::truncated,
};

fn body(frame: &[u8]) -> &[u8] {
    &frame[4..]
}

#[test]
fn hello_bytes_are_pinned() {
    let client = ClientHello { protocol: 1, version: "0.1.0".into() };
    assert_eq!(client.frame(), b"\0\0\0\x0dFLYW\0\x01\0\x050.1.0");
    assert_eq!(ClientHello::parse(body(&client.frame())).unwrap(), client);
    let mut server = ServerHello {
        protocol: 2,
        minimum: 1,
        version: "0.1.0".into(),
        store_dir: "/nix/store".into(),
        store_files: "/nix/store".into(),
    };
    assert_eq!(server.frame(), b"\0\0\0\x1bFLYW\0\x02\0\x01\0\x050.1.0\0\x0a/nix/store");
    assert_eq!(ServerHello::parse(body(&server.frame())).unwrap(), server);
    // A later version may say more.
    let longer = [body(&server.frame()), b"more"].concat();
    assert_eq!(ServerHello::parse(&longer).unwrap(), server);
    server.store_files = "/r/nix/store".into();
    assert_eq!(server.frame(), b"\0\0\0\x29FLYW\0\x02\0\x01\0\x050.1.0\0\x0a/nix/store\0\x0c/r/nix/store");
    assert_eq!(ServerHello::parse(body(&server.frame())).unwrap(), server);
}

#[test]
fn a_hello_from_elsewhere_differs_from_a_short_one() {
    assert!(matches!(ClientHello::parse(b"GET / HTTP/1.1"), Err(CodecError::NotFlywheel)));
    for cut in 4..13 {
        let frame = ClientHello { protocol: 1, version: "0.1.0".into() }.frame();
        assert!(matches!(ClientHello::parse(&body(&frame)[..cut]), Err(CodecError::Malformed(_))), "{cut}");
    }
}

/// What a hello of ours cannot say is not taken from others either.
#[test]
fn a_hello_with_a_longer_text_than_ours_is_refused() {
    for (bytes, is_accepted) in [(1000, true), (1001, false)] {
        let text = [&u16::to_be_bytes(bytes)[..], &vec![b'a'; usize::from(bytes)]].concat();
        let client = [b"FLYW\0\x05", &text[..]].concat();
        let server = [b"FLYW\0\x05\0\x02", &text[..], b"\0\x01/"].concat();
        assert_eq!(ClientHello::parse(&client).is_ok(), is_accepted, "{bytes}");
        assert_eq!(ServerHello::parse(&server).is_ok(), is_accepted, "{bytes}");
    }
}

/// A change here breaks clients that are already running: raise `PROTOCOL`.
#[test]
fn message_bytes_are_pinned() {
    let start = Request::SessionStart {
        label: Some("a".into()),
        cache: None,
        anchor_pid: Some(7),
        strict: true,
        ci: Some(CiJob {
            system: "s".into(),
            id: "i".into(),
            url: None,
            project: None,
            git_ref: Some("r".into()),
        }),
        log_paths: true,
    };
    let end = Request::SessionEnd {
        session: None,
        ci_job: None,
        push: vec!["p".into()],
        timeout_ms: 240_000,
        wait: true,
        patient: true,
    };
    let error = Reply::Error { code: ErrorCode::Version, message: "m".into() };
    let summary = Reply::Ended(Summary { pushed: 3, outcome: Outcome::Pending, ..Summary::default() });
    let hook = Request::Hook { derivation: Some("d".into()), outputs: vec!["o".into()] };
    let client = Request::Client { check: true };
    let table: [(Vec<u8>, &[u8]); 8] = [
        (codec::encode(&client).unwrap(), b"\0\0\0\x02\x09\x01"),
        (codec::encode(&hook).unwrap(), b"\0\0\0\x07\x08\x01\x01d\x01\x01o"),
        (
            codec::encode(&start).unwrap(),
            b"\0\0\0\x13\0\x01\x01a\0\x01\x07\x01\x01\x01s\x01i\0\0\x01\x01r\x01",
        ),
        (codec::encode(&end).unwrap(), b"\0\0\0\x0d\x01\0\0\x01\x01p\xfc\x80\xa9\x03\0\x01\x01"),
        (codec::encode(&Request::Status).unwrap(), b"\0\0\0\x01\x06"),
        (codec::encode(&Request::Reload).unwrap(), b"\0\0\0\x01\x07"),
        (codec::encode(&error).unwrap(), b"\0\0\0\x04\x08\x06\x01m"),
        (
            codec::encode(&summary).unwrap(),
            b"\0\0\0\x1e\x02\0\0\0\x02\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ),
    ];
    for (i, (bytes, pinned)) in table.iter().enumerate() {
        assert_eq!(bytes, pinned, "message {i}");
    }
}

#[test]
fn frames_have_an_end() {
    let frame = codec::encode(&Request::Status).unwrap();
    for cut in 1..frame.len() {
        assert!(matches!(codec::read::<Request>(&mut &frame[..cut]), Err(CodecError::Truncated)), "{cut}");
    }
    assert!(codec::read::<Request>(&mut &[][..]).unwrap().is_none());
    let over = (MAX_FRAME + 1).to_be_bytes();
    assert!(matches!(codec::read::<Request>(&mut &over[..]), Err(CodecError::TooLarge { .. })));
    assert!(matches!(codec::decode::<Request>(&[6, 0]), Err(CodecError::Malformed(_))), "a byte too many");
    let long = Request::SessionShow { session: "x".repeat(MAX_FRAME as usize) };
    assert!(matches!(codec::encode(&long), Err(CodecError::TooLarge { .. })));
    let paths = Request::Push { paths: vec!["x".repeat(200); 5000], cache: None, wait: true, timeout_ms: 1 };
    assert_eq!(codec::decode::<Request>(body(&codec::encode(&paths).unwrap())).unwrap(), paths);
}

#[test]
fn summary_json_is_the_documented_one() {
    let summary = Summary {
        session: Some("s1".into()),
        label: Some("l".into()),
        cache: "main".into(),
        outcome: Outcome::of(1, 0),
        pushed: 47,
        already_cached: 3,
        failed: vec![Failed { path: "/nix/store/x".into(), error: "e".into(), class: None }],
        failed_total: 1,
        bytes: 117_440_512,
        attributed: Attributed { process: 40, hook: 0, closure: 5, window: 5, shared: 0, named: 0 },
        flush_ms: 312,
        duration_ms: 61234,
        ..Summary::default()
    };
    assert_eq!(
        serde_json::to_string(&summary).unwrap(),
        concat!(
            r#"{"session":"s1","label":"l","cache":"main","outcome":"partial","pushed":47,"already_cached":3,"#,
            r#""upstream":0,"failed":[{"path":"/nix/store/x","error":"e","class":null}],"failed_total":1,"#,
            r#""pending":0,"skipped":0,"collected":0,"bytes":117440512,"attributed":{"process":40,"hook":0,"#,
            r#""closure":5,"window":5,"shared":0,"named":0},"flush_ms":312,"duration_ms":61234,"state":"open","#,
            r#""strict":false,"warnings":[],"engine":"","waited_for_client":false,"invalid":0,"route":null,"without_realisation":0}"#
        )
    );
    assert_eq!((Outcome::of(0, 0), Outcome::of(1, 1)), (Outcome::Complete, Outcome::Pending));
}

#[test]
fn status_json_is_the_documented_one() {
    let status = Status {
        cache: vec![CacheStatus::default()],
        sessions: vec![SessionEntry::default()],
        ..Status::default()
    };
    let json = serde_json::to_value(&status).unwrap();
    for pointer in [
        "/version",
        "/cache/0/name",
        "/cache/0/endpoint",
        "/cache/0/engine",
        "/queue/pending",
        "/queue/uploading",
        "/queue/failed",
        "/sessions/0/session",
        "/store/cursor",
        "/store/lag",
        "/client/state",
        "/client/path",
        "/client/version",
        "/client/since",
        "/client/took_ms",
        "/client/error",
    ] {
        assert!(json.pointer(pointer).is_some(), "{pointer} in {json}");
    }
    assert_eq!(json["cache"][0]["state"], "offline");
}

/// The largest replies that the daemon can think of still go through.
#[test]
fn bounded_replies_fit_a_frame() {
    let long = || "ü".repeat(5000);
    let failed = || vec![Failed { path: long(), error: long(), class: Some(long()) }; 3000];
    let summary = || Summary {
        session: Some("s".into()),
        label: Some(long()),
        cache: long(),
        failed: failed(),
        failed_total: 3000,
        warnings: vec![long(); 500],
        bytes: u64::MAX,
        ..Summary::default()
    };
    let ci =
        CiJob { system: long(), id: long(), url: Some(long()), project: Some(long()), git_ref: Some(long()) };
    let entry = SessionEntry {
        session: long(),
        label: Some(long()),
        cache: long(),
        ci: Some(ci),
        started_at: i64::MAX,
        ..SessionEntry::default()
    };
    let at = Some(i64::MAX);
    let path = PathEntry {
        path: long(),
        state: long(),
        evidence: long(),
        bytes: u64::MAX,
        attempts: u32::MAX,
        valid_at: at,
        seen_at: at,
        asked_at: at,
        begun_at: at,
        settled_at: at,
    };
    let upload = UploadStatus { path: long(), cache: long(), ..UploadStatus::default() };
    let event = LogLine { at: i64::MAX, level: long(), text: long() };
    let cache =
        CacheStatus { name: long(), endpoint: Some(long()), reason: Some(long()), ..CacheStatus::default() };
    let replies = [
        Reply::Ended(summary()),
        Reply::Pushed(summary()),
        Reply::Sessions(vec![entry.clone(); 3000]),
        Reply::Session(SessionDetail {
            session: entry.clone(),
            summary: summary(),
            paths: vec![path; 3000],
            paths_total: 3000,
            host: long(),
            user: Some(long()),
        }),
        Reply::Status(Status {
            cache: vec![cache; 500],
            sessions: vec![entry; 3000],
            failed: failed(),
            warnings: vec![long(); 500],
            uploads: vec![upload; 500],
            events: vec![event; 500],
            ..Status::default()
        }),
        Reply::Why(vec![
            PathStory {
                path: long(),
                summary: long(),
                sessions: vec![
                    SessionRef { session: long(), label: Some(long()), ..SessionRef::default() };
                    100
                ],
                pushes: vec![
                    PushStory { error: Some(long()), next: Some(long()), ..PushStory::default() };
                    100
                ],
                ..PathStory::default()
            };
            1000
        ]),
        Reply::Error { code: ErrorCode::Internal, message: long() },
        Reply::Done { message: long() },
        Reply::Client(ClientInfo {
            client: ClientStatus { error: Some(long()), path: Some(long()), ..ClientStatus::default() },
            servers: vec![
                ClientServer {
                    name: long(),
                    public_key: Some(long()),
                    problem: Some(long()),
                    ..ClientServer::default()
                };
                300
            ],
            netrc: Some(long()),
        }),
    ];
    for reply in replies {
        let reply = truncated(reply);
        let frame = codec::encode(&reply).unwrap();
        assert_eq!(codec::decode::<Reply>(body(&frame)).unwrap(), reply);
    }
    let Reply::Ended(cut) = truncated(Reply::Ended(summary())) else { panic!("another reply") };
    assert_eq!((cut.failed.len(), cut.failed_total), (1000, 3000), "the total stays true");
}

proptest! {
    #[test]
    fn decoders_take_anything(bytes in proptest::collection::vec(any::<u8>(), 0..600), first in 0u8..10) {
        let _ = ClientHello::parse(&bytes);
        let _ = ServerHello::parse(&[b"FLYW", &bytes[..]].concat());
        // With a valid variant in front, the decoder gets further in.
        let led = [&[first][..], &bytes].concat();
        for body in [&bytes, &led] {
            let _ = codec::decode::<Request>(body);
            let _ = codec::decode::<Reply>(body);
        }
        let _ = codec::read::<Reply>(&mut &bytes[..]);
    }

    #[test]
    fn what_is_written_is_read(label in proptest::option::of(".{0,40}"), pid in any::<Option<u32>>(), timeout_ms in any::<u64>(),
                               push in proptest::collection::vec(".{0,40}", 0..20)) {
        let start = Request::SessionStart { label, cache: None, anchor_pid: pid, strict: false, ci: None, log_paths: false };
        let end = Request::SessionEnd { session: None, ci_job: None, push, timeout_ms, wait: true, patient: false };
        let mut wire = Vec::new();
        codec::write(&mut wire, &start).unwrap();
        codec::write(&mut wire, &end).unwrap();
        let mut wire = &wire[..];
        prop_assert_eq!(codec::read::<Request>(&mut wire).unwrap(), Some(start));
        prop_assert_eq!(codec::read::<Request>(&mut wire).unwrap(), Some(end));
        prop_assert_eq!(codec::read::<Request>(&mut wire).unwrap(), None);
    }
}

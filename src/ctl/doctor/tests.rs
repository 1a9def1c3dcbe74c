//! Each problem is one finding with a command, and nothing is called good that was not
//! seen to be.

use super::*;
use crate::control::messages::{
    CacheDiagnosis, CacheState, CacheStatus, ClientInfo, ClientServer, EndpointDiagnosis, Fault,
    HostDiagnosis, SpaceDiagnosis, UploadDiagnosis, Usage,
};
use crate::ctl::nix_conf::Conf;
use groups::{Person, Runner, SocketGroup};

const NOW: i64 = 1_000_000;

fn sound() -> Status {
    let mut status = Status { version: env!("CARGO_PKG_VERSION").into(), ..Status::default() };
    status.ledger.state = "ok".into();
    status.cache.push(online());
    status
}

fn online() -> CacheStatus {
    CacheStatus {
        name: "main".into(),
        state: CacheState::Online,
        engine: "native".into(),
        ..CacheStatus::default()
    }
}

fn fault(class: &str) -> Option<Fault> {
    Some(Fault { class: class.into(), message: "the reason".into() })
}

fn reached() -> CacheDiagnosis {
    let endpoint = EndpointDiagnosis { address: "https://a".into(), fault: None, clock_ahead_s: Some(0) };
    CacheDiagnosis {
        name: "main".into(),
        endpoints: vec![endpoint],
        store_dir: Some("/nix/store".into()),
        token_source: Some("/run/token".into()),
        token_expires: Some(NOW + SOON + 1000),
        ..CacheDiagnosis::default()
    }
}

/// The only finding that is not good.
fn only(all: &[Finding]) -> &Finding {
    let worse: Vec<_> = all.iter().filter(|f| f.level != Level::Good).collect();
    assert_eq!(worse.len(), 1, "{all:?}");
    assert!(worse[0].level != Level::Bad || worse[0].command.is_some(), "{worse:?}");
    worse[0]
}

#[test]
fn each_trouble_of_the_daemon_is_one_finding() {
    assert!(of_daemon(&sound()).iter().all(|f| f.level == Level::Good), "{:?}", of_daemon(&sound()));
    type Harm = fn(&mut Status);
    for (what, word, harm) in [
        ("daemon", "0.0.1", (|s| s.version = "0.0.1".into()) as Harm),
        ("store", "away", |s| s.store.problem = Some("away".into())),
        ("ledger", "no room", |s| {
            s.ledger.state = "degraded".into();
            s.ledger.detail = Some("no room".into());
        }),
        ("queue", "2 failed", |s| s.queue.failed = 2),
        ("attic client", "absent", |s| {
            s.cache[0].engine = "attic".into();
            s.client.state = "absent".into();
        }),
        ("warning", "roots", |s| s.warnings.push("no roots".into())),
    ] {
        let mut status = sound();
        harm(&mut status);
        let all = of_daemon(&status);
        let bad = only(&all);
        assert!(bad.level == Level::Bad && bad.what == what && bad.text.contains(word), "{what}: {bad:?}");
    }
}

#[test]
fn each_trouble_of_a_cache_is_one_finding() {
    let of = |cache: &CacheDiagnosis, status: &CacheStatus| {
        caches::of_cache(cache, Some(status), "/nix/store", NOW)
    };
    let good = of(&reached(), &online());
    assert!(good.iter().all(|f| f.level == Level::Good), "{good:?}");
    assert!(good[0].text.contains("takes uploads"), "{good:?}");
    type Harm = fn(&mut CacheDiagnosis);
    for (level, word, harm) in [
        (Level::Bad, "and paths wait", (|c| c.endpoints[0].fault = fault("unreachable")) as Harm),
        (Level::Bad, "paths wait until it is renewed", |c| c.endpoints[0].fault = fault("unauthorized")),
        (Level::Bad, "no cache of this name", |c| c.endpoints[0].fault = fault("no-such-cache")),
        (Level::Bad, "paths wait until it is renewed", |c| c.push_problem = fault("forbidden")),
        (Level::Bad, "which paths it lacks", |c| c.push_problem = fault("transient")),
        (Level::Bad, "Nix cannot use", |c| c.store_dir = Some("/gnu/store".into())),
        (Level::Bad, "90 s behind", |c| c.endpoints[0].clock_ahead_s = Some(90)),
        (Level::Bad, "90 s ahead of", |c| c.endpoints[0].clock_ahead_s = Some(-90)),
        (Level::Bad, "expires in 1 hour:", |c| c.token_expires = Some(NOW + 5400)),
        (Level::Bad, "has expired", |c| c.token_expires = Some(NOW - 1)),
        (Level::Bad, "cannot be read", |c| c.token_problem = Some("no such file".into())),
        (Level::Bad, "accepted no upload", |c| {
            c.upload =
                Some(UploadDiagnosis { upload_problem: fault("too-large"), ..UploadDiagnosis::default() });
        }),
        (Level::Bad, "cannot be read back", |c| {
            c.upload =
                Some(UploadDiagnosis { read_problem: fault("unreachable"), ..UploadDiagnosis::default() });
        }),
        (Level::Note, "another one is used", |c| {
            let endpoint = EndpointDiagnosis { fault: fault("unreachable"), ..c.endpoints[0].clone() };
            c.endpoints.push(endpoint);
        }),
    ] {
        let mut cache = reached();
        harm(&mut cache);
        let all = of(&cache, &online());
        let found = only(&all);
        assert!(found.level == level && found.text.contains(word), "{word}: {found:?}");
        let claims = all.iter().any(|f| f.text.contains("takes uploads"));
        let takes =
            cache.endpoints[0].fault.is_none() && cache.push_problem.is_none() && cache.upload.is_none();
        assert_eq!(claims, takes, "{all:?}");
    }
    // What was uploaded and read back is the strongest evidence.
    let upload = Some(UploadDiagnosis { path: "/nix/store/x".into(), ..UploadDiagnosis::default() });
    let all = of(&CacheDiagnosis { upload, ..reached() }, &online());
    assert!(all[0].level == Level::Good && all[0].text.contains("returned it"), "{all:?}");
    // The cache answers again, and the daemon has not noticed yet.
    let refused = of(&reached(), &CacheStatus { state: CacheState::Unauthorized, ..online() });
    assert!(only(&refused).text.contains("paths wait until it is renewed"), "{refused:?}");
    let all = of(&reached(), &CacheStatus { state: CacheState::Offline, ..online() });
    assert!(only(&all).command.as_deref() == Some("flywheelctl reload"), "{all:?}");
}

fn nix(system: &str, own: &str, trusted: bool) -> NixSettings {
    let base = "fallback = true\nconnect-timeout = 5\npost-build-hook = \n";
    let conf = |text: &str| Conf(format!("{text}\n{base}"));
    NixSettings { own: conf(own), system: conf(system), trusted, version: "nix (Nix) 2.34.0".into() }
}

const READS: &str = "substituters = https://a/main\ntrusted-public-keys = main:key=";

#[test]
fn what_keeps_nix_from_reading() {
    let server = ClientServer {
        name: "main".into(),
        substituter: Some("https://a/main".into()),
        public_key: Some("main:key=".into()),
        readable: Some(true),
        ..ClientServer::default()
    };
    let info = |server: &ClientServer| ClientInfo { servers: vec![server.clone()], ..ClientInfo::default() };
    let of = |server: &ClientServer, nix: &NixSettings| {
        reading::of_reading(&info(server), &[reached()], Ok(nix)).remove(0)
    };
    let private = ClientServer { public: Some(false), ..server.clone() };
    let unread = ClientServer { readable: Some(false), ..server.clone() };
    for (server, nix, word) in [
        (&server, nix(READS, READS, false), None),
        (&server, nix("", READS, true), None),
        (&server, nix("", READS, false), Some("ignores")),
        (&server, nix("", "", true), Some("does not use the substituter")),
        (&server, nix("", "substituters = https://a/main/?priority=1", true), Some("not trusted")),
        (&private, nix(READS, READS, true), Some("netrc")),
        // nix.conf is not to blame when the cache cannot be reached.
        (&unread, nix(READS, READS, true), Some("nix.conf is set up, and https://a/main cannot be read")),
    ] {
        let found = of(server, &nix);
        assert_eq!(found.level == Level::Good, word.is_none(), "{found:?}");
        assert!(word.is_none_or(|word| found.level == Level::Bad && found.text.contains(word)), "{found:?}");
    }
    // A cache that has not answered yet says nothing about nix.conf.
    let silent = ClientServer { substituter: None, ..server };
    for (text, word) in [(READS, "nix.conf names https://a/main"), ("", "nix.conf has none on a")] {
        let found = of(&silent, &nix(text, text, true));
        assert!(found.level == Level::Unchecked && found.text.contains(word), "{found:?}");
    }
    let unasked = reading::of_reading(&info(&silent), &[], Err(&"no nix".to_owned()));
    assert_eq!(only(&unasked).level, Level::Bad);
}

#[test]
fn a_cache_without_realisations_is_named_where_derivations_are_content_addressed() {
    let of = |features: &str, realisations: bool| {
        let nix = nix(&format!("experimental-features = {features}"), "", true);
        let cache = CacheDiagnosis { realisations, ..reached() };
        let all = reading::of_reading(&ClientInfo::default(), &[cache], Ok(&nix));
        all.iter().filter(|found| found.text.contains("realisations")).count()
    };
    assert_eq!(of("flakes ca-derivations", false), 1);
    assert_eq!((of("flakes ca-derivations", true), of("flakes", false)), (0, 0));
}

#[test]
fn a_cache_that_is_away_must_not_fail_builds() {
    let of = |text: &str| {
        let conf = || Conf(format!("substituters = https://a\n{text}"));
        let nix = NixSettings { own: conf(), system: conf(), trusted: true, version: String::new() };
        reading::of_reading(&ClientInfo::default(), &[], Ok(&nix))
    };
    assert!(of("fallback = true\nconnect-timeout = 5").iter().all(|f| f.level == Level::Good));
    assert!(only(&of("fallback = false\nconnect-timeout = 5")).text.contains("fallback"));
    assert!(only(&of("fallback = true\nconnect-timeout = 0")).text.contains("connect-timeout"));
    let hook = of("fallback = true\nconnect-timeout = 5\npost-build-hook = /no/such/hook");
    assert!(only(&hook).text.contains("every build fails"), "{hook:?}");
    // Whose hook is in force.
    let dir = tempfile::tempdir().unwrap();
    let script = |name: &str, text: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        let file = dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        of(&format!("fallback = true\nconnect-timeout = 5\npost-build-hook = {}", file.display()))
    };
    for (name, text, word) in [
        ("flywheel-hook", "", "which is flywheel's"),
        ("both", "#!/bin/sh\nexec flywheelctl hook --then /other\n", "which is flywheel's"),
        ("determinate", "#!/bin/sh\nnix copy\n", "which is not flywheel's"),
    ] {
        let all = script(name, text);
        assert!(all.iter().any(|f| f.level == Level::Good && f.text.contains(word)), "{name}: {all:?}");
    }
}

#[test]
fn certificates_and_other_netrc_files() {
    let server = ClientServer {
        name: "main".into(),
        substituter: Some("https://a/main".into()),
        public_key: Some("main:key=".into()),
        readable: Some(true),
        ca_file: Some("/ca.pem".into()),
        client_cert: Some("/c.pem".into()),
        ..ClientServer::default()
    };
    let info = ClientInfo { servers: vec![server], ..ClientInfo::default() };
    let of = |version: &str| {
        let settings = NixSettings { version: version.into(), ..nix(READS, READS, true) };
        let all = reading::of_reading(&info, &[], Ok(&settings));
        all.iter().map(|f| f.text.clone()).collect::<Vec<_>>().join("\n")
    };
    let old = of("nix (Nix) 2.8.0");
    assert!(old.contains("authorities in /ca.pem") && old.contains("this is nix (Nix) 2.8.0"), "{old}");
    assert!(!of("nix (Nix) 2.34.1").contains("client certificate"));
    let dir = tempfile::tempdir().unwrap();
    assert!(reading::other_netrc(Some("/run/n"), &dir.path().join("absent")).is_none());
    let found = reading::other_netrc(Some("/run/n"), dir.path()).unwrap();
    assert!(found.text.contains("additionalNetrcSources"), "{found:?}");
    // The command does what the finding asks for.
    let file = dir.path().join("config.json");
    let command = found.command.unwrap();
    let write = command.split(" && systemctl").next().unwrap();
    let done = std::process::Command::new("sh").args(["-c", write]).status().unwrap();
    assert!(done.success(), "{write}");
    assert_eq!(reading::other_netrc(Some("/run/n"), dir.path()).unwrap().level, Level::Good);
    std::fs::write(&file, "{\"authentication\":{}}").unwrap();
    let found = reading::other_netrc(Some("/run/n"), dir.path()).unwrap();
    assert!(found.command.unwrap().starts_with("jq "), "{}", found.text);
    std::fs::write(dir.path().join("config.json"), "{\"additionalNetrcSources\":[\"/run/n\"]}").unwrap();
    assert_eq!(reading::other_netrc(Some("/run/n"), dir.path()).unwrap().level, Level::Good);
}

#[test]
fn limits_and_space() {
    let space = |purpose: &str, free| SpaceDiagnosis {
        purpose: purpose.into(),
        dir: "/d".into(),
        free,
        free_files: Some(100_000),
    };
    let host = HostDiagnosis {
        space: vec![space("store", 10 << 30), space("state", 1 << 30)],
        open_files: Some(Usage { used: 20, limit: 4096 }),
        inotify_watches: Some(8192),
        inotify_instances: Some(128),
        ..HostDiagnosis::default()
    };
    assert!(host::of_host(&host).iter().all(|f| f.level == Level::Good));
    type Harm = fn(&mut HostDiagnosis);
    for (what, harm) in [
        ("space of store", (|h| h.space[0].free = 1 << 20) as Harm),
        ("space of state", |h| h.space[1].free_files = Some(3)),
        ("limits", |h| h.open_files = Some(Usage { used: 20, limit: 64 })),
        ("limits", |h| h.inotify_watches = Some(10)),
        ("limits", |h| h.inotify_instances = Some(1)),
        ("processes", |h| h.processes_hidden = true),
    ] {
        let mut host = host.clone();
        harm(&mut host);
        let all = host::of_host(&host);
        assert_eq!((only(&all).what.as_str(), only(&all).level), (what, Level::Bad));
    }
}

#[test]
fn a_runner_that_was_started_before_it_joined_the_group() {
    let dir = tempfile::tempdir().unwrap();
    let process = |pid: &str, comm: &str, uid: u32, groups: &str, cmdline: &str| {
        let at = dir.path().join(pid);
        std::fs::create_dir(&at).unwrap();
        std::fs::write(at.join("comm"), format!("{comm}\n")).unwrap();
        std::fs::write(at.join("cmdline"), cmdline).unwrap();
        let status =
            format!("Name:\t{comm}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t7\t7\t7\t7\nGroups:\t{groups}\n");
        std::fs::write(at.join("status"), status).unwrap();
        std::fs::write(at.join("cgroup"), format!("0::/system.slice/{comm}.service\n")).unwrap();
    };
    process("10", "gitlab-runner", 100, "7 55", "");
    process("11", "buildkite-agent", 101, "7", "");
    process("12", "java", 102, "7", "java\0-jar\0/opt/agent.jar");
    process("13", "java", 103, "7", "java\0-jar\0/opt/minecraft.jar");
    process("14", "gitlab-runner", 0, "0", "");
    let runners = groups::runners(dir.path());
    let names: Vec<_> = runners.iter().map(|r| (r.pid, r.name.as_str())).collect();
    assert_eq!(
        names,
        [(10, "gitlab-runner"), (11, "buildkite-agent"), (12, "jenkins-agent"), (14, "gitlab-runner")]
    );

    let group = SocketGroup { gid: 55, name: "flywheel".into() };
    let of = |runner: &Runner, gids: Option<Vec<u32>>| {
        let person = gids.map(|gids| Person { name: "ci".into(), gids });
        groups::of_runner(runner, &group, person.as_ref())
    };
    assert_eq!(of(&runners[0], Some(vec![7, 55])), None);
    assert_eq!(of(&runners[3], Some(vec![0])), None, "root needs no group");
    let stale = of(&runners[1], Some(vec![7, 55])).unwrap();
    assert!(stale.text.contains("was started before its user ci joined the group flywheel"), "{stale:?}");
    assert_eq!(stale.command.as_deref(), Some("systemctl restart buildkite-agent.service"));
    let outside = of(&runners[1], Some(vec![7])).unwrap();
    assert!(outside.command.as_deref().unwrap().starts_with("usermod -aG flywheel ci && systemctl restart"));
    assert!(of(&runners[2], None).unwrap().text.contains("its user 102 is not in the group"));
}

//! Uploads to a server that reads them as celler does, a fork of Attic: by the header names
//! and answers of `tests/vectors/celler.json`, which are copied from celler's source.

use std::sync::Arc;

use serde_json::Value;

use super::server::{Conn, Request, Server};
use super::*;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../tests/vectors/celler.json")).unwrap()
}

/// What `upload_path` of celler's `server/src/api/v1/upload_path.rs` does up to the hash of
/// the NAR. It looks at no header of Attic's.
async fn upload_path(
    vectors: &Value,
    request: &Request,
    conn: &mut Conn,
) -> (&'static str, Option<UploadInfo>) {
    let body = conn.body(request).await;
    let header = |name: &str| request.header(&vectors[name].as_str().unwrap().to_lowercase());
    let (json, nar) = match (header("size_header"), header("info_header")) {
        (Some(size), _) => {
            let Ok(size) = size.parse::<usize>() else { return ("bad_size", None) };
            if size as u64 > vectors["max_nar_info_size"].as_u64().unwrap() {
                return ("too_large", None);
            }
            if body.len() < size {
                return ("other_size", None);
            }
            body.split_at(size)
        }
        (None, Some(json)) => (json.as_bytes(), &body[..]),
        (None, None) => return ("no_info", None),
    };
    let info: UploadInfo = serde_json::from_slice(json).unwrap();
    let answer = match nar.len() as u64 == info.nar_size {
        false => "mismatch",
        true if info.nar_size % 2 == 1 => "deduplicated",
        true => "uploaded",
    };
    (answer, Some(info))
}

async fn celler(received: tokio::sync::mpsc::UnboundedSender<(&'static str, Option<UploadInfo>)>) -> Server {
    let vectors = Arc::new(vectors());
    Server::start(move |request, mut conn| {
        let (vectors, received) = (Arc::clone(&vectors), received.clone());
        async move {
            let (answer, info) = upload_path(&vectors, &request, &mut conn).await;
            let recorded = &vectors["answers"][answer];
            let status = format!("{} X", recorded["status"]);
            conn.answer(&status, "content-type: application/json\r\n", &recorded["body"].to_string()).await;
            received.send((answer, info)).unwrap();
            Some(conn)
        }
    })
    .await
}

#[tokio::test]
async fn celler_reads_what_is_uploaded_to_it() {
    let (send, mut received) = tokio::sync::mpsc::unbounded_channel();
    let server = celler(send).await;
    let client = client(&server.url);
    for (references, size, answer, file_size) in [
        (0, 200, "uploaded", Some(186)),
        (0, 201, "deduplicated", None),
        // The upload info is longer than a header may be and comes before the NAR.
        (200, 200, "uploaded", Some(186)),
        (200, 70_001, "deduplicated", None),
    ] {
        let mut info = info(size);
        info.references = vec![info.store_path["/nix/store/".len()..].to_owned(); references];
        let uploaded = client.upload(&info, nar(size)).await.unwrap();
        let deduplicated = answer == "deduplicated";
        assert_eq!(uploaded, Uploaded { deduplicated, file_size }, "{references} references, {size} bytes");
        assert_eq!(received.recv().await.unwrap(), (answer, Some(info)));
    }
    // More references than celler takes.
    let mut info = info(200);
    info.references = vec![info.store_path["/nix/store/".len()..].to_owned(); 40_000];
    let error = client.upload(&info, nar(200)).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Rejected, "{error}");
    assert!(error.message.contains("Upload info is too large"), "{error}");
}

#[tokio::test]
async fn answers_of_celler_have_their_class() {
    let vectors = vectors();
    for (name, class) in [
        ("no_info", ErrorClass::Rejected),
        ("bad_size", ErrorClass::Rejected),
        ("other_size", ErrorClass::Rejected),
        ("mismatch", ErrorClass::Mismatch),
        ("unauthorized", ErrorClass::Unauthorized),
    ] {
        let recorded = &vectors["answers"][name];
        let (status, body) = (format!("{} X", recorded["status"]), recorded["body"].to_string());
        let server = Server::start(move |request, mut conn| {
            let (status, body) = (status.clone(), body.clone());
            async move {
                conn.body(&request).await;
                conn.answer(&status, "content-type: application/json\r\n", &body).await;
                Some(conn)
            }
        })
        .await;
        let error = client(&server.url).upload(&info(10), nar(10)).await.unwrap_err();
        assert_eq!(error.class, class, "{name}: {error}");
    }
}

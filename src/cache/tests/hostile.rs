//! Servers that answer without an end, without sense, or with more than a client needs: each
//! call ends with an error, in bounded memory.

use super::server::{CONFIG, Conn, Server};
use super::*;

/// What a server sends after it has read a request.
#[derive(Debug, Clone, Copy)]
enum Answer {
    /// A body without an end.
    Endless,
    /// A byte of the body now and then, always before the client would call it silent.
    Dripping,
    /// A body of which nothing comes.
    Withheld,
    /// A head without an end.
    EndlessHead,
    /// Interim answers without an end.
    EndlessInterim,
    /// 10 MB of one header.
    LargeHead,
    /// JSON within JSON, 100,000 times.
    Deep,
    /// Compressed zeros, which nobody asked for.
    Compressed,
    /// A redirect to the same place.
    Circle,
    /// A length that no body has.
    Negative,
}

use Answer::{
    Circle, Compressed, Deep, Dripping, Endless, EndlessHead, EndlessInterim, LargeHead, Negative, Withheld,
};

const ALL: [Answer; 10] =
    [Endless, Dripping, Withheld, EndlessHead, EndlessInterim, LargeHead, Deep, Compressed, Circle, Negative];

/// Sends until the client closes the connection.
async fn without_end(conn: &mut Conn, piece: &str, pause: Duration) {
    use tokio::io::AsyncWriteExt as _;
    while conn.stream.write_all(piece.as_bytes()).await.is_ok() {
        tokio::time::sleep(pause).await;
    }
}

async fn send(answer: Answer, path: &str, mut conn: Conn) -> Option<Conn> {
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    match answer {
        Endless => {
            conn.raw(CHUNKED).await;
            without_end(&mut conn, &format!("8000\r\n{}\r\n", " ".repeat(0x8000)), Duration::ZERO).await;
            None
        }
        Dripping => {
            conn.raw(CHUNKED).await;
            without_end(&mut conn, "1\r\n \r\n", Duration::from_millis(50)).await;
            None
        }
        Withheld => {
            conn.raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n").await;
            conn.drain().await;
            None
        }
        EndlessHead => {
            conn.raw("HTTP/1.1 200 OK\r\n").await;
            without_end(&mut conn, "x: y\r\n", Duration::from_millis(1)).await;
            None
        }
        EndlessInterim => {
            without_end(&mut conn, "HTTP/1.1 100 Continue\r\n\r\n", Duration::from_millis(1)).await;
            None
        }
        LargeHead => {
            conn.answer("200 OK", &format!("x: {}\r\n", "y".repeat(10_000_000)), CONFIG).await;
            None
        }
        Deep => {
            conn.answer("200 OK", "", &format!("{}{}", "{\"a\":[".repeat(50_000), "]}".repeat(50_000))).await;
            Some(conn)
        }
        Compressed => {
            // Read as what it is: its first bytes are no JSON.
            conn.answer("200 OK", "content-encoding: gzip\r\n", "\u{1f}\u{8b}\u{8}\0").await;
            Some(conn)
        }
        Circle => {
            conn.answer("307 Temporary Redirect", &format!("location: {path}\r\n"), "").await;
            Some(conn)
        }
        Negative => {
            conn.raw("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n{}").await;
            None
        }
    }
}

/// A client whose stall timeout is longer than the pauses of [`Dripping`].
fn client_of(url: &str) -> CacheClient {
    let (connect_timeout, stall_timeout) = (Duration::from_secs(1), Duration::from_millis(400));
    CacheClient::new(ClientSettings { connect_timeout, stall_timeout, ..settings(&[url]) }).unwrap()
}

#[tokio::test]
async fn every_question_and_upload_ends_whatever_the_server_answers() {
    for answer in ALL {
        let hostile = move |request: server::Request, mut conn: Conn| async move {
            conn.body(&request).await;
            send(answer, &request.path, conn).await
        };
        let (whole, calls) = (Server::bare(hostile).await, Server::start(hostile).await);
        let error = client_of(&whole.url).discover().await.unwrap_err();
        assert!(error.message.len() < 2000, "{answer:?}: {error}");
        let error = client_of(&calls.url).missing(hashes(3)).await.unwrap_err();
        assert!(error.message.len() < 2000, "{answer:?}: {error}");
        let error = client_of(&calls.url).upload(&info(9), nar(9)).await.unwrap_err();
        assert!(error.message.len() < 2000, "{answer:?}: {error}");
    }
}

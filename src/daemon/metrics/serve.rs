//! The server that a Prometheus scrapes: `GET /metrics`, and nothing else. On a loopback
//! address it answers under its own names only, because the owner of a web page could let
//! the page's name resolve to that address and read the metrics through the browser of a
//! user of this host (DNS rebinding). Must not know what is on the page.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HOST};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc::Sender, oneshot};
use tokio::time::timeout;

use super::Metrics;
use crate::daemon::inbox::Input;
use crate::embedded::HostNames;
use crate::observe::{detail, event};

/// The most connections at a time. One Prometheus has one; more wait for a place.
const CONNECTIONS: usize = 16;
/// How long a request's head may take, and how long a connection may be idle.
const HEAD: Duration = Duration::from_secs(10);
/// The longest life of a connection: a caller that does not read frees its place.
const LIFE: Duration = Duration::from_secs(300);
/// How long a page may take. Prometheus itself waits 10 s.
const PAGE: Duration = Duration::from_secs(8);
/// Pause after an accept failed, for example because the process has no free file descriptor.
const BREATH: Duration = Duration::from_millis(100);

/// Pause between two attempts to bind the address.
const REBIND: Duration = Duration::from_secs(10);

/// Serves without an end. Asks the driver, by its inbox, for each page. An address that
/// cannot be used is tried again, because metrics are no reason to stop the daemon.
pub(in crate::daemon) async fn serve(address: SocketAddr, metrics: Metrics, inbox: Sender<Input>) {
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                let text = format!(
                    "metrics are not served, because [metrics] listen = \"{address}\" cannot be used: {error}; \
                     choose another port, or end the process that has it"
                );
                if metrics.trouble().as_ref() != Some(&text) {
                    event!(METRICS_REFUSED, address = %address, error = %error, "{text}");
                }
                metrics.set_trouble(Some(text));
                tokio::time::sleep(REBIND).await;
            }
        }
    };
    metrics.set_trouble(None);
    let address = listener.local_addr().unwrap_or(address);
    event!(METRICS_SERVED, address = %address, "metrics are served at http://{address}/metrics");
    let names = Arc::new(address.ip().is_loopback().then(|| HostNames::new(&[])));
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                detail!(error = %error, "a connection for metrics cannot be accepted: {error}");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        let (inbox, names) = (inbox.clone(), Arc::clone(&names));
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request| answer(request, Arc::clone(&names), inbox.clone()));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            let _ = timeout(LIFE, connection).await;
        });
    }
}

/// Answers a request. `names`: those of this host, if others are refused.
async fn answer(
    request: Request<Incoming>,
    names: Arc<Option<HostNames>>,
    inbox: Sender<Input>,
) -> Result<Response<Body>, Infallible> {
    // No browser sends a request without `Host`.
    let host = request.headers().get(HOST).map(|host| String::from_utf8_lossy(host.as_bytes()));
    if let (Some(names), Some(host)) = (names.as_ref(), host)
        && !names.has(&host)
    {
        let why = "the metrics are served under addresses and names of this host only\n".to_owned();
        return Ok(text(StatusCode::MISDIRECTED_REQUEST, why));
    }
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    Ok(match (request.uri().path(), is_read) {
        ("/metrics", true) => match timeout(PAGE, page(&inbox)).await {
            Ok(Some(page)) => text(StatusCode::OK, page),
            Ok(None) | Err(_) => {
                text(StatusCode::SERVICE_UNAVAILABLE, "flywheeld is busy or stopping\n".to_owned())
            }
        },
        ("/metrics", false) => {
            let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed\n".to_owned());
            refused.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
            refused
        }
        _ => text(StatusCode::NOT_FOUND, "the metrics are at /metrics\n".to_owned()),
    })
}

async fn page(inbox: &Sender<Input>) -> Option<String> {
    let (reply, page) = oneshot::channel();
    inbox.send(Input::Metrics(reply)).await.ok()?;
    page.await.ok()
}

type Body = http_body_util::Full<Bytes>;

fn text(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Body::new(Bytes::from(body)));
    *response.status_mut() = status;
    // Prometheus' text format, version 0.0.4.
    let kind = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

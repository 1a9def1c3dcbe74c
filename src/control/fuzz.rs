//! What holds for every message that is accepted.

use super::codec::{self, ClientHello, ServerHello};
use super::messages::{Reply, Request};

/// Decodes bytes as everything that comes over the socket.
pub(crate) fn decode(bytes: &[u8]) {
    if let Ok(hello) = ClientHello::parse(bytes) {
        assert_eq!(ClientHello::parse(&hello.frame()[4..]).ok(), Some(hello));
    }
    if let Ok(hello) = ServerHello::parse(bytes) {
        assert_eq!(ServerHello::parse(&hello.frame()[4..]).ok(), Some(hello));
    }
    if let Ok(request) = codec::decode::<Request>(bytes)
        && let Ok(frame) = codec::encode(&request)
    {
        assert_eq!(codec::decode::<Request>(&frame[4..]).ok(), Some(request));
    }
    if let Ok(reply) = codec::decode::<Reply>(bytes)
        && let Ok(frame) = codec::encode(&reply)
    {
        // A rate may be a number that is not equal to itself, so bytes are compared.
        let again = codec::decode::<Reply>(&frame[4..]).ok().and_then(|reply| codec::encode(&reply).ok());
        assert_eq!(again, Some(frame));
        let _ = codec::encode(&super::truncate::truncated(reply));
    }
    let _ = codec::read::<Request>(&mut &bytes[..]);
}

//! Whether a client takes gzip (RFC 9110, 12.5.3), and the compression itself.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::body::Bytes;
use hyper::header::{ACCEPT_ENCODING, HeaderMap};

/// Bodies below this many bytes fit into one packet and are sent as they are.
const WORTH_IT: usize = 1024;

/// True when the request's `Accept-Encoding` prefers gzip to no encoding, or likes both as much.
pub(super) fn accepted(headers: &HeaderMap) -> bool {
    let mut gzip = None;
    let mut identity = None;
    let mut any = None;
    for value in headers.get_all(ACCEPT_ENCODING) {
        let Ok(value) = value.to_str() else { continue };
        for part in value.split(',') {
            let (coding, weight) = match part.split_once(';') {
                Some((coding, parameter)) => (coding.trim(), weight(parameter)),
                None => (part.trim(), 1000),
            };
            if coding.eq_ignore_ascii_case("gzip") || coding.eq_ignore_ascii_case("x-gzip") {
                gzip = Some(weight);
            } else if coding.eq_ignore_ascii_case("identity") {
                identity = Some(weight);
            } else if coding == "*" {
                any = Some(weight);
            }
        }
    }
    let gzip = gzip.or(any).unwrap_or(0);
    gzip > 0 && gzip >= identity.unwrap_or(0)
}

/// A weight in thousandths. One that cannot be read counts as 0: the encoding is then not used, which every
/// client understands.
fn weight(parameter: &str) -> u16 {
    let Some((name, value)) = parameter.trim().split_once('=') else { return 0 };
    match value.trim().parse::<f32>() {
        Ok(q) if name.trim().eq_ignore_ascii_case("q") && (0.0..=1.0).contains(&q) => (q * 1000.0) as u16,
        _ => 0,
    }
}

/// True when a body of `length` bytes should be compressed for a client that takes it.
pub(super) fn worth_it(length: usize) -> bool {
    length >= WORTH_IT
}

/// `body` in gzip format. Level 1: a page of metrics shrinks about tenfold at the least cost, and the levels
/// above cost several times as much for little more. Call it on a thread that may block.
pub(super) fn compress(body: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 6), Compression::fast());
    // Writing to a Vec cannot fail.
    encoder.write_all(body).and_then(|()| encoder.finish()).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    fn takes(values: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(ACCEPT_ENCODING, value.parse().unwrap());
        }
        accepted(&headers)
    }

    #[test]
    fn weights_decide() {
        for yes in
            ["gzip", "deflate, gzip;q=1.0, *;q=0.5", "GZIP", "*", "x-gzip", "gzip ; q = 0.001", "br,gzip"]
        {
            assert!(takes(&[yes]), "{yes}");
        }
        for no in
            ["", "identity", "gzip;q=0", "*;q=0", "gzip;q=0, *", "br", "gzip;q=2", "gzip;q", "gzip;q=nan"]
        {
            assert!(!takes(&[no]), "{no}");
        }
        assert!(!takes(&["gzip;q=0.5, identity"]), "identity is liked better");
        assert!(takes(&["gzip, identity;q=0.5"]));
        assert!(takes(&["br", "gzip"]), "two header lines are one list");
        assert!(!takes(&[]));
    }

    #[test]
    fn what_is_compressed_can_be_read_again() {
        let body = "some_metric_total{label=\"value\"} 1\n".repeat(1000);
        let packed = compress(body.as_bytes());
        assert!(packed.len() < body.len() / 10);
        let mut again = String::new();
        GzDecoder::new(&packed[..]).read_to_string(&mut again).unwrap();
        assert_eq!(again, body);
    }
}

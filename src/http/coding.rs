//! Response compression: negotiation (RFC 9110, 12.5.3) and encoding.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::body::Bytes;
use hyper::header::{ACCEPT_ENCODING, HeaderMap};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

/// Shorter bodies fit into one packet and are sent uncompressed.
const MIN_BYTES: usize = 1024;

/// A content coding of the response body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    Zstd,
}

impl Coding {
    /// The name in `Content-Encoding`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Zstd => "zstd",
        }
    }

    /// Compresses `body`. Must be called on a thread that may block.
    pub(super) fn compress(self, body: &[u8]) -> Bytes {
        match self {
            Coding::Gzip => gzip(body),
            Coding::Zstd => compress_to_vec(body, CompressionLevel::Fastest).into(),
        }
    }
}

/// Returns the coding that the request's `Accept-Encoding` prefers, or `None` for no compression. Between equal weights
/// gzip wins, which is faster here.
pub(super) fn preferred(headers: &HeaderMap) -> Option<Coding> {
    let (mut gzip, mut zstd, mut identity, mut any) = (None, None, None, None);
    for value in headers.get_all(ACCEPT_ENCODING) {
        let Ok(value) = value.to_str() else { continue };
        for part in value.split(',') {
            let (coding, weight) = match part.split_once(';') {
                Some((coding, parameter)) => (coding.trim(), weight(parameter)),
                None => (part.trim(), 1000),
            };
            match coding.to_ascii_lowercase().as_str() {
                "gzip" | "x-gzip" => gzip = Some(weight),
                "zstd" => zstd = Some(weight),
                "identity" => identity = Some(weight),
                "*" => any = Some(weight),
                _ => {}
            }
        }
    }
    let (gzip, zstd) = (gzip.or(any).unwrap_or(0), zstd.unwrap_or(0));
    let (weight, coding) = if zstd > gzip { (zstd, Coding::Zstd) } else { (gzip, Coding::Gzip) };
    (weight > 0 && weight >= identity.unwrap_or(0)).then_some(coding)
}

/// Parses a weight, in thousandths. A malformed one counts as 0, so the coding is not used; every client understands an
/// uncompressed response.
fn weight(parameter: &str) -> u16 {
    let Some((name, value)) = parameter.trim().split_once('=') else { return 0 };
    match value.trim().parse::<f32>() {
        Ok(q) if name.trim().eq_ignore_ascii_case("q") && (0.0..=1.0).contains(&q) => (q * 1000.0) as u16,
        _ => 0,
    }
}

/// Whether a body of `length` bytes is worth compressing.
pub(super) fn worth_it(length: usize) -> bool {
    length >= MIN_BYTES
}

/// Compresses `body` with gzip. Level 1: a page of metrics shrinks about tenfold at the lowest cost, and higher levels
/// cost several times as much for little gain.
fn gzip(body: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 6), Compression::fast());
    // Writing to a Vec cannot fail.
    encoder.write_all(body).and_then(|()| encoder.finish()).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;
    use ruzstd::decoding::StreamingDecoder;

    use super::*;

    fn takes(values: &[&str]) -> bool {
        preferred_of(values) == Some(Coding::Gzip)
    }

    fn preferred_of(values: &[&str]) -> Option<Coding> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(ACCEPT_ENCODING, value.parse().unwrap());
        }
        preferred(&headers)
    }

    #[test]
    fn quality_values_decide() {
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
    fn zstd_is_used_when_preferred() {
        for yes in ["zstd", "gzip;q=0.5, zstd", "ZSTD;q=0.1", "zstd, gzip;q=0"] {
            assert_eq!(preferred_of(&[yes]), Some(Coding::Zstd), "{yes}");
        }
        for no in ["gzip, zstd", "zstd;q=0", "zstd;q=0.5, gzip", "zstd;q=0.5, identity"] {
            assert_ne!(preferred_of(&[no]), Some(Coding::Zstd), "{no}");
        }
    }

    #[test]
    fn compression_round_trips() {
        let body: String =
            (0..20_000).map(|n| format!("some_metric_total{{label=\"{n}\"}} {}\n", n * 7 % 13)).collect();
        for coding in [Coding::Gzip, Coding::Zstd] {
            let packed = coding.compress(body.as_bytes());
            assert!(packed.len() < body.len() / 3, "{coding:?}: {}", packed.len());
            let mut again = String::new();
            match coding {
                Coding::Gzip => GzDecoder::new(&packed[..]).read_to_string(&mut again).unwrap(),
                Coding::Zstd => {
                    StreamingDecoder::new(&packed[..]).unwrap().read_to_string(&mut again).unwrap()
                }
            };
            assert_eq!(again, body);
        }
    }
}

//! Format negotiation by the `Accept` header of Prometheus and other clients.

use std::borrow::Cow;

use super::Format;

/// Escaping schemes for metric names with characters other than letters, digits and underscores. No name here has any,
/// so all schemes give the same result; the response echoes the one requested.
const ESCAPING: &[&str] = &["allow-utf-8", "underscores", "dots", "values"];

/// Returns the supported format that `accept` prefers and its content type, or the text format if it accepts none of
/// them. `created` is when counting started, in seconds since 1970.
pub fn negotiate(accept: Option<&str>, created: f64) -> (Format, Cow<'static, str>) {
    let mut best: Option<(f32, Format, String)> = None;
    for part in accept.unwrap_or_default().split(',') {
        let Some((weight, format, content_type)) = offer(part, created) else { continue };
        if weight > 0.0 && best.as_ref().is_none_or(|(most, ..)| weight > *most) {
            best = Some((weight, format, content_type));
        }
    }
    match best {
        Some((_, format, content_type)) => (format, content_type.into()),
        None => (Format::Text, TEXT.into()),
    }
}

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Parses one media range of the header: its weight, the format it selects and the content type.
fn offer(part: &str, created: f64) -> Option<(f32, Format, String)> {
    let mut pieces = part.split(';').map(str::trim);
    let range = pieces.next()?.to_ascii_lowercase();
    let (mut weight, mut version, mut escaping, mut encoding, mut proto) = (1.0, None, None, None, None);
    for piece in pieces {
        let (name, value) = piece.split_once('=')?;
        let value = value.trim().trim_matches('"');
        match name.trim().to_ascii_lowercase().as_str() {
            "q" => weight = value.parse().ok().filter(|q| (0.0..=1.0).contains(q))?,
            "version" => version = Some(value),
            "escaping" => escaping = ESCAPING.iter().find(|known| **known == value),
            "encoding" => encoding = Some(value),
            "proto" => proto = Some(value),
            _ => {}
        }
    }
    let (format, content_type) = match (range.as_str(), version) {
        ("application/openmetrics-text", None | Some("1.0.0" | "0.0.1")) => {
            let version = version.unwrap_or("1.0.0");
            let content_type = format!("application/openmetrics-text; version={version}; charset=utf-8");
            (Format::OpenMetrics { created }, content_type)
        }
        ("application/vnd.google.protobuf", _)
            if proto == Some("io.prometheus.client.MetricFamily") && encoding == Some("delimited") =>
        {
            let content_type = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; \
                                encoding=delimited";
            (Format::Protobuf { created }, content_type.to_owned())
        }
        ("text/plain", Some("1.0.0")) => (Format::Text, TEXT.replace("0.0.4", "1.0.0")),
        ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", _) => (Format::Text, TEXT.to_owned()),
        _ => return None,
    };
    let escaping = escaping.map(|escaping| format!("; escaping={escaping}")).unwrap_or_default();
    Some((weight, format, content_type + &escaping))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_their_preferred_format() {
        let openmetrics = Format::OpenMetrics { created: 1.0 };
        let protobuf = Format::Protobuf { created: 1.0 };
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;\
                            q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                            application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;\
                            escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        let native = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,\
                      application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.6,*/*;q=0.5";
        for (accept, format, content_type) in [
            ("", Format::Text, TEXT),
            ("*/*", Format::Text, TEXT),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Format::Text, TEXT),
            (prometheus_2, openmetrics, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
            (
                prometheus_3,
                openmetrics,
                "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=allow-utf-8",
            ),
            (
                native,
                protobuf,
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
            ),
            (
                "text/plain;version=1.0.0;escaping=underscores",
                Format::Text,
                "text/plain; version=1.0.0; charset=utf-8; escaping=underscores",
            ),
            ("text/plain;version=0.0.4;escaping=runes", Format::Text, TEXT),
            ("application/openmetrics-text; version=2.0.0", Format::Text, TEXT),
            ("application/openmetrics-text;q=0, text/plain;q=0.1", Format::Text, TEXT),
            ("application/openmetrics-text;q=2", Format::Text, TEXT),
            ("application/vnd.google.protobuf;proto=other;encoding=delimited", Format::Text, TEXT),
            ("application/json", Format::Text, TEXT),
        ] {
            let (found, shown) = negotiate(Some(accept), 1.0);
            assert_eq!((found, &*shown), (format, content_type), "{accept}");
        }
        assert_eq!(negotiate(None, 1.0).0, Format::Text);
    }
}

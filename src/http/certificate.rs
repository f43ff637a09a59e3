//! Certificate metadata (RFC 5280): the validity period and the names.

use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

/// Certificates that expire within this time cause a warning.
const RENEWAL: i64 = 30 * DAY;
const DAY: i64 = 24 * 3600;

/// The relevant metadata of the server's own certificate. Times are seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CertificateInfo {
    not_before: i64,
    pub(super) not_after: i64,
    has_names: bool,
    pub(super) is_v3: bool,
}

impl CertificateInfo {
    /// Parses a DER certificate; returns `None` if it is malformed.
    pub(super) fn of(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = |extension: &ParsedExtension<'_>| match extension {
            ParsedExtension::SubjectAlternativeName(names) => !names.general_names.is_empty(),
            _ => false,
        };
        Some(Self {
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            has_names: certificate.extensions().iter().any(|extension| names(extension.parsed_extension())),
            is_v3: certificate.version() == X509Version::V3,
        })
    }

    /// The reasons why clients reject the certificate or soon will, as sentences that name it by `display`.
    pub(super) fn warnings(&self, display: &str, now: i64) -> Vec<String> {
        let mut warnings = self.validity(display, now).into_iter().collect::<Vec<_>>();
        if !self.is_v3 {
            warnings.push(format!(
                "the certificate {display} is X.509 version 1, which clients reject; issue a version 3 \
                 certificate"
            ));
        } else if !self.has_names {
            warnings.push(format!(
                "the certificate {display} has no subject alternative name, so clients reject it for every \
                 host; issue one with the names that clients use (see generate-certs.sh)"
            ));
        }
        warnings
    }

    /// Returns what is wrong with the validity period.
    pub(super) fn validity(&self, display: &str, now: i64) -> Option<String> {
        let left = self.not_after - now;
        if now < self.not_before {
            let wait = days(self.not_before - now);
            return Some(format!(
                "the certificate {display} is not valid until {wait} from now; check the system clock"
            ));
        }
        if left < 0 {
            return Some(format!(
                "the certificate {display} expired {} ago, so clients reject it; renew it",
                days(-left)
            ));
        }
        (left < RENEWAL).then(|| format!("the certificate {display} expires in {}; renew it", days(left)))
    }
}

fn days(seconds: i64) -> String {
    match seconds / DAY {
        0 => "less than a day".to_string(),
        1 => "1 day".to_string(),
        days => format!("{days} days"),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn facts(names: &[&str]) -> CertificateInfo {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2024, 1, 1), date_time_ymd(2025, 1, 1));
        let key = KeyPair::generate().unwrap();
        CertificateInfo::of(params.self_signed(&key).unwrap().der()).unwrap()
    }

    #[test]
    fn validity_period_is_reported() {
        let facts = facts(&["localhost"]);
        let begin = 1_704_067_200;
        assert_eq!((facts.not_before, facts.not_after), (begin, begin + 366 * DAY));
        for (now, expected) in [
            (begin - 3 * DAY - 1, Some("is not valid until 3 days from now")),
            (begin, None),
            (begin + 336 * DAY, None),
            (begin + 336 * DAY + 1, Some("expires in 29 days")),
            (begin + 366 * DAY - 5, Some("expires in less than a day")),
            (begin + 367 * DAY + 1, Some("expired 1 day ago")),
        ] {
            let warnings = facts.warnings("node.crt", now);
            assert_eq!(warnings.len(), usize::from(expected.is_some()), "{warnings:?}");
            assert!(warnings.iter().all(|warning| warning.contains(expected.unwrap())), "{warnings:?}");
        }
    }

    #[test]
    fn missing_subject_alternative_name_is_reported() {
        let facts = facts(&[]);
        let warnings = facts.warnings("node.crt", facts.not_before);
        assert!(warnings.len() == 1 && warnings[0].contains("no subject alternative name"), "{warnings:?}");
    }

    #[test]
    fn invalid_certificate_yields_no_info() {
        assert_eq!(CertificateInfo::of(b""), None);
        assert_eq!(CertificateInfo::of(&[0x30; 100]), None);
    }
}

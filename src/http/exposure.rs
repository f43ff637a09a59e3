//! Warnings about the chosen listen address.

use std::net::IpAddr;

/// Returns warnings, as whole sentences, about serving on `bind` with or without credentials and TLS. Empty for a
/// loopback address, and for any other address with both.
pub fn exposure_warnings(bind: IpAddr, has_auth: bool, has_tls: bool) -> Vec<String> {
    let bind = bind.to_canonical();
    if bind.is_loopback() {
        return Vec::new();
    }
    let place = if bind.is_unspecified() {
        format!("all addresses of this machine ({bind})")
    } else {
        format!("{bind}")
    };
    let mut warnings = Vec::new();
    if !has_auth {
        warnings.push(format!(
            "the metrics are served on {place} WITHOUT A PASSWORD: anyone who can connect can read them; set \
             metrics_auth_username and metrics_auth_password, or bind to 127.0.0.1"
        ));
    }
    match (has_auth, has_tls) {
        (_, true) => {}
        (true, false) => warnings.push(format!(
            "the metrics password is sent IN CLEAR TEXT: there is no TLS on {place}, so anyone on the \
             network path can read it; set tls_cert and tls_key"
        )),
        (false, false) => warnings.push(format!(
            "the metrics are sent IN CLEAR TEXT: there is no TLS on {place}, so anyone on the network path \
             can read and change them; set tls_cert and tls_key"
        )),
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings(bind: &str, auth: bool, tls: bool) -> Vec<String> {
        exposure_warnings(bind.parse().unwrap(), auth, tls)
    }

    #[test]
    fn loopback_raises_no_warning() {
        for bind in ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"] {
            assert!(warnings(bind, false, false).is_empty(), "{bind}");
        }
    }

    #[test]
    fn each_missing_protection_is_reported_once() {
        assert!(warnings("10.0.0.1", true, true).is_empty());
        let bare = warnings("0.0.0.0", false, false);
        assert_eq!(bare.len(), 2);
        assert!(bare[0].contains("all addresses") && bare[0].contains("WITHOUT A PASSWORD"));
        assert!(bare[1].contains("metrics are sent IN CLEAR TEXT"));
        let no_tls = warnings("192.0.2.1", true, false);
        assert_eq!(no_tls.len(), 1);
        assert!(no_tls[0].contains("password") && no_tls[0].contains("192.0.2.1"));
        let no_auth = warnings("::", false, true);
        assert_eq!(no_auth.len(), 1);
        assert!(no_auth[0].contains("WITHOUT A PASSWORD"));
    }
}

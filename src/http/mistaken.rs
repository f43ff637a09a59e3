//! Identifies files that are not usable certificates or keys, for users who expect them to be.

use rustls_pki_types::PrivateKeyDer;

/// Returns why a file is not PEM at all, even if it looks like it.
pub(super) fn encoding(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [] => Some("is empty"),
        [0xef, 0xbb, 0xbf, ..] => Some(
            "begins with a byte order mark (BOM), which hides its first line; save it as UTF-8 without one",
        ),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("is UTF-16; save it as ASCII or UTF-8"),
        // A sequence of a few hundred bytes or more: certificates and keys in DER, and PKCS#12, begin with one.
        [0x30, 0x81..=0x83, ..] => Some(
            "is binary (DER or PKCS#12), not PEM; convert it with `openssl x509`, `openssl pkey` or `openssl pkcs12`",
        ),
        _ => None,
    }
}

/// Returns what a PEM file contains instead of the expected content, judging by its first section.
pub(super) fn section(bytes: &[u8]) -> Option<&'static str> {
    const SECTIONS: [(&str, &str); 6] = [
        ("CERTIFICATE REQUEST", "a certificate request, which an authority makes a certificate of"),
        ("TRUSTED CERTIFICATE", "a certificate in OpenSSL's own format; convert it with `openssl x509`"),
        ("PKCS7", "PKCS#7; convert it with `openssl pkcs7 -print_certs`"),
        ("OPENSSH PRIVATE KEY", "a key of OpenSSH"),
        ("PUBLIC KEY", "a public key"),
        ("PRIVATE KEY", "a private key"),
    ];
    let text = String::from_utf8_lossy(bytes);
    let (_, rest) = text.split_once("-----BEGIN ")?;
    let (name, _) = rest.split_once("-----")?;
    let found = SECTIONS.iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, what)| *what);
    found.or_else(|| (name == "CERTIFICATE").then_some("a certificate"))
}

/// Limits for the sizes in bytes of RSA keys (PKCS#1) with 2048 and with 8192 bits: below and above the actual sizes,
/// to allow for the container and for the varying lengths of numbers.
const RSA_2048: usize = 1100;
const RSA_8192: usize = 4800;

/// Object identifiers of algorithms and curves in DER (RFC 5480, RFC 8410, RFC 3279), and their descriptions.
const ALGORITHMS: [(&[u8], &str); 6] = [
    (&[0x2b, 0x81, 0x04, 0x00, 0x23], "it is of the curve P-521"),
    (&[0x2b, 0x81, 0x04, 0x00, 0x0a], "it is of the curve secp256k1"),
    (&[0x2b, 0x24, 0x03, 0x03, 0x02, 0x08], "it is of a Brainpool curve"),
    (&[0x2b, 0x65, 0x71], "it is Ed448"),
    (&[0x2a, 0x86, 0x48, 0xce, 0x38, 0x04, 0x01], "it is DSA"),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a], "it is for RSASSA-PSS only"),
];
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];

/// How many bytes at the start of a PKCS#8 key contain the algorithm and the curve. The key itself follows, and may
/// contain any bytes.
const HEADER: usize = 40;

/// Returns the kind of a key that cannot be used.
pub(super) fn key(key: &PrivateKeyDer<'_>) -> Option<&'static str> {
    let der = key.secret_der();
    let has =
        |identifier: &[u8], within: &[u8]| within.windows(identifier.len()).any(|part| part == identifier);
    let header = &der[..der.len().min(HEADER)];
    let is_rsa = match key {
        PrivateKeyDer::Pkcs1(_) => true,
        PrivateKeyDer::Pkcs8(_) => has(RSA, header),
        _ => false,
    };
    match der.len() {
        less if is_rsa && less < RSA_2048 => return Some("it is RSA with fewer than 2048 bits"),
        more if is_rsa && more > RSA_8192 => return Some("it is RSA with more than 8192 bits"),
        _ if is_rsa => return None,
        _ => {}
    }
    // In an EC key (RFC 5915), the curve follows the secret.
    let within = if matches!(key, PrivateKeyDer::Sec1(_)) { der } else { header };
    ALGORITHMS.iter().find(|(identifier, _)| has(identifier, within)).map(|(_, what)| *what)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustls_pki_types::pem::PemObject;

    use super::*;

    fn kind_of(arguments: &[&str]) -> Option<&'static str> {
        let made = Command::new("openssl").args(arguments).output().expect("openssl");
        assert!(made.status.success(), "{arguments:?}: {made:?}");
        key(&PrivateKeyDer::from_pem_slice(&made.stdout).expect("a key"))
    }

    #[test]
    fn identifies_unusable_kinds_of_keys() {
        let rsa = |bits: &str| {
            kind_of(&["genpkey", "-algorithm", "RSA", "-pkeyopt", &format!("rsa_keygen_bits:{bits}")])
        };
        assert_eq!(rsa("1024"), Some("it is RSA with fewer than 2048 bits"));
        assert_eq!(rsa("1536"), Some("it is RSA with fewer than 2048 bits"));
        assert_eq!(rsa("2048"), None);
        assert_eq!(kind_of(&["genrsa", "-traditional", "1024"]), Some("it is RSA with fewer than 2048 bits"));
        for (curve, message) in [
            ("secp521r1", Some("P-521")),
            ("secp256k1", Some("secp256k1")),
            ("brainpoolP256r1", Some("Brainpool")),
            ("P-256", None),
        ] {
            let pkcs8 = ["genpkey", "-algorithm", "EC", "-pkeyopt", &format!("ec_paramgen_curve:{curve}")];
            let name = if curve == "P-256" { "prime256v1" } else { curve };
            for arguments in [&pkcs8[..], &["ecparam", "-name", name, "-genkey", "-noout"]] {
                let found = kind_of(arguments);
                assert!(
                    found.is_some() == message.is_some()
                        && found.unwrap_or("").contains(message.unwrap_or("")),
                    "{arguments:?}: {found:?}"
                );
            }
        }
        assert_eq!(kind_of(&["genpkey", "-algorithm", "ED448"]), Some("it is Ed448"));
        assert_eq!(kind_of(&["genpkey", "-algorithm", "ED25519"]), None);
    }

    #[test]
    fn identifies_other_file_formats() {
        let message = |bytes: &[u8]| encoding(bytes).unwrap_or_default();
        assert!(message(b"\xef\xbb\xbf-----BEGIN CERTIFICATE-----").contains("BOM"));
        assert!(
            message(b"\xff\xfe-\0-\0").contains("UTF-16") && message(b"\x30\x82\x05\x00").contains("DER")
        );
        assert_eq!(
            (message(b""), encoding(b"-----BEGIN CERTIFICATE-----"), encoding(b"0 text")),
            ("is empty", None, None)
        );
        let section = |name: &str| section(format!("text\n-----BEGIN {name}-----\nAAAA\n").as_bytes());
        assert_eq!(section("EC PRIVATE KEY"), Some("a private key"));
        assert_eq!(section("CERTIFICATE"), Some("a certificate"));
        assert!(section("NEW CERTIFICATE REQUEST").is_some_and(|message| message.contains("request")));
        assert!(section("PKCS7").is_some_and(|message| message.contains("print_certs")));
        assert_eq!(section("NONSENSE"), None);
    }
}

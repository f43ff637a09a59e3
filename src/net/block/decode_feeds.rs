//! Decodes the sections of remote sources: `network.block.crowdsec` and `network.block.blocklist_url`.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use super::config::parse_ttl;
use super::crowdsec::{CrowdsecConfig, PushConfig};
use super::decisions::DecisionScope;
use super::fetch::{ContentCheck, UrlConfig, digest_of, is_key};
use crate::config::section::{Key, Schema, Section, words};
use crate::config::{Fields, Node, size};
use crate::http_client::Url;

/// Valid intervals between requests.
const INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

/// `network.block.crowdsec:`.
pub(super) static CROWDSEC: Section = Section {
    name: "crowdsec",
    what: "the settings of CrowdSec",
    about: "CrowdSec's Local API, whose decisions are blocked.",
    keys: Cow::Borrowed(&[
        Key::new("url", Schema::Text, "URL of the Local API, such as `http://127.0.0.1:8080/`.").required(),
        Key::new("api_key_file", Schema::Path, "File with the key that `cscli bouncers add` prints."),
        Key::new("interval", Schema::LabelText, "How often changes are requested: `10s`, `1m`.").or("10s"),
        Key::new(
            "scopes",
            Schema::OneOrList(&Schema::Words(|| words(DecisionScope::WORDS))),
            "What decisions may be about. Default: both.",
        ),
        Key::new(
            "origins",
            Schema::OneOrList(&Schema::Text),
            "Only decisions of these origins, such as `crowdsec`, `cscli`, `CAPI`, `lists`. Default: all.",
        ),
        Key::new("push", Schema::Section(|| &PUSH), "Report bans by detection to it."),
        CA,
        CERTIFICATE,
        KEY,
        INSECURE,
    ]),
    one_of: &[],
};

/// `network.block.crowdsec.push:`.
static PUSH: Section = Section {
    name: "push",
    what: "the settings of alerts",
    about: "Bans by this exporter's detection become alerts with a decision in CrowdSec, so that all its bouncers block the source.",
    keys: Cow::Borrowed(&[
        Key::new("machine", Schema::Text, "Name that `cscli machines add NAME --password ...` was given.")
            .required(),
        Key::new("password_file", Schema::Path, "File with the machine's password.").required(),
    ]),
    one_of: &[],
};

const CA: Key = Key::new(
    "ca",
    Schema::Path,
    "Certificates (PEM) of the authorities that may have issued the server's. Default: those that the system trusts.",
);
const CERTIFICATE: Key = Key::new("certificate", Schema::Path, "Client certificate (PEM); needs `key`.");
const KEY: Key = Key::new("key", Schema::Path, "Private key of `certificate` (PEM).");
const INSECURE: Key = Key::new(
    "insecure_http",
    Schema::Boolean,
    "Allow `http://` to another machine, where anyone on the network path can read and change what is sent.",
)
.or("false");

/// An entry of `network.block.blocklist_url:`.
pub(super) static BLOCKLIST_URL: Section = Section {
    name: "blocklist_url",
    what: "a list to fetch",
    about: "A list on another machine.",
    keys: Cow::Borrowed(&[
        Key::new("url", Schema::Text, "URL of the list.").required(),
        Key::new("reason", Schema::Text, "Shown with its entries. Default: the URL."),
        Key::new("interval", Schema::LabelText, "How often the list is requested: `5m`, `1h`.").or("1h"),
        Key::new("sha256", Schema::Text, "Digest that the list must have, for a list that never changes."),
        Key::new(
            "minisign",
            Schema::Text,
            "Public key (`RW...`) that the list must be signed with by minisign.",
        ),
        Key::new(
            "signature_url",
            Schema::Text,
            "URL of the signature. Default: that of the list and `.minisig`.",
        ),
        Key::new("max_size", Schema::Size, "Largest size of the list, from 1KiB to 256MiB.").or("64MiB"),
        CA,
        CERTIFICATE,
        KEY,
        INSECURE,
    ]),
    one_of: &[],
};

/// Valid sizes of a list.
const SIZES: std::ops::RangeInclusive<u64> = 1 << 10..=256 << 20;

/// Decodes an entry; errors are added to the node's list.
pub(super) fn blocklist_url(node: &Node<'_>) -> Option<UrlConfig> {
    let hour = Duration::from_secs(3600);
    if !node.value.is_mapping() {
        let url = parsed_url(node, false)?;
        return Some(UrlConfig {
            reason: url.to_string(),
            url,
            interval: hour,
            check: ContentCheck::None,
            most: 64 << 20,
            is_insecure_allowed: false,
            ca: None,
            identity: None,
        });
    }
    let fields = node.fields(&BLOCKLIST_URL)?;
    let at = fields.require("url", "write url: https://example.org/drop.txt");
    let list = at.and_then(|node| url(&node, &fields));
    let text = |key: &str| fields.get(key).and_then(|node| node.text()).map(str::to_string);
    let wrong = |key: &str, what: &str, help: &str| {
        if let Some(node) = fields.get(key) {
            node.error(what).help(help);
        }
    };
    let digest = text("sha256").map(|text| digest_of(&text));
    if digest == Some(None) {
        wrong("sha256", "not a SHA-256 digest", "write the 64 digits that `sha256sum FILE` prints");
    }
    let key = text("minisign");
    if key.as_ref().is_some_and(|key| !is_key(key)) {
        wrong("minisign", "not a public key of minisign", "write the second line of minisign.pub: RW...");
    }
    if fields.has("sha256") {
        fields.forbid(&["minisign"], "with `sha256`, the list cannot change");
    }
    if !fields.has("minisign") {
        fields.forbid(&["signature_url"], "it needs `minisign`");
    }
    let signature = fields.get("signature_url").map(|node| url(&node, &fields));
    let most = fields.get("max_size").map_or(Some(64 << 20), |node| {
        let bytes = node.value.as_str().and_then(size).filter(|bytes| SIZES.contains(bytes));
        if bytes.is_none() {
            node.expected("a size from 1KiB to 256MiB");
        }
        bytes
    });
    let (interval, identity, ca) = (interval(&fields, hour), identity(&fields), path(&fields, "ca"));
    let (reason, is_insecure_allowed) = (text("reason"), is_insecure_allowed(&fields));
    // Returns only after all errors are reported.
    let list = list?;
    let check = match (digest, key) {
        (Some(digest), _) => ContentCheck::Sha256(digest?),
        (None, Some(key)) => {
            let signature = signature.unwrap_or_else(|| Some(list.with_suffix(".minisig")))?;
            ContentCheck::Minisign { key, signature }
        }
        (None, None) => ContentCheck::None,
    };
    Some(UrlConfig {
        reason: reason.unwrap_or_else(|| list.to_string()),
        url: list,
        interval,
        check,
        most: most? as usize,
        is_insecure_allowed,
        ca,
        identity,
    })
}

fn path(fields: &Fields<'_>, key: &str) -> Option<PathBuf> {
    fields.get(key).and_then(|node| node.path())
}

/// Decodes the section; errors are added to the node's list.
pub(super) fn crowdsec(node: &Node<'_>) -> Option<CrowdsecConfig> {
    let fields = node.fields(&CROWDSEC)?;
    let url = fields.require("url", "write url: http://127.0.0.1:8080/").and_then(|node| url(&node, &fields));
    let (api_key_file, ca) = (path(&fields, "api_key_file"), path(&fields, "ca"));
    let (interval, identity) = (interval(&fields, Duration::from_secs(10)), identity(&fields));
    if !fields.has("api_key_file") && !fields.has("certificate") {
        fields
            .error("`api_key_file` or `certificate` is missing")
            .help("`cscli bouncers add NAME -o raw` prints a key for the file");
    }
    let list = |key: &str| fields.get(key).map(|node| node.one_or_list()).unwrap_or_default();
    let mut scopes: Vec<_> =
        (list("scopes").iter()).filter_map(|node| node.one_of("scope", DecisionScope::WORDS)).collect();
    if scopes.is_empty() {
        scopes = DecisionScope::WORDS.iter().map(|(_, scope)| *scope).collect();
    }
    let origins = list("origins").iter().filter_map(origin).collect();
    let pushed = fields.get("push").map(|node| push(&node));
    scopes.sort_unstable();
    scopes.dedup();
    Some(CrowdsecConfig {
        url: url?,
        api_key_file,
        interval,
        scopes,
        origins,
        ca,
        identity,
        push: pushed.flatten(),
    })
}

fn push(node: &Node<'_>) -> Option<PushConfig> {
    let fields = node.fields(&PUSH)?;
    let machine = fields.require("machine", "`cscli machines add NAME --password ...` adds one");
    let password = fields.require("password_file", "write the machine's password into a file");
    let machine = machine.and_then(|node| node.text_as("the name of a machine").map(str::to_string));
    let password_file = password.and_then(|node| node.path());
    Some(PushConfig { machine: machine?, password_file: password_file? })
}

/// The URL. It must be HTTPS or local unless plain HTTP is explicitly allowed.
fn url(node: &Node<'_>, fields: &Fields<'_>) -> Option<Url> {
    let url = parsed_url(node, is_insecure_allowed(fields))?;
    if !url.is_secure() {
        fields.forbid(&["ca", "certificate", "key"], "it is for https:// only");
    }
    Some(url)
}

fn is_insecure_allowed(fields: &Fields<'_>) -> bool {
    fields.get("insecure_http").and_then(|node| node.boolean()).unwrap_or(false)
}

fn parsed_url(node: &Node<'_>, is_insecure_allowed: bool) -> Option<Url> {
    let url = match Url::parse(node.text_as("a URL")?) {
        Ok(url) => url,
        Err(error) => {
            node.error(error).help("write https://host/path");
            return None;
        }
    };
    if !url.is_private() && !is_insecure_allowed {
        node.error(
            "plain http to another machine: anyone on the network path can read and change what is sent",
        )
        .help("use https://, or allow it by insecure_http: true");
    }
    Some(url)
}

/// Certificate and key, which must be given together.
fn identity(fields: &Fields<'_>) -> Option<(PathBuf, PathBuf)> {
    let (certificate, key) = (path(fields, "certificate"), path(fields, "key"));
    for (one, other) in [("certificate", "key"), ("key", "certificate")] {
        if fields.has(one) && !fields.has(other) {
            fields.error(format!("`{one}` needs `{other}`"));
        }
    }
    certificate.zip(key)
}

fn interval(fields: &Fields<'_>, default: Duration) -> Duration {
    let Some(node) = fields.get("interval") else { return default };
    let Some(text) = node.label_text() else { return default };
    match parse_ttl(&text).ok().filter(|time| INTERVALS.contains(time)) {
        Some(interval) => interval,
        None => {
            node.error(format!("{text:?} is not an interval")).help("from 1s to 24h: 30s, 5m, 1h");
            default
        }
    }
}

/// The origin as it appears in a query.
fn origin(node: &Node<'_>) -> Option<String> {
    let text = node.text_as("an origin")?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if text.is_empty() || !text.chars().all(is_plain) {
        node.error(format!("{text:?} is not an origin")).help("`cscli decisions list` shows them");
        return None;
    }
    Some(text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::decode_text;

    fn read(text: &str) -> Result<CrowdsecConfig, String> {
        decode_text(text, crowdsec)
    }

    #[test]
    fn accepts_short_and_long_crowdsec_forms() {
        let config = read("{ url: 'http://127.0.0.1:8080/', api_key_file: /k }").unwrap();
        assert_eq!((config.interval, config.scopes.len()), (Duration::from_secs(10), 2));
        let config = read(
            "{ url: 'https://lapi.example.org', certificate: /c, key: /k, ca: /ca, interval: 1m, scopes: range, \
             origins: [CAPI, lists], push: { machine: m, password_file: /p } }",
        )
        .unwrap();
        assert_eq!((config.interval, config.scopes), (Duration::from_secs(60), vec![DecisionScope::Range]));
        let push = PushConfig { machine: "m".into(), password_file: "/p".into() };
        assert_eq!(config.push, Some(push));
        assert_eq!((config.origins.len(), config.identity.is_some(), config.ca.is_some()), (2, true, true));
        assert!(read("{ url: 'http://192.0.2.1/', api_key_file: /k, insecure_http: true }").is_ok());
    }

    #[test]
    fn rejects_invalid_config() {
        for (text, expected) in [
            ("{ api_key_file: /k }", "`url` is missing"),
            ("{ url: 'http://127.0.0.1/' }", "`api_key_file` or `certificate` is missing"),
            ("{ url: 'http://192.0.2.1/', api_key_file: /k }", "plain http to another machine"),
            ("{ url: localhost, api_key_file: /k }", "not a URL"),
            ("{ url: 'https://h/', certificate: /c }", "`certificate` needs `key`"),
            ("{ url: 'http://127.0.0.1/', certificate: /c, key: /k }", "for https:// only"),
            ("{ url: 'http://127.0.0.1/', api_key_file: /k, interval: 0 }", "is not an interval"),
            ("{ url: 'http://127.0.0.1/', api_key_file: /k, scopes: country }", "unknown scope"),
            (
                "{ url: 'http://127.0.0.1/', api_key_file: /k, push: { machine: m } }",
                "`password_file` is missing",
            ),
            ("{ url: 'http://127.0.0.1/', api_key_file: /k, push: true }", "push"),
            ("{ url: 'http://127.0.0.1/', api_key_file: /k, origins: 'a&b' }", "is not an origin"),
        ] {
            let wrong = read(text).unwrap_err();
            assert!(wrong.contains(expected), "{text}: {wrong}");
        }
    }

    fn list(text: &str) -> Result<UrlConfig, String> {
        decode_text(text, blocklist_url)
    }

    const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";

    #[test]
    fn accepts_short_and_long_list_forms() {
        let short = list("'https://example.org/drop.txt?key=x'").unwrap();
        assert_eq!(
            (short.reason.as_str(), short.check),
            ("https://example.org/drop.txt", ContentCheck::None)
        );
        let digest = "ab".repeat(32);
        let pinned =
            list(&format!("{{ url: 'http://localhost/a', sha256: {digest}, max_size: 1MiB, interval: 5m }}"))
                .unwrap();
        assert_eq!((pinned.check, pinned.most), (ContentCheck::Sha256([0xab; 32]), 1 << 20));
        let signed = list(&format!("{{ url: 'https://h/a?b', minisign: {KEY}, reason: x }}")).unwrap();
        let ContentCheck::Minisign { key, signature } = signed.check else { panic!("{:?}", signed.check) };
        assert_eq!((key.as_str(), signature.text().as_str()), (KEY, "https://h/a.minisig?b"));
        for (text, expected) in [
            ("'http://example.org/'".to_string(), "plain http to another machine"),
            ("{ reason: x }".to_string(), "`url` is missing"),
            ("{ url: 'https://h/', sha256: abc }".to_string(), "not a SHA-256 digest"),
            ("{ url: 'https://h/', minisign: abc }".to_string(), "not a public key"),
            ("{ url: 'https://h/', signature_url: 'https://h/s' }".to_string(), "needs `minisign`"),
            (format!("{{ url: 'https://h/', sha256: {digest}, minisign: {KEY} }}"), "cannot change"),
            ("{ url: 'https://h/', max_size: 1GiB }".to_string(), "a size from 1KiB"),
        ] {
            let wrong = list(&text).unwrap_err();
            assert!(wrong.contains(expected), "{text}: {wrong}");
        }
    }

    #[test]
    fn all_errors_are_reported_together() {
        let wrong = list("{ url: x, ca: [], reason: [], insecure_http: maybe, interval: 0s }").unwrap_err();
        let lapi = read("{ url: x, ca: [], api_key_file: [], interval: 0s, origins: 'a&b' }").unwrap_err();
        for (wrong, keys) in [
            (wrong, ["url", "ca", "reason", "insecure_http", "interval"]),
            (lapi, ["url", "ca", "api_key_file", "interval", "origins"]),
        ] {
            assert!(keys.iter().all(|key| wrong.contains(&format!("{key}: "))), "{wrong}");
        }
    }
}

//! The section `network.block:` of a configuration.

use std::borrow::Cow;

use super::super::cidr::Prefix;
use super::config::{
    BlockConfig, BlockDirection, BlockEntry, BlockFile, BlockMode, BlockProtocol, BlockRule, BlockScope,
    parse_ports, parse_ttl,
};
use super::decode_feeds;
use crate::config::section::{Key, Schema, Section, words};
use crate::config::{Fields, Node};

const MODES: &[(&str, BlockMode)] = &[("observe", BlockMode::Observe), ("enforce", BlockMode::Enforce)];

const DIRECTION: Schema = Schema::Words(|| words(BlockDirection::WORDS));

/// `network.block:`.
pub(in super::super) static BLOCK: Section = Section {
    name: "block",
    what: "the blocklist",
    about: "Addresses whose packets are dropped, or would be.",
    keys: Cow::Borrowed(&[
        Key::new(
            "mode",
            Schema::Words(|| words(MODES)),
            "`enforce` drops packets, `observe` counts what would be dropped.",
        )
        .or("observe"),
        Key::new("direction", DIRECTION, "Default direction of entries, files, lists and CrowdSec.")
            .or("ingress"),
        Key::new(
            "entries",
            Schema::OneOrList(&Schema::Either(&[Schema::Text, Schema::Section(|| &ENTRY)])),
            "Addresses and prefixes to block.",
        ),
        Key::new(
            "files",
            Schema::OneOrList(&Schema::Either(&[Schema::Path, Schema::Section(|| &FILE)])),
            "Files with an address, prefix or range on each line; read again when they change.",
        ),
        Key::new(
            "blocklist_url",
            Schema::OneOrList(&Schema::Either(&[
                Schema::Text,
                Schema::Section(|| &decode_feeds::BLOCKLIST_URL),
            ])),
            "Lists to download, in the format of `files`.",
        ),
        Key::new(
            "crowdsec",
            Schema::Section(|| &decode_feeds::CROWDSEC),
            "CrowdSec's Local API, whose decisions are blocked.",
        ),
        Key::new("allow", Schema::OneOrList(&Schema::Text), "Addresses and prefixes that are never dropped."),
        Key::new(
            "file",
            Schema::Path,
            "SQLite file that keeps the entries added while the exporter runs. Default: \
             `/var/lib/fibre-exporter/blocklist-PORT.db`, with the metrics port.",
        ),
        Key::new(
            "socket",
            Schema::Path,
            "Unix socket for `exporter block`, `unblock` and `blocklist`. Default: `/run/fibre-exporter/control-PORT.sock`, with the \
             metrics port.",
        ),
    ]),
    one_of: &[],
};

static ENTRY: Section = Section {
    name: "block_entry",
    what: "an entry of the blocklist",
    about: "An entry of the blocklist.",
    keys: Cow::Borrowed(&[
        Key::new("prefix", Schema::Text, "Address or prefix.").required(),
        Key::new("reason", Schema::Text, "Shown with the entry."),
        Key::new(
            "ttl",
            Schema::LabelText,
            "How long it stays in effect, from the start or reload on: `90s`, `15min`, `12h`, `7d`. Default: no limit.",
        ),
        Key::new(
            "direction",
            DIRECTION,
            "`ingress`: packets received from it, `egress`: packets sent to it, `both`. Default: `block: { direction }`.",
        ),
        Key::new("protocol", Schema::Words(|| words(BlockProtocol::WORDS)), "Only packets of this protocol."),
        Key::new(
            "ports",
            Schema::LabelText,
            "Only packets to this destination port or range (`1000-2000`). Needs `protocol: tcp` or `udp`.",
        ),
    ]),
    one_of: &[],
};

static FILE: Section = Section {
    name: "block_file",
    what: "a file of the blocklist",
    about: "A file of the blocklist.",
    keys: Cow::Borrowed(&[
        Key::new("path", Schema::Path, "Path of the file.").required(),
        Key::new("reason", Schema::Text, "Shown with its entries. Default: the file's name."),
    ]),
    one_of: &[],
};

/// Decodes the section; errors are added to the node's list.
pub(in super::super) fn decode(node: &Node<'_>) -> Option<BlockConfig> {
    let fields = node.fields(&BLOCK)?;
    let list = |key: &str| fields.get(key).map(|node| node.one_or_list()).unwrap_or_default();
    Some(BlockConfig {
        mode: fields.get("mode").and_then(|node| node.one_of("mode", MODES)).unwrap_or_default(),
        direction: direction(&fields).unwrap_or_default(),
        entries: list("entries").iter().filter_map(entry).collect(),
        files: list("files").iter().filter_map(file).collect(),
        urls: list("blocklist_url").iter().filter_map(decode_feeds::blocklist_url).collect(),
        crowdsec: fields.get("crowdsec").and_then(|node| decode_feeds::crowdsec(&node)),
        allow: list("allow").iter().filter_map(prefix).collect(),
        file: fields.get("file").and_then(|node| node.path()),
        socket: fields.get("socket").and_then(|node| node.path()),
        own_ports: Vec::new(),
    })
}

fn prefix(node: &Node<'_>) -> Option<Prefix> {
    match Prefix::parse(node.text_as("an address or prefix")?) {
        Ok(prefix) => Some(prefix.canonical()),
        Err(error) => {
            node.error(error).help("write an address or a prefix: 192.0.2.7, 10.0.0.0/8, 2001:db8::/32");
            None
        }
    }
}

fn direction(fields: &Fields<'_>) -> Option<BlockDirection> {
    fields.get("direction").and_then(|node| node.one_of("direction", BlockDirection::WORDS))
}

fn entry(node: &Node<'_>) -> Option<BlockEntry> {
    if !node.value.is_mapping() {
        return Some(BlockEntry { prefix: prefix(node)?, rule: BlockRule::default() });
    }
    let fields = node.fields(&ENTRY)?;
    let prefix = fields.require("prefix", "write prefix: 192.0.2.0/24").and_then(|node| prefix(&node));
    let reason = fields.get("reason").and_then(|node| node.text()).unwrap_or_default().to_string();
    let ttl = fields.get("ttl").and_then(|node| parsed(&node, parse_ttl));
    let ports = fields.get("ports").and_then(|node| parsed(&node, parse_ports));
    let protocol = fields.get("protocol").and_then(|node| node.one_of("protocol", BlockProtocol::WORDS));
    if fields.has("ports") && !matches!(protocol, Some(BlockProtocol::Tcp | BlockProtocol::Udp)) {
        fields.error("`ports` needs `protocol: tcp` or `protocol: udp`");
    }
    let scope = protocol.map(|protocol| BlockScope::new(protocol, ports));
    Some(BlockEntry {
        prefix: prefix?,
        rule: BlockRule { reason, ttl, direction: direction(&fields), scope },
    })
}

fn parsed<T>(node: &Node<'_>, parse: fn(&str) -> Result<T, String>) -> Option<T> {
    parse(&node.label_text()?).map_err(|error| node.error(error)).ok()
}

fn file(node: &Node<'_>) -> Option<BlockFile> {
    let (path, reason) = if node.value.is_mapping() {
        let fields = node.fields(&FILE)?;
        let path = fields.require("path", "write path: /etc/exporter/drop.txt")?.path()?;
        (path, fields.get("reason").and_then(|node| node.text()).map(str::to_string))
    } else {
        (node.path()?, None)
    };
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let reason = reason.or(name).unwrap_or_default();
    Some(BlockFile { path, reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::decode_text;

    fn read(text: &str) -> Result<BlockConfig, String> {
        decode_text(text, decode)
    }

    #[test]
    fn accepts_short_and_long_forms() {
        let config = read(
            "{ mode: enforce, direction: both, entries: [192.0.2.7, { prefix: '2001:db8::/32', direction: egress, reason: scans, \
             ttl: 12h, protocol: tcp, ports: 22 }], \
             files: [/a/drop.txt, { path: /b, reason: spam }], allow: 198.51.100.0/24 }",
        )
        .unwrap();
        assert_eq!((config.mode, config.entries.len(), config.allow.len()), (BlockMode::Enforce, 2, 1));
        let directions: Vec<_> = config.entries.iter().map(|entry| entry.rule.direction).collect();
        assert_eq!(
            (config.direction, directions),
            (BlockDirection::Both, vec![None, Some(BlockDirection::Egress)])
        );
        assert_eq!(
            config.entries[1].rule.scope,
            Some(BlockScope { protocol: BlockProtocol::Tcp, ports: (22, 22) })
        );
        assert_eq!(
            config.files.iter().map(|file| file.reason.as_str()).collect::<Vec<_>>(),
            ["drop.txt", "spam"]
        );
        assert_eq!(read("{}").unwrap().mode, BlockMode::Observe, "nothing acts unless it is asked to");
    }

    #[test]
    fn rejects_invalid_config() {
        for (text, expected) in [
            ("{ mode: drop }", "unknown mode \"drop\""),
            ("{ direction: sent }", "unknown direction \"sent\""),
            ("{ entries: [192.0.2.7/24] }", "did you mean \"192.0.2.0/24\""),
            ("{ entries: [{ reason: x }] }", "`prefix` is missing"),
            ("{ entries: [{ prefix: ::1, ttl: 1w }] }", "write 90s"),
            ("{ entries: [{ prefix: ::1, ports: 22 }] }", "`ports` needs"),
            ("{ entries: [{ prefix: ::1, protocol: icmp, ports: 22 }] }", "`ports` needs"),
            ("{ allow: office }", "neither an IP address"),
            ("{ entris: ::1 }", "did you mean \"entries\""),
        ] {
            let wrong = read(text).unwrap_err();
            assert!(wrong.contains(expected), "{text}: {wrong}");
        }
    }
}

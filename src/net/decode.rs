//! The section `network:` of a configuration.

use std::borrow::Cow;
use std::sync::LazyLock;

use super::block;
use super::cidr::{CidrGroup, GROUPS, OTHER, PREFIXES, Prefix, duplicate};
use super::config::{Count, Mode, NetworkConfig, Space, TABLE_ENTRIES, TOP_SOURCES};
use super::stats;
use super::thresholds;
use crate::config::Node;
use crate::config::section::{Key, Schema, Section, words};

const NAMES: Schema = Schema::OneOrList(&Schema::Text);

/// `network:`.
pub static NETWORK: Section = Section {
    name: "network",
    what: "the network settings",
    about: "Packet statistics of network interfaces.",
    keys: Cow::Borrowed(&[
        Key::new(
            "interfaces",
            Schema::OneOrList(&Schema::Either(&[Schema::Text, Schema::Section(|| &SPACE)])),
            "Interface names or globs (`*`, `?`, `[...]`). Interfaces may appear later.",
        )
        .required(),
        Key::new("exclude", NAMES, "Names or globs of interfaces to leave out."),
        Key::new("mode", Schema::Words(|| words(MODES)), "Hook that counts received packets.").or("auto"),
        Key::new("count", Schema::Section(|| &COUNTED), "Optional statistics."),
        Key::new(
            "block",
            Schema::Section(|| &block::BLOCK),
            "Sources whose packets are dropped, or would be.",
        ),
        Key::new("detect", Schema::Section(|| &thresholds::DETECT), "Detection of attacks."),
    ]),
    one_of: &[],
};

static SPACE: Section = Section {
    name: "network_namespace",
    what: "interfaces of another network namespace",
    about: "Interfaces of another network namespace.",
    keys: Cow::Borrowed(&[
        Key::new("netns", Schema::Text, "Name (as in `ip netns`) or path of the network namespace."),
        Key::new("container", Schema::Text, "Name or id of the container whose network namespace is used."),
        Key::new("interfaces", NAMES, "Interface names or globs. Default: all."),
    ]),
    one_of: &["netns", "container"],
};

static COUNTED: LazyLock<Section> = LazyLock::new(|| {
    let switch = |name, default, about| {
        Key::new(name, Schema::Boolean, about).or(if default { "true" } else { "false" })
    };
    let table = |name, about| {
        Key::new(name, Schema::Either(&[Schema::Boolean, Schema::Section(|| &TABLE)]), about).or("false")
    };
    let series = Schema::Integer(i64::from(*TOP_SOURCES.start()), i64::from(*TOP_SOURCES.end()));
    let others = [
        table("talkers", "Remote hosts, per CPU table."),
        table("flows", "Flows of the tracked talkers. Needs `talkers`."),
        Key::new(
            "top_sources",
            series,
            "Maximum number of series of `xdp_top_source_bytes`. Needs `talkers`.",
        ),
        Key::new(
            "cidrs",
            Schema::Map(&Schema::OneOrList(&Schema::Text)),
            "Groups of IP prefixes by name: packets and bytes by the group of the remote address.",
        ),
        switch("tcp_connections", Count::default().tcp_connections, "TCP connections by state."),
        switch(
            "drop_reasons",
            Count::default().drop_reasons,
            "Packets dropped by the kernel, by its drop reason.",
        ),
        switch(
            "tcp",
            Count::default().tcp,
            "TCP state changes, retransmits, resets, round-trip times and connection durations.",
        ),
        switch(
            "cgroups",
            Count::default().cgroups,
            "Packets and bytes of sockets by systemd unit, container and pod.",
        ),
        switch(
            "processes",
            Count::default().processes,
            "Packets and bytes of sockets by process, with its systemd unit, container and pod.",
        ),
        switch("dns", Count::default().dns, "DNS queries by result, and their latency."),
    ];
    Section {
        name: "count",
        what: "the statistics",
        about: "Optional statistics. Packets and bytes by direction, address family, protocol and verdict are \
             always counted.",
        keys: stats::switches().map(|one| switch(one.key, one.default, one.name)).chain(others).collect(),
        one_of: &[],
    }
});

static TABLE: Section = Section {
    name: "table",
    what: "a table",
    about: "Size of a table.",
    keys: Cow::Borrowed(&[Key::new(
        "entries",
        Schema::Integer(*TABLE_ENTRIES.start() as i64, *TABLE_ENTRIES.end() as i64),
        "Entries per CPU.",
    )
    .required()]),
    one_of: &[],
};

const MODES: &[(&str, Mode)] =
    &[("native", Mode::Native), ("generic", Mode::Generic), ("tcx", Mode::Tcx), ("auto", Mode::Auto)];

/// The default size of a table.
const ENTRIES: u32 = 4096;

const HELP: &str = "write interfaces: [eth0], or a glob: [\"veth*\"]";

/// Decodes the section; errors are added to the node's list.
pub fn decode(node: &Node<'_>) -> Option<NetworkConfig> {
    let fields = node.fields(&NETWORK)?;
    let named = fields.require("interfaces", HELP)?;
    let (mut interfaces, mut elsewhere) = (Vec::new(), Vec::new());
    let all = named.one_or_list();
    if all.is_empty() {
        named.expected("at least one interface").help(HELP);
    }
    for one in all {
        if one.value.is_mapping() {
            elsewhere.extend(space(&one));
        } else {
            interfaces.extend(one.text_as("the name of an interface").map(str::to_owned));
        }
    }
    let exclude = fields.get("exclude").map(|node| names(&node)).unwrap_or_default();
    let mode = fields.get("mode").and_then(|node| mode(&node)).unwrap_or_default();
    let mut count = fields.get("count").map_or_else(|| Some(Count::default()), |node| count(&node))?;
    let block = match fields.get("block") {
        Some(node) => Some(block::decode(&node)?),
        None => None,
    };
    let detect = match fields.get("detect") {
        Some(node) => {
            let detect = thresholds::decode(&node)?;
            if detect.enforces() && block.is_none() && fields.lacks("block") {
                node.error("`mode: enforce` needs a blocklist").help("add block: { mode: enforce }");
            }
            detect
        }
        None => Default::default(),
    };
    // Detection reads the table of talkers.
    if detect.is_on() && count.talkers == 0 {
        count.talkers = ENTRIES;
    }
    if detect.needs_flows() && count.flows == 0 {
        count.flows = ENTRIES;
    }
    Some(NetworkConfig { interfaces, exclude, elsewhere, mode, count, block, detect })
}

fn names(node: &Node<'_>) -> Vec<String> {
    let all = node.one_or_list();
    all.iter().filter_map(|name| name.text_as("the name of an interface")).map(str::to_owned).collect()
}

/// `{ netns: NAME }` or `{ container: NAME }`, with `interfaces`; by default all but the loopback.
fn space(node: &Node<'_>) -> Option<(Space, Vec<String>)> {
    let fields = node.fields(&SPACE)?;
    let named = |key: &str| Some(fields.get(key)?.text_as("a name")?.to_owned());
    let space = match (named("netns"), named("container")) {
        (Some(name), None) => Space::Netns(name),
        (None, Some(name)) => Space::Container(name),
        _ => {
            fields.error("set either `netns` or `container`".to_string()).help("write { netns: NAME }");
            return None;
        }
    };
    let interfaces = fields.get("interfaces").map(|node| names(&node));
    Some((space, interfaces.unwrap_or_else(|| vec!["?*".to_string()])))
}

/// `offload` is recognized and rejected: XDP has this mode, but NICs support no other maps than plain arrays and hashes
/// (`bpf_map_offload_map_alloc`).
fn mode(node: &Node<'_>) -> Option<Mode> {
    if node.value.as_str().is_some_and(|text| text.eq_ignore_ascii_case("offload")) {
        node.error("mode \"offload\" is not supported: NICs cannot run programs that use per-CPU maps")
            .help("use mode: native, which runs in the driver, or mode: auto");
        return None;
    }
    node.one_of("mode", MODES)
}

fn count(node: &Node<'_>) -> Option<Count> {
    let fields = node.fields(&COUNTED)?;
    let switch =
        |key: &str, default: bool| fields.get(key).and_then(|node| node.boolean()).unwrap_or(default);
    let table = |key: &str| fields.get(key).and_then(|node| entries(&node)).unwrap_or(0);
    let defaults = Count::default();
    let count = Count {
        statistics: stats::switches().filter(|one| switch(one.key, one.default)).map(|one| one.key).collect(),
        talkers: table("talkers"),
        flows: table("flows"),
        top_sources: fields
            .get("top_sources")
            .and_then(|node| node.integer("a number of series", TOP_SOURCES))
            .unwrap_or(0),
        cidrs: fields.get("cidrs").map(|node| cidrs(&node)).unwrap_or_default(),
        tcp_connections: switch("tcp_connections", defaults.tcp_connections),
        drop_reasons: switch("drop_reasons", defaults.drop_reasons),
        tcp: switch("tcp", defaults.tcp),
        cgroups: switch("cgroups", defaults.cgroups),
        processes: switch("processes", defaults.processes),
        dns: switch("dns", defaults.dns),
    };
    for (key, needs) in [("flows", count.flows), ("top_sources", count.top_sources)] {
        if needs > 0 && count.talkers == 0 {
            fields.error(format!("`{key}` needs `talkers`")).help("set talkers: true");
        }
    }
    Some(count)
}

/// Prefix groups by name.
fn cidrs(node: &Node<'_>) -> Vec<CidrGroup> {
    let mut groups: Vec<CidrGroup> = Vec::new();
    for (name, listed) in node.entries("groups of prefixes").unwrap_or_default() {
        let name = &name.text;
        if name == OTHER {
            listed
                .error(format!("{OTHER:?} is the label of addresses of no group"))
                .help("choose another name");
        }
        let read = |one: &Node<'_>| match Prefix::parse(one.text_as("a prefix")?) {
            Ok(prefix) => Some(prefix),
            Err(err) => {
                one.error(err).help("write a prefix: 10.0.0.0/8, 2001:db8::/32");
                None
            }
        };
        let prefixes: Vec<_> = listed.one_or_list().iter().filter_map(read).collect();
        groups.push(CidrGroup { name: name.clone(), prefixes });
    }
    let prefixes: usize = groups.iter().map(|group| group.prefixes.len()).sum();
    if groups.len() > GROUPS {
        node.error(format!("{} groups of prefixes; at most {GROUPS} are possible", groups.len()));
    } else if prefixes > PREFIXES {
        node.error(format!("{prefixes} prefixes; at most {PREFIXES} are possible"));
    } else if let Some((prefix, first, second)) = duplicate(&groups) {
        let error = if first == second {
            format!("{prefix} appears twice in {first:?}")
        } else {
            format!("{prefix} is in both {first:?} and {second:?}")
        };
        node.error(error).help("remove one: each prefix belongs to one group");
    }
    groups
}

/// `true`, `false`, or `{ entries: N }`.
fn entries(node: &Node<'_>) -> Option<u32> {
    if node.value.is_mapping() {
        let fields = node.fields(&TABLE)?;
        return fields
            .require("entries", "write entries: 4096")?
            .integer("a number of entries", TABLE_ENTRIES);
    }
    node.boolean().map(|wanted| if wanted { ENTRIES } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::decode_text;

    fn read(text: &str) -> Result<NetworkConfig, String> {
        decode_text(text, decode)
    }

    #[test]
    fn accepts_short_and_long_forms() {
        let short = read("interfaces: eth0").unwrap();
        assert_eq!(short.interfaces, ["eth0"]);
        assert_eq!((short.mode, short.count), (Mode::Auto, Count::default()));
        let long = read(
            "{ interfaces: [eth0, 'veth*'], mode: generic, \
             count: { sizes: false, talkers: { entries: 64 }, flows: true, top_sources: 5, tcp_connections: true } }",
        )
        .unwrap();
        assert_eq!((long.mode, long.count.talkers, long.count.flows), (Mode::Generic, 64, ENTRIES));
        let other = read(
            "{ interfaces: [eth0, { netns: blue, interfaces: 'e*' }, { container: web }], exclude: lo }",
        );
        let other = other.unwrap();
        assert_eq!(other.elsewhere[0], (Space::Netns("blue".into()), vec!["e*".to_string()]));
        assert_eq!(other.elsewhere[1].0, Space::Container("web".into()));
        assert_eq!(other.exclude, ["lo"]);
        let named = read(
            "{ interfaces: eth0, count: { cidrs: { office: 192.0.2.0/24, vpn: [10.8.0.0/16, fd00::/8] } } }",
        );
        let groups = named.unwrap().count.cidrs;
        assert_eq!((groups[1].name.as_str(), groups[1].prefixes.len()), ("vpn", 2));
        assert!(long.count.tcp_connections && long.count.top_sources == 5);
        assert!(!long.count.statistics.contains("sizes") && long.count.statistics.contains("flags"));
    }

    #[test]
    fn rejects_invalid_config() {
        for (text, message) in [
            ("{ mode: auto }", "`interfaces` is missing"),
            ("{ interfaces: { netns: a, container: b } }", "either `netns` or `container`"),
            ("{ interfaces: { netns: a, interface: b } }", "did you mean \"interfaces\""),
            ("{ interfaces: [] }", "expected at least one interface, found an empty list"),
            ("{ interfaces: eth0, mode: fast }", "unknown mode \"fast\""),
            ("{ interfaces: eth0, mode: offload }", "NICs cannot run programs that use per-CPU maps"),
            ("{ interfaces: eth0, count: { flow: true } }", "did you mean \"flows\""),
            ("{ interfaces: eth0, count: { flows: true } }", "`flows` needs `talkers`"),
            ("{ interfaces: eth0, count: { cidrs: { a: 10.0.0.1/8 } } }", "did you mean \"10.0.0.0/8\""),
            ("{ interfaces: eth0, count: { cidrs: { other: ::1 } } }", "label of addresses of no group"),
            ("{ interfaces: eth0, count: { cidrs: { a: ::1, b: [::1] } } }", "is in both \"a\" and \"b\""),
            ("{ interfaces: eth0, count: { talkers: { entries: 1 } } }", "a number of entries from 8"),
        ] {
            let wrong = read(text).unwrap_err();
            assert!(wrong.contains(message), "{text}: {wrong}");
        }
    }
}

//! The configuration language is parsed into the expected model.

use std::path::{Path, PathBuf};

use exporter::config::model::*;
use exporter::config::tree::Position;
use exporter::config::{Environment, Overrides, load};
use exporter::selectors::Predicate;

fn good(name: &str) -> Config {
    let path = Path::new("tests/config/good").join(name);
    load(&Overrides::file(path), &Environment::new()).unwrap_or_else(|diags| panic!("{diags}")).config
}

fn usdt(provider: &str, name: &str) -> Point {
    Point::Usdt { provider: provider.to_owned(), name: name.to_owned() }
}

#[test]
fn flat_keys() {
    let Config { settings, targets, network } = good("flat.yaml");
    assert_eq!(settings.node_name, "mynode");
    assert_eq!((settings.metrics_port, settings.health_port), (9435, 9436));
    assert_eq!((settings.verbose, settings.log_level), (false, LogLevel::Info));
    let auth = &settings.web.users[0];
    assert_eq!((auth.username.as_str(), auth.password.as_str()), ("prometheus", "changeme"));
    let tls = settings.web.tls.unwrap();
    assert_eq!(format!("{:?}", tls.cert), "tests/config/good/../files/node.crt");
    assert_eq!(format!("{:?}", tls.key), "tests/config/good/../files/node.key");
    assert_eq!(targets.len(), 1);
    assert_eq!(targets[0].name, "bitcoind");
    assert_eq!(targets[0].selector, Selector::binary("/usr/local/bin/bitcoind"));
    assert_eq!(targets[0].selector.processes.pid(), None);
    assert_eq!(targets[0].profiles[0].name, "fibre");
    assert!(network.is_none());
}

#[test]
fn flat_keys_in_yaml_1_1_style() {
    let Config { settings, targets, .. } = good("flat-yaml-1.1.yaml");
    assert_eq!(settings.node_name, "node 7");
    assert_eq!((settings.metrics_port, settings.health_port), (9435, 9436));
    assert_eq!((settings.verbose, settings.log_level), (true, LogLevel::Warning));
    assert!(settings.log_file.is_none() && settings.web.users.is_empty() && settings.web.tls.is_none());
    assert_eq!(targets[0].selector.processes.pid(), Some(4242));
}

#[test]
fn limits_and_selectors() {
    let Config { settings, targets, .. } = good("limits.yaml");
    assert!(settings.bind.is_loopback() && settings.bind.is_ipv6());
    assert_eq!(settings.log_file, Some(PathBuf::from("tests/config/good/log/exporter.log")));
    let Limits { ring_bytes, ring_poll_ms, label_values, sites, starts, overhead } = settings.limits;
    assert_eq!((ring_bytes, ring_poll_ms, label_values, sites, starts), (16 << 20, 100, 50, 100, 5000));
    assert_eq!(overhead, Some(Overhead { share: 0.025, is_default: false }));
    assert_eq!(settings.attach, AttachMode::Perf);
    let mut file = Selector::binary("tests/config/good/../x");
    file.processes.predicates.push(Predicate::Pid(78));
    let selectors: Vec<_> = targets.iter().map(|target| &target.selector).collect();
    assert_eq!(
        selectors,
        [
            &Selector::process("bitcoind"),
            &Selector::pid(77),
            &Selector::of(Predicate::Container(exporter::selectors::Pattern::literal("3f2a"))),
            &file,
        ]
    );
    let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(targets[1].labels, [label("tier", "1"), label("canary", "true")]);
    let profiles: Vec<_> = targets[0].profiles.iter().map(|profile| profile.name.as_str()).collect();
    assert_eq!(profiles, ["fibre", "bitcoin-core"]);
}

#[test]
fn defaults() {
    let Config { settings, .. } = good("password-file.yaml");
    assert_eq!(settings.node_name, "localhost");
    assert_eq!(settings.bind.to_string(), "127.0.0.1");
    assert_eq!((settings.metrics_port, settings.health_port), (9435, 9436));
    assert_eq!(settings.log_level, LogLevel::Info);
    let Limits { ring_bytes, ring_poll_ms, label_values, sites, starts, overhead } = settings.limits;
    assert_eq!((ring_bytes, ring_poll_ms, label_values, sites, starts), (4 << 20, 10, 200, 8192, 32_768));
    assert_eq!(overhead, Some(Overhead { share: 0.02, is_default: true }));
    assert_eq!(settings.attach, AttachMode::Auto);
    assert_eq!(settings.web.users[0].password, "from the file");
}

#[test]
fn network_only_file_needs_no_target() {
    let config = good("network-only.yaml");
    let (at, node) = config.network.unwrap();
    assert_eq!((at.to_string().as_str(), at.position()), ("network", Some(Position { line: 2, column: 3 })));
    assert!(node.get("interfaces").is_some());
}

#[test]
fn design_example_loads() {
    let config = good("design.yaml");
    let names: Vec<_> = config.targets.iter().map(|target| target.name.as_str()).collect();
    assert_eq!(names, ["bitcoind", "postgres", "tls", "relay"]);

    let postgres = &config.targets[1].probes;
    assert_eq!(postgres[0].on, On::Usdt(usdt("postgresql", "transaction__commit")));
    assert_eq!(postgres[0].metrics[0].help, "Transactions committed.");
    assert_eq!(postgres[0].metrics[0].kind, MetricKind::Counter);
    assert_eq!(postgres[1].args[0].kind, ArgKind::Str { max: 64 });
    let from = usdt("postgresql", "query__start");
    let to = usdt("postgresql", "query__done");
    assert_eq!(postgres[2].on, On::Span { from, to, by: SpanKey::Thread });
    let span = &postgres[2].metrics[0];
    assert_eq!(span.value.as_ref().unwrap().name, "duration");
    let MetricKind::Histogram(bounds) = &span.kind else { panic!("{:?}", span.kind) };
    assert_eq!((bounds.len(), bounds[0], bounds[1], bounds[17]), (18, 0.0001, 0.0002, 13.1072));

    let tls = &config.targets[2].probes[0];
    assert_eq!(tls.on, On::Function("SSL_write".into()));
    let MetricKind::Histogram(bounds) = &tls.metrics[0].kind else { panic!("{:?}", tls.metrics[0].kind) };
    assert_eq!((bounds.len(), bounds[0], bounds[10]), (11, 0.005, 10.0));
    let condition = &tls.metrics[1].when[0];
    assert_eq!(
        (condition.value.as_str(), condition.op, &condition.with),
        ("retval", Op::Gt, &Operand::Int(0))
    );

    let relay = &config.targets[3].probes[0];
    assert_eq!(relay.args[0].kind, ArgKind::Int(None));
    let [mechanism, peer] = relay.metrics[0].labels.as_slice() else { panic!("two labels") };
    let prefix = |text: &str, value: &str| (LabelPattern::Prefix(text.to_owned()), value.to_owned());
    assert_eq!(mechanism.value, LabelValue::From("winner".into()));
    assert_eq!(mechanism.mapping, [prefix("F", "fibre_udp"), prefix("B", "bip152_cmpct")]);
    assert_eq!(mechanism.default.as_deref(), Some("other"));
    assert_eq!((&peer.value, peer.limit), (&LabelValue::From("peer".into()), Some(200)));
    assert_eq!(relay.metrics[1].kind, MetricKind::Gauge(GaugeKind::Last));
    assert_eq!(relay.metrics[1].help, "Fibre last block height.");
    assert_eq!(
        relay.metrics[1].at.position(),
        Some(Position { line: 48, column: 13 }),
        "places survive decoding, for the stages after it"
    );
}

#[test]
fn every_language_construct() {
    let config = good("language.yaml");
    let probes = &config.targets[0].probes;
    let probe = &probes[0];
    assert_eq!(probe.on, On::Usdt(usdt("test-suite", "every-type")));
    assert_eq!(probe.event_type.as_deref(), Some("every_type"));
    assert!(probe.log.as_ref().unwrap().contains("{{text={text}}}") && !probe.from_profile);

    assert_eq!(probe.args.iter().filter_map(|arg| arg.offset).collect::<Vec<_>>(), [40]);

    let int = |bytes, signed| ArgKind::Int(Some(IntType { bytes, signed }));
    let kinds: Vec<_> =
        probe.args.iter().map(|arg| (arg.name.as_str(), arg.kind.clone(), arg.unit)).collect();
    assert_eq!(
        kinds,
        [
            ("plain", ArgKind::Int(None), Unit::None),
            ("int", ArgKind::Int(None), Unit::Microseconds),
            ("flag", ArgKind::Bool, Unit::None),
            ("i8", int(1, true), Unit::None),
            ("i16", int(2, true), Unit::None),
            ("i32", int(4, true), Unit::None),
            ("i64", int(8, true), Unit::Nanoseconds),
            ("u8", int(1, false), Unit::None),
            ("u16", int(2, false), Unit::None),
            ("u32", int(4, false), Unit::Pages),
            ("u64", int(8, false), Unit::Kibibytes),
            ("text", ArgKind::Str { max: 64 }, Unit::None),
            ("longer", ArgKind::Str { max: 256 }, Unit::None),
            ("counted", ArgKind::StrLen { length: ArgOf::Call(1), max: 100 }, Unit::None),
            ("hash", ArgKind::Hex { len: 32, reverse: true }, Unit::None),
            ("raw", ArgKind::Hex { len: 4, reverse: false }, Unit::None),
            ("v4", ArgKind::Ipv4, Unit::None),
            ("v6", ArgKind::Ipv6, Unit::None),
            ("address", ArgKind::SockAddr, Unit::None),
            ("code", ArgKind::Symbol, Unit::None),
            ("field", ArgKind::Str { max: 64 }, Unit::None),
        ]
    );
    assert_eq!(
        probe.args.iter().take(11).map(|arg| arg.of).collect::<Vec<_>>(),
        Vec::from_iter((0..11).map(ArgOf::Call))
    );

    let metrics = &probe.metrics;
    let conditions: Vec<_> =
        metrics[0].when.iter().map(|c| (c.value.as_str(), c.op, c.with.clone())).collect();
    assert_eq!(
        conditions,
        [
            ("plain", Op::Gt, Operand::Int(0)),
            ("text", Op::StartsWith, Operand::Str("a".into())),
            ("flag", Op::Eq, Operand::Int(1)),
            ("i64", Op::Ne, Operand::Int(-16)),
        ]
    );
    assert_eq!((metrics[1].help.as_str(), metrics[1].scale), ("A sum on two lines.", Some(0.001)));
    let kinds: Vec<_> = metrics[2..9].iter().map(|metric| metric.kind.clone()).collect();
    let seconds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
    assert_eq!(
        kinds,
        [
            MetricKind::Gauge(GaugeKind::Last),
            MetricKind::Gauge(GaugeKind::Min),
            MetricKind::Gauge(GaugeKind::Max),
            MetricKind::Histogram(vec![-1.0, 0.0, 0.5, 10.0]),
            MetricKind::Histogram(seconds.to_vec()),
            MetricKind::Histogram(vec![1024.0, 65536.0, 1048576.0]),
            MetricKind::Histogram(vec![0.0, 5.0, 10.0, 15.0]),
        ]
    );
    let [argument, program, constant, number, kind, name] = metrics[8].labels.as_slice() else {
        panic!("six labels")
    };
    assert_eq!(argument.value, LabelValue::From("text".into()));
    assert_eq!(program.value, LabelValue::From("comm".into()));
    assert_eq!(constant.value, LabelValue::Const("always".into()));
    assert_eq!(number.value, LabelValue::Const("5".into()));
    let pair = |pattern, value: &str| (pattern, value.to_owned());
    assert_eq!(
        kind.mapping,
        [
            pair(LabelPattern::Int(0), "none"),
            pair(LabelPattern::Int(-1), "failed"),
            pair(LabelPattern::Int(255), "255"),
        ]
    );
    assert_eq!(
        name.mapping,
        [
            pair(LabelPattern::Exact("exact".into()), "a"),
            pair(LabelPattern::Prefix("pre".into()), "b"),
            pair(LabelPattern::Glob("*.c".into()), "c"),
            pair(LabelPattern::Glob("x?z".into()), "d"),
            pair(LabelPattern::Glob("[a-f]*".into()), "e"),
        ]
    );
    assert_eq!((name.limit, &name.default), (Some(10), &None));

    assert_eq!(probes[1].on, On::Function("std::vec::Vec<T>::push".into()));
    assert_eq!(probes[2].on, On::Function("main+0x10".into()));
    assert_eq!(probes[3].on, On::Function("0x1234".into()));
    assert_eq!(probes[4].on, On::Function("0x1234".into()));
    let (from, to) = (usdt("a", "start"), Point::Function("stop".into()));
    assert_eq!(probes[5].on, On::Span { from, to, by: SpanKey::Arg("id".into()) });
    assert_eq!((probes[5].args[0].of, probes[5].args[0].to_index), (ArgOf::Call(0), Some(2)));
    assert_eq!((probes[5].metrics[0].when.len(), probes[5].metrics[0].labels.len()), (1, 1));
    assert_eq!(
        probes[6].on,
        On::Span { from: usdt("a", "start"), to: usdt("a", "end"), by: SpanKey::Thread }
    );
}

#[test]
fn yaml_style_makes_no_difference() {
    let config = good("styles.yaml");
    let [anchored, aliased, other] = config.targets.as_slice() else { panic!("three targets") };
    assert_eq!(anchored.selector, aliased.selector);
    assert_eq!(anchored.probes[0].on, aliased.probes[0].on);
    assert_eq!(
        aliased.probes[0].metrics[0].at.position(),
        Some(Position { line: 7, column: 16 }),
        "at the anchor, where it is written"
    );
    assert_eq!(other.name, "multi-line");
    assert_eq!(other.selector, Selector::binary("/usr/bin/other"));
}

#[test]
fn common_yaml_pitfalls() {
    let Config { settings, targets, .. } = good("traps.yaml");
    assert_eq!((settings.node_name.as_str(), settings.verbose), ("0123", false));
    let [_, first, second] = targets.as_slice() else { panic!("three targets") };
    assert_eq!(first.selector, Selector::binary("/usr/bin/one"));
    assert_eq!(second.selector, Selector::binary("/usr/bin/two"));
    let labels = [("version", "1.10"), ("build", "0123"), ("country", "no"), ("hex", "0x10"), ("empty", "")];
    for target in [first, second] {
        let found: Vec<_> =
            target.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(found, labels);
        assert_eq!(target.probes.len(), 1);
    }
}

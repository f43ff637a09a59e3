//! Compares metrics computed in the kernel with the same ones computed in user space from events: two tracers trace one
//! program at once and must show the same series for the same hits.

mod timestamp;
mod up_down;

use std::path::Path;
use std::time::Instant;

use crate::support::demo::{Forms, private_copy};
use crate::support::program::directory;
use crate::support::tracer::{Series, Tracer};
use exporter::metrics::WINDOW;
use exporter::plan::ComputedIn;

/// Runs `fire` under both tracers and returns the series that both show.
///
/// `probes` is a YAML list of probes that the kernel can compute without user space.
fn both_ways(probes: &str, fire: impl FnOnce(&Path)) -> (Series, Tracer, Tracer) {
    let directory = directory();
    let binary = private_copy("forms", directory.path());
    let config = format!(
        "node_name: test\ntargets:\n- name: forms\n  binary: {}\n  probes:\n{probes}",
        binary.display()
    );
    let kernel = Tracer::start_by(&config, false);
    let user = Tracer::start_by(&config, true);
    for (tracer, in_kernel) in [(&kernel, true), (&user, false)] {
        for action in tracer.plan.probes.iter().flat_map(|probe| &probe.actions) {
            assert_eq!(
                !matches!(action.computed_in, ComputedIn::Ring(_)),
                in_kernel,
                "{}: {:?}",
                action.at,
                action.computed_in
            );
        }
    }
    fire(&binary);
    for tracer in [&kernel, &user] {
        for accounting in tracer.accounting_at_rest() {
            assert_eq!(
                accounting.hits,
                accounting.aggregated + accounting.delivered + accounting.filtered + accounting.lost
            );
        }
        assert_eq!(tracer.drained().1, 0);
    }
    assert_eq!(kernel.drained().0, 0, "nothing wakes user space");
    let series = kernel.render();
    let other = user.render();
    assert_same(&series, &other);
    assert!(!series.is_empty());
    (series, kernel, user)
}

fn assert_same(kernel: &Series, user: &Series) {
    let differ = |one: &Series, two: &Series| -> Vec<String> {
        one.iter().filter(|(k, v)| two.get(*k) != Some(v)).map(|(k, v)| format!("{k} {v}")).collect()
    };
    let (kernel, user) = (differ(kernel, user), differ(user, kernel));
    assert!(kernel.is_empty() && user.is_empty(), "kernel: {kernel:#?}\nuser space: {user:#?}");
}

/// Returns a probe on `form` with these arguments and metrics (YAML list items).
fn probe(form: &str, args: &str, metrics: &[&str]) -> String {
    let metrics: String = metrics.iter().map(|metric| format!("    - {{ {metric} }}\n")).collect();
    format!("  - on: usdt:forms:{form}\n    args: {{ {args} }}\n    metrics:\n{metrics}")
}

const NUMBERS: [&str; 9] = ["i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "sites"];

#[test]
fn every_kind_of_metric() {
    let probes: String = NUMBERS
        .iter()
        .map(|form| {
            let metrics = [
                format!("counter: {form}_hits_total"),
                format!("counter: {form}_sum_total, value: v"),
                format!("counter: {form}_scaled_total, value: v, scale: 0.25, when: v >= 0"),
                format!("gauge: {form}_last, value: v"),
                format!("gauge: {form}_min, value: v, mode: min"),
                format!("gauge: {form}_max, value: v, mode: max"),
                format!("gauge: {form}_scaled_max, value: v, mode: max, scale: 3"),
                format!("histogram: {form}_values, value: v, buckets: [-1000, -128, -1, 0, 1, 127, 65535, 4e9]"),
                format!("histogram: {form}_seconds, value: us"),
                format!("histogram: {form}_by_value, value: v, buckets: [0, 5], labels: {{ v: v, kind: {{ const: \"a\\\"b\" }} }}"),
                format!("gauge: {form}_labelled, value: v, mode: min, labels: {{ v: v }}"),
            ];
            probe(form, "v: 0, us: { index: 0, unit: us }", &metrics.each_ref().map(String::as_str))
        })
        .collect();
    let (series, kernel, user) = both_ways(&probes, |binary| {
        let mut forms = Forms::start(binary);
        for (n, form) in NUMBERS.iter().enumerate() {
            forms.fire(form, 20 + n as u64);
        }
    });
    assert_eq!(series["i8_hits_total"], "20");
    assert_eq!(series["i8_sum_total"], (4 * 128).to_string(), "what is negative is no amount for a counter");
    assert_eq!(series["u8_scaled_total"], "480", "21 shots: 5 rounds and a 0");
    // The kernel counts lost hits; user space counts each metric that refused a value: a counter refuses negative
    // values, and every metric that adds or compares refuses values too large for a signed number.
    let refused_by = |form: &str| if form == "u64" { 9 } else { 1 };
    let lost: Vec<u64> = kernel.accounting_at_rest().iter().map(|accounting| accounting.lost).collect();
    let refused: u64 = NUMBERS.iter().zip(&lost).map(|(form, lost)| refused_by(form) * lost).sum();
    assert!(refused > 0);
    assert_eq!(user.refused_in_user_space(), (0, refused));
    // A further reader sees the same; so does one a window later, and after another window it has expired.
    let later = |windows: u32| Instant::now() + WINDOW * windows;
    for now in [later(0), later(0), later(1), later(1)] {
        assert_same(&kernel.render_at(now), &series);
        assert_same(&user.render_at(now), &series);
    }
    assert_same(&kernel.render_at(later(2)), &user.render_at(later(2)));
    assert!(!kernel.render_at(later(2)).contains_key("i8_min"));
}

#[test]
fn conditions_on_integers() {
    let conditions = [
        "v == 0",
        "v != 0",
        "v < 0",
        "v <= 0",
        "v > 0",
        "v >= 0",
        "v > -129 and v < 127",
        "v == -128",
        "v >= 1 and v != 127 and v <= 126 and v > 0",
        "v < 9223372036854775807",
        "v >= -9223372036854775808",
    ];
    let mut probes = String::new();
    for form in ["i8", "u16", "i64", "u64"] {
        let metrics: Vec<_> = conditions
            .iter()
            .enumerate()
            .map(|(n, when)| format!("counter: {form}_{n}_total, when: {when:?}"))
            .collect();
        probes += &probe(form, "v: 0", &metrics.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let (series, ..) = both_ways(&probes, |binary| {
        let mut forms = Forms::start(binary);
        for form in ["i8", "u16", "i64", "u64"] {
            forms.fire(form, 20);
        }
    });
    let counts: Vec<_> = (0..conditions.len()).map(|n| series[&format!("i8_{n}_total")].as_str()).collect();
    assert_eq!(counts, ["4", "16", "8", "12", "8", "12", "16", "4", "4", "20", "20"]);
    // 0, 1, 2^63 and 2^64 - 1: the last two are above every signed number.
    let counts: Vec<_> = (0..conditions.len()).map(|n| series[&format!("u64_{n}_total")].as_str()).collect();
    assert_eq!(counts, ["5", "15", "0", "5", "15", "20", "10", "0", "5", "10", "20"]);
}

#[test]
fn integer_labels() {
    let probes = probe(
        "plain",
        "v: 0, b: { index: 0, type: bool }, small: { index: 0, type: u8 }, signed: { index: 0, type: i8 }",
        &[
            "counter: raw_total, labels: { v: v }",
            "counter: limited_total, labels: { v: { value: v, limit: 3 } }",
            "counter: one_total, labels: { v: { value: v, limit: 1 } }",
            "counter: mapped_total, labels: { v: { value: v, match: { 0: none, 7: seven, 8: seven }, default: more } }",
            "counter: mapped_or_raw_total, labels: { v: { value: v, match: { 0: none, 5: \"4\" }, limit: 20 } }",
            "counter: flag_total, labels: { b: b }",
            "counter: flag_mapped_total, labels: { b: { value: b, match: { true: \"yes\" }, default: \"no\" } }",
            "counter: flag_is_total, when: b == true",
            "counter: flag_is_not_total, when: b != true",
            "counter: cut_total, labels: { small: { value: small, limit: 300 }, signed: { value: signed, limit: 300 } }",
            "counter: by_process_total, labels: { pid: pid, tid: tid, cgroup: cgroup }",
            "gauge: last_by_one, value: v, labels: { v: { value: v, limit: 2 } }",
            "histogram: by_kind, value: v, buckets: [1, 2, 4, 100], labels: { k: { value: v, match: { 1: one }, default: rest } }",
        ],
    );
    let (series, ..) = both_ways(&probes, |binary| {
        let mut forms = Forms::start(binary);
        forms.fire("plain", 150);
        forms.fire("plain", 10);
        Forms::start(binary).fire("plain", 300);
    });
    assert_eq!(series["limited_total{v=\"2\"}"], "3");
    assert_eq!(series["limited_total{v=\"other\"}"], (460 - 9).to_string());
    assert_eq!(series["mapped_total{v=\"seven\"}"], "6");
    assert_eq!(series["mapped_total{v=\"more\"}"], (460 - 9).to_string());
    // An unmapped value that equals the name of a mapped one is the same series.
    assert_eq!(series["mapped_or_raw_total{v=\"4\"}"], "6");
    assert_eq!(series["flag_mapped_total{b=\"yes\"}"], "457", "whatever is not 0 is true");
    assert_eq!(series["flag_total{b=\"true\"}"], "457");
    assert_eq!((series["flag_is_total"].as_str(), series["flag_is_not_total"].as_str()), ("457", "3"));
    assert_eq!(series["cut_total{small=\"200\",signed=\"-56\"}"], "1");
}

#[test]
fn text_labels_and_conditions() {
    let string = "t: { index: 0, type: string }";
    let mut probes = String::new();
    let forms = ["string", "empty", "null", "bad", "cold", "crossing", "plain_string", "long_string"];
    for form in forms {
        let metrics = [
            format!("counter: {form}_raw_total, labels: {{ t: t }}"),
            // 30 bytes are the longest text that the kernel compares.
            format!(
                "counter: {form}_prefix_total, labels: {{ t: {{ value: t, match: {{ \"a string on a page that nobody*\": cold, \"a s*\": a, \"\": empty, \"012345678*\": digits }}, default: rest }} }}"
            ),
            format!(
                "counter: {form}_exact_total, labels: {{ t: {{ value: t, match: {{ \"a string on a page that nobody\": cold, \"a string\": a, \"a strin\": cut, \"a stringy\": longer }} }} }}"
            ),
            format!(
                "counter: {form}_all_total, labels: {{ t: {{ value: t, match: {{ \"*\": anything }}, default: rest }} }}"
            ),
            format!("counter: {form}_is_total, when: t == \"a string\""),
            format!("counter: {form}_is_not_total, when: t != \"a string\""),
            format!("counter: {form}_begins_total, when: t starts_with \"a s\""),
            format!("counter: {form}_begins_cold_total, when: t == \"a string on a page that nobody\""),
            format!("counter: {form}_cut_total, when: cut == \"a strin\""),
            format!("counter: {form}_cut_label_total, labels: {{ t: cut }}"),
            format!("counter: {form}_empty_total, when: t == \"\""),
            format!(
                "counter: {form}_both_total, when: t != \"x\" and c == \"forms\", labels: {{ c: c, t: t }}"
            ),
        ];
        let metrics: Vec<_> = metrics
            .iter()
            .map(|metric| metric.replace("c == ", "comm == ").replace("c: c", "c: comm"))
            .collect();
        let args = format!("{string}, cut: {{ index: 0, type: string, max: 8 }}");
        probes += &probe(form, &args, &metrics.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let (series, kernel, user) = both_ways(&probes, |binary| {
        let mut program = Forms::start(binary);
        for (n, form) in forms.iter().enumerate() {
            program.fire(form, 3 + n as u64);
        }
    });
    assert_eq!(series["string_is_total"], "3");
    assert_eq!(series["cold_prefix_total{t=\"cold\"}"], "7");
    assert_eq!(series["cold_exact_total{t=\"a string on a page that nobody has touched\"}"], "7");
    assert_eq!(series["cold_begins_cold_total"], "0");
    assert_eq!(series["string_cut_total"], "3");
    assert_eq!(series["null_raw_total{t=\"\"}"], "5");
    assert_eq!(series["null_empty_total"], "5");
    assert_eq!(series["string_both_total{c=\"forms\",t=\"a string\"}"], "3");
    assert_eq!(series["long_string_all_total{t=\"anything\"}"], "10");
    // A hit is lost once, however many of its metrics miss it; user space counts each metric.
    let lost: Vec<_> = kernel.accounting_at_rest().iter().map(|accounting| accounting.lost).collect();
    assert_eq!(lost, [0, 0, 0, 6, 0, 0, 0, 0]);
    assert_eq!(user.refused_in_user_space(), (7 * 6, 0), "seven metrics have conditions");
}

#[test]
fn bytes_and_name_labels() {
    let probes = probe(
        "bytes",
        "whole: { index: 0, type: hex, len: 32 }, turned: { index: 0, type: hex, len: 32, reverse: true }, \
         few: { index: 0, type: bytes, len: 3 }, four: { index: 0, type: ipv4 }, six: { index: 0, type: ipv6 }, \
         address: { index: 0, type: sockaddr }",
        &[
            "counter: hex_total, labels: { whole: whole, turned: turned }",
            "counter: few_total, labels: { few: few, four: four }",
            "counter: six_total, labels: { six: six, address: address }",
            "counter: comm_total, labels: { comm: comm }",
            "counter: comm_mapped_total, labels: { comm: { value: comm, match: { forms: same, \"f*\": near } } }",
            "counter: comm_is_total, when: comm == \"forms\"",
            "counter: comm_is_not_total, when: comm != \"forms\"",
            "counter: comm_begins_total, when: comm starts_with \"for\"",
        ],
    ) + &probe(
        "bad",
        "whole: { index: 0, type: hex, len: 4 }, six: { index: 0, type: ipv6 }",
        &["counter: bad_total, labels: { whole: whole, six: six }"],
    ) + &probe(
        "counted",
        "t: { index: 0, type: string_len, length: 1 }, cut: { index: 0, type: string_len, length: 1, max: 3 }",
        &[
            "counter: counted_total, labels: { t: t, cut: cut }",
            "counter: counted_is_total, when: t == \"counted\"",
            "counter: counted_cut_total, when: cut == \"cou\"",
            "counter: counted_mapped_total, labels: { t: { value: t, match: { \"counted,*\": wrong, counted: right } } }",
        ],
    );
    let (series, ..) = both_ways(&probes, |binary| {
        let mut forms = Forms::start(binary);
        for form in ["bytes", "bad", "counted"] {
            forms.fire(form, 5);
        }
    });
    assert_eq!(series["few_total{few=\"01080f\",four=\"1.8.15.22\"}"], "5");
    assert_eq!(series["comm_is_total"], "5");
    assert_eq!(series["comm_mapped_total{comm=\"same\"}"], "5");
    assert_eq!(series["bad_total{whole=\"unreadable\",six=\"unreadable\"}"], "5");
    assert_eq!(series["counted_mapped_total{t=\"right\"}"], "5");
    assert_eq!(series["counted_cut_total"], "5");
}

#[test]
fn several_free_labels() {
    let probes = probe(
        "plain",
        "v: 0, w: { index: 0, type: u8 }",
        &[
            // Few enough that each pair has its own cells.
            "counter: few_total, labels: { v: { value: v, limit: 10 }, pid: { value: pid, limit: 1 } }",
            // So many that pairs are numbered in order of appearance, up to ten thousand.
            "counter: pairs_total, labels: { v: { value: v, limit: 6000 }, pid: { value: pid, limit: 5 } }",
            "histogram: pair_values, value: v, buckets: [10, 100, 1000], labels: { v: { value: v, limit: 400 }, w: { value: w, limit: 100 } }",
            "counter: four_total, labels: { v: { value: v, limit: 50 }, w: { value: w, match: { 1: one } , limit: 50 }, pid: pid, comm: comm }",
        ],
    );
    let (series, kernel, _) = both_ways(&probes, |binary| {
        let (mut one, mut two) = (Forms::start(binary), Forms::start(binary));
        one.fire("plain", 5500);
        two.fire("plain", 5500);
        one.fire("plain", 10);
    });
    let pairs = |metric: &str| series.keys().filter(|name| name.starts_with(metric)).count();
    assert_eq!(pairs("pairs_total"), 10_001);
    assert_eq!(series["pairs_total{v=\"other\",pid=\"other\"}"], "1000");
    let sum: u64 = series
        .iter()
        .filter(|(name, _)| name.starts_with("pairs_total"))
        .map(|(_, count)| count.parse::<u64>().unwrap())
        .sum();
    assert_eq!(sum, 11_010);
    assert_eq!(kernel.accounting_at_rest()[0].aggregated, 11_010);
}

#[test]
fn one_metric_from_several_probes() {
    let metrics = [
        "counter: shared_total, labels: { v: v }",
        "histogram: shared_values, value: v, buckets: [0, 10]",
        "gauge: shared_max, value: v, mode: max",
    ];
    let last = ["gauge: latest, value: v"];
    let all: Vec<_> = metrics.iter().chain(&last).copied().collect();
    let probes = probe("plain", "v: 0", &all) + &probe("i8", "v: 0", &all) + &probe("sites", "v: 0", &all);
    let (series, ..) = both_ways(&probes, |binary| {
        let mut forms = Forms::start(binary);
        forms.fire("i8", 5);
        forms.fire("sites", 2);
        forms.fire("plain", 4);
    });
    assert_eq!(series["shared_total{v=\"1\"}"], "2");
    assert_eq!(series["shared_max"], "127");
    assert_eq!(series["shared_values_count"], "11");
    assert_eq!(series["latest"], "3", "what came last, whichever probe saw it");
}

#[test]
fn only_probes_that_need_it_use_user_space() {
    let directory = directory();
    let binary = private_copy("forms", directory.path());
    let probes = probe(
        "string",
        "t: { index: 0, type: string }",
        &[
            "counter: glob_total, labels: { t: { value: t, match: { \"*ring\": found }, default: rest } }",
            "counter: raw_total, labels: { t: t }",
            "counter: hits_total",
        ],
    ) + &probe("i8", "v: 0", &["counter: i8_total, labels: { v: v }"])
        + &probe(
            "bytes",
            "few: { index: 0, type: hex, len: 3, reverse: true }, four: { index: 0, type: ipv4 }",
            &[
                "counter: few_is_total, when: few == \"0f0801\"",
                "counter: four_begins_total, when: four starts_with \"1.8.\"",
                "counter: four_is_not_total, when: four != \"1.8.15.22\"",
            ],
        );
    let config = format!(
        "node_name: test\ntargets:\n- name: forms\n  binary: {}\n  probes:\n{probes}",
        binary.display()
    );
    let (one, two) = (Tracer::start_by(&config, false), Tracer::start_by(&config, true));
    let mut forms = Forms::start(&binary);
    forms.fire("string", 12);
    forms.fire("i8", 10);
    forms.fire("bytes", 4);
    let series = one.render();
    assert_same(&series, &two.render());
    assert_eq!(series["glob_total{t=\"found\"}"], "12");
    let accounting = one.accounting_at_rest();
    assert_eq!((accounting[0].delivered, accounting[1].delivered, accounting[1].aggregated), (12, 0, 10));
    // Hashes and addresses are compared in the form in which they are shown.
    let bytes = ["few_is_total", "four_begins_total", "four_is_not_total"];
    assert_eq!(bytes.map(|name| series[name].as_str()), ["4", "4", "0"]);
    assert_eq!(one.drained().0, 16);
    assert_eq!(two.drained().0, 26);
}

/// The form's values cycle through 0, 1, 2^63 and 2^64 - 1.
#[test]
fn unsigned_64_bit_numbers() {
    let probes = probe(
        "u64",
        "v: { index: 0, type: u64 }",
        &[
            "counter: sum_total, value: v",
            "histogram: values, value: v, buckets: [0, 1]",
            "gauge: least, value: v, mode: min",
            "gauge: greatest, value: v, mode: max",
            "up_down: raised, direction: up, value: v",
            "gauge: latest, value: v",
            "counter: by_value_total, labels: { v: v }",
            "counter: above_total, when: v > 1",
            "counter: any_total, when: v > -1",
            "counter: none_total, when: v < -1",
            "counter: half_total, when: v == 9223372036854775808",
            "counter: all_total, when: v >= 18446744073709551615",
        ],
    );
    let (series, kernel, user) = both_ways(&probes, |binary| {
        Forms::start(binary).fire("u64", 8);
    });
    // Values that would turn negative or wrap around are not added, but refused and reported.
    assert_eq!(series["sum_total"], "2");
    assert_eq!(series["raised"], "0", "its process has ended");
    assert_eq!((series["values_count"].as_str(), series["values_sum"].as_str()), ("4", "2"));
    assert_eq!((series["least"].as_str(), series["greatest"].as_str()), ("0", "1"));
    assert_eq!(kernel.accounting_at_rest()[0].lost, 4);
    assert_eq!(user.refused_in_user_space(), (0, 5 * 4));
    // Values that are only shown or compared are right.
    assert_eq!(series["latest"], u64::MAX.to_string());
    assert_eq!(series["by_value_total{v=\"9223372036854775808\"}"], "2");
    let counted = ["above_total", "any_total", "none_total", "half_total", "all_total"];
    assert_eq!(counted.map(|name| series[name].as_str()), ["4", "8", "0", "2", "2"]);
}

//! Every form of argument in `demo/forms`, traced through the kernel: in position-independent files and others, with
//! one link and with perf events.

use std::fmt::Write;
use std::time::Instant;

use crate::support::demo::{Forms, private_copy};
use crate::support::program::directory;
use crate::support::tracer::Tracer;
use exporter::metrics::WINDOW;

/// Programs of `demo/` and ways to attach.
const WAYS: [(&str, &str); 4] =
    [("forms", "auto"), ("forms", "perf"), ("forms-no-pie", "auto"), ("forms-no-pie", "perf")];

/// Runs the body once for each way, with a tracer of `probes` (a YAML list) and a running program.
fn each_way(probes: &str, body: impl Fn(&Tracer, &mut Forms)) {
    for (program, attach) in WAYS {
        let directory = directory();
        let binary = private_copy(program, directory.path());
        let tracer = Tracer::start(&config(&binary, attach, "", probes));
        eprintln!("{program}, attach: {attach}");
        body(&tracer, &mut Forms::start(&binary));
        assert_eq!(tracer.stray(), 0);
    }
}

fn config(binary: &std::path::Path, attach: &str, target: &str, probes: &str) -> String {
    format!(
        "node_name: test\nattach: {attach}\ntargets:\n- name: forms\n  binary: {}\n{target}  probes:\n{probes}",
        binary.display()
    )
}

/// Returns a probe that counts its first argument by value.
fn counted(form: &str, argument: &str) -> String {
    format!(
        "  - on: usdt:forms:{form}\n    args: {{ v: {argument} }}\n    metrics:\n    - counter: {form}_total\n      labels: {{ v: v }}\n"
    )
}

/// Asserts the series of a metric with one label.
fn expect(tracer: &Tracer, metric: &str, rows: &[(&str, u64)]) {
    let series = tracer.render();
    let found: Vec<_> = series.iter().filter(|(name, _)| name.starts_with(&format!("{metric}{{"))).collect();
    assert_eq!(found.len(), rows.len(), "{metric}: {found:#?}");
    for (label, count) in rows {
        let name = format!("{metric}{{v=\"{label}\"}}");
        assert_eq!(series.get(&name), Some(&count.to_string()), "{name} in {found:#?}");
    }
}

const INTEGERS: [(&str, &[i128]); 8] = [
    ("i8", &[-128, -1, 0, 1, 127]),
    ("u8", &[0, 1, 128, 255]),
    ("i16", &[-32_768, -1, 0, 1, 32_767]),
    ("u16", &[0, 1, 32_768, 65_535]),
    ("i32", &[-2_147_483_648, -1, 0, 1, 2_147_483_647]),
    ("u32", &[0, 1, 2_147_483_648, 4_294_967_295]),
    ("i64", &[i64::MIN as i128, -1, 0, 1, i64::MAX as i128]),
    ("u64", &[0, 1, 1 << 63, u64::MAX as i128]),
];

#[test]
fn integers_of_every_width_and_sign_are_exact() {
    const ROUNDS: u64 = 4;
    let mut probes = String::new();
    for (form, _) in INTEGERS {
        probes += &counted(form, "0");
        for (kind, name, more) in [
            ("gauge", "last", ""),
            ("gauge", "min", "mode: min"),
            ("gauge", "max", "mode: max"),
            ("histogram", "values", "buckets: [-1, 0, 200]"),
            ("counter", "sum", "when: v >= 0"),
        ] {
            writeln!(probes, "    - {{ {kind}: {form}_{name}, value: v, {more} }}").unwrap();
        }
    }
    each_way(&probes, |tracer, forms| {
        for (probe, (form, values)) in INTEGERS.into_iter().enumerate() {
            // Half of the values are read from memory, half from a register whose higher bits hold something else.
            let fired = ROUNDS * values.len() as u64;
            let answer = forms.fire(form, fired);
            assert_eq!(answer["semaphore"], tracer.state(probe).1, "raised once for each site");
            let rows: Vec<_> = values.iter().map(|value| (value.to_string(), ROUNDS)).collect();
            let rows: Vec<_> = rows.iter().map(|(text, count)| (text.as_str(), *count)).collect();
            expect(tracer, &format!("{form}_total"), &rows);
            let accounting = tracer.accounting_at_rest()[probe];
            // Values that exceed a signed sum are refused and counted as lost.
            let lost = ROUNDS * values.iter().filter(|value| i64::try_from(**value).is_err()).count() as u64;
            assert_eq!(
                (accounting.hits, accounting.aggregated, accounting.lost),
                (fired, fired - lost, lost)
            );
        }
        let series = tracer.render();
        let rounds = i128::from(ROUNDS);
        for (form, values) in INTEGERS {
            let get = |name: &str| {
                let name = format!("{form}_{name}");
                series.get(&name).unwrap_or_else(|| panic!("{name} in {series:#?}")).parse::<i128>().unwrap()
            };
            assert_eq!(get("last"), *values.last().unwrap(), "{form}");
            // Computed values are signed 64-bit numbers; labels and the last value are shown unchanged.
            let signed = || values.iter().copied().filter(|value| i64::try_from(*value).is_ok());
            assert_eq!(get("min"), signed().min().unwrap(), "{form}");
            assert_eq!(get("max"), signed().max().unwrap(), "{form}");
            let at_most = |bound: i128| rounds * signed().filter(|value| *value <= bound).count() as i128;
            assert_eq!(get("values_bucket{le=\"-1\"}"), at_most(-1), "{form}");
            assert_eq!(get("values_bucket{le=\"0\"}"), at_most(0), "{form}");
            assert_eq!(get("values_bucket{le=\"200\"}"), at_most(200), "{form}");
            assert_eq!(get("values_bucket{le=\"+Inf\"}"), at_most(i128::MAX), "{form}");
            assert_eq!(get("values_count"), at_most(i128::MAX), "{form}");
            assert_eq!(get("values_sum"), i128::from((rounds * signed().sum::<i128>()) as i64), "{form}");
            let sum: i128 = signed().filter(|value| *value >= 0).sum();
            assert_eq!(get("sum"), i128::from((rounds * sum) as i64), "{form}");
        }
    });
}

/// Bytes beside an argument in memory, or above it in its register, are not part of the argument.
#[test]
fn argument_is_never_read_wider_than_its_note() {
    const ROUNDS: u64 = 4;
    let narrow = &INTEGERS[..6];
    let probes: String = narrow.iter().map(|(form, _)| counted(form, "{ index: 0, type: i64 }")).collect();
    each_way(&probes, |tracer, forms| {
        for (form, values) in narrow {
            forms.fire(form, ROUNDS * values.len() as u64);
            let rows: Vec<_> = values.iter().map(|value| (value.to_string(), ROUNDS)).collect();
            let rows: Vec<_> = rows.iter().map(|(text, count)| (text.as_str(), *count)).collect();
            expect(tracer, &format!("{form}_total"), &rows);
        }
    });
}

#[test]
fn min_and_max_of_the_last_two_windows() {
    let probes = "  - on: usdt:forms:i64\n    args: { v: 0 }\n    metrics:\n\
                  \x20   - { gauge: least, value: v, mode: min }\n    - { gauge: most, value: v, mode: max }\n";
    each_way(probes, |tracer, forms| {
        assert!(tracer.render().is_empty(), "a gauge that was never set has no value");
        forms.fire("i64", 5);
        let series = tracer.render();
        assert_eq!(series["least"], i64::MIN.to_string());
        assert_eq!(series["most"], i64::MAX.to_string());
        // Two windows later the values have expired; new ones are shown.
        let later = |windows: u32| Instant::now() + WINDOW * windows;
        tracer.render_at(later(1));
        assert!(tracer.render_at(later(2)).is_empty());
        forms.fire("i64", 2);
        let series = tracer.render_at(later(2));
        assert_eq!((series["least"].as_str(), series["most"].as_str()), (&*i64::MIN.to_string(), "-1"));
    });
}

#[test]
fn booleans() {
    each_way(&counted("u8", "{ index: 0, type: bool }"), |tracer, forms| {
        forms.fire("u8", 8);
        expect(tracer, "u8_total", &[("false", 2), ("true", 6)]);
    });
}

/// Compares with what the program itself prints, for every form that has a single value.
#[test]
fn strings_and_bytes_are_exact() {
    let forms: [(&str, &str, &str); 9] = [
        ("string", "{ index: 0, type: string }", "a string"),
        ("empty", "{ index: 0, type: string }", ""),
        ("null", "{ index: 0, type: string }", ""),
        ("bad", "{ index: 0, type: string }", "unreadable"),
        ("cold", "{ index: 0, type: string }", "a string on a page that nobody has touched"),
        ("crossing", "{ index: 0, type: string }", "it begins on one page and it ends on the next"),
        ("counted", "{ index: 0, type: string_len, length: 1 }", "counted"),
        ("plain_string", "{ index: 0, type: string }", "no semaphore"),
        (
            "bytes",
            "{ index: 0, type: hex, len: 32, reverse: true }",
            "dad3ccc5beb7b0a9a29b948d867f78716a635c554e474039322b241d160f0801",
        ),
    ];
    let probes: String = forms.iter().map(|(form, argument, _)| counted(form, argument)).collect();
    each_way(&probes, |tracer, program| {
        for (probe, (form, _, text)) in forms.into_iter().enumerate() {
            let answer = program.fire(form, 30);
            let shown: String = match answer["values"][0].as_str() {
                None if form == "null" => String::new(),
                None => "unreadable".into(),
                Some(hex) if form == "bytes" => {
                    let digits: Vec<_> = hex.as_bytes().chunks(2).rev().collect();
                    String::from_utf8(digits.concat()).unwrap()
                }
                Some(text) => text.into(),
            };
            assert_eq!(shown, text, "{form}: the program says something else");
            expect(tracer, &format!("{form}_total"), &[(text, 30)]);
            let accounting = tracer.accounting_at_rest()[probe];
            assert_eq!((accounting.hits, accounting.aggregated, accounting.lost), (30, 30, 0), "{form}");
        }
    });
}

#[test]
fn long_strings_are_truncated() {
    // The last of the `max` bytes is the NUL. Texts longer than 64 bytes are not compared in the kernel but sent to
    // user space.
    for max in [1, 2, 8, 9, 63, 64, 65, 200, 256] {
        let probes = counted("long_string", &format!("{{ index: 0, type: string, max: {max} }}"));
        let directory = directory();
        let binary = private_copy("forms", directory.path());
        let tracer = Tracer::start(&config(&binary, "auto", "", &probes));
        let answer = Forms::start(&binary).fire("long_string", 3);
        let whole = answer["values"][0].as_str().unwrap();
        assert!(whole.len() > 256);
        expect(&tracer, "long_string_total", &[(&whole[..max - 1], 3)]);
        assert_eq!(tracer.drained().0, if max > 64 { 3 } else { 0 });
    }
}

#[test]
fn many_arguments_of_mixed_kinds() {
    let probes = "  - on: usdt:forms:many
    args: { a: 0, b: 1, c: 2, d: 3, e: 4, f: 5, g: 6, h: 7, j: { index: 9, type: string }, k: 10, l: 11 }
    metrics:
    - counter: ints_total
      labels: { a: a, b: b, c: c, d: d }
    - counter: more_total
      labels: { e: e, f: f, g: g, l: l }
    - { counter: shots_sum, value: h, labels: { j: j, k: k } }
";
    each_way(probes, |tracer, forms| {
        forms.fire("many", 10);
        let series = tracer.render();
        assert_eq!(series["ints_total{a=\"-1\",b=\"2\",c=\"-3\",d=\"4\"}"], "10");
        assert_eq!(series["more_total{e=\"-5\",f=\"6\",g=\"-7\",l=\"-12\"}"], "10");
        assert_eq!(series["shots_sum{j=\"ten\",k=\"11\"}"], "45");
        assert_eq!(series.len(), 3);
    });
}

/// Memory at `symbol(%rip)`, several sites, a probe without a semaphore, and a child process that fires after a fork.
#[test]
fn value_and_probe_locations() {
    let mut probes = counted("global", "0");
    for form in ["sites", "plain", "forked"] {
        probes += &counted(form, "0");
    }
    each_way(&probes, |tracer, forms| {
        forms.fire("global", 6);
        expect(tracer, "global_total", &[("-77", 6)]);
        forms.fire("sites", 7);
        expect(tracer, "sites_total", &[("-10", 4), ("20", 3)]);
        assert!(tracer.state(1).1 >= 2, "{:?}", tracer.state(1));
        assert!(forms.fire("plain", 3)["semaphore"].is_null());
        expect(tracer, "plain_total", &[("0", 1), ("1", 1), ("2", 1)]);
        forms.fire("forked", 3);
        expect(tracer, "forked_total", &[("0", 1), ("1", 1), ("2", 1)]);
    });
}

#[test]
fn semaphores_are_raised_only_while_attached() {
    for (program, attach) in WAYS {
        let directory = directory();
        let binary = private_copy(program, directory.path());
        let mut before = Forms::start(&binary);
        assert!(before.semaphores().values().all(|value| *value == 0));
        let tracer = Tracer::start(&config(&binary, attach, "", &counted("i32", "0")));
        let mut after = Forms::start(&binary);
        let sites = tracer.state(0).1 as u64;
        assert!(sites > 0);
        for forms in [&mut before, &mut after] {
            for (probe, value) in forms.semaphores() {
                let raised = if probe == "forms:i32" { sites } else { 0 };
                assert_eq!(value, raised, "{probe}, {program}, {attach}");
            }
        }
        drop(tracer);
        for forms in [&mut before, &mut after] {
            assert!(forms.semaphores().values().all(|value| *value == 0), "{program}, {attach}");
        }
    }
}

/// The compiler puts nothing before the probe in `fire_null`: its first instruction is that of the probe, for which the
/// kernel accepts one semaphore, that of the first to attach.
#[test]
fn function_and_probe_at_one_address_share_a_semaphore() {
    let probe = "  - on: usdt:forms:null\n    metrics: [{ counter: probe_total }]\n";
    let function = "  - function: fire_null\n    returns: u8\n    metrics:\n    \
                    - { counter: calls_total }\n    - { counter: returned_total, value: retval }\n";
    for (program, attach) in WAYS {
        let directory = directory();
        let binary = private_copy(program, directory.path());
        let both = Tracer::start(&config(&binary, attach, "", &format!("{probe}{function}")));
        let one = Tracer::start(&config(&binary, attach, "", function));
        let mut forms = Forms::start(&binary);
        assert_eq!(forms.semaphores()["forms:null"], 1);
        forms.fire("null", 9);
        for name in ["probe_total", "calls_total", "returned_total"] {
            assert_eq!(both.render()[name], "9", "{name}, {program}, {attach}");
        }
        assert_eq!((&*one.render()["calls_total"], &*one.render()["returned_total"]), ("9", "9"));
        drop((one, both));
        assert_eq!(forms.semaphores()["forms:null"], 0);
    }
}

#[test]
fn distinguishes_processes() {
    let probes = "  - on: usdt:forms:i32\n    metrics:\n    - counter: by_pid_total\n      labels: { v: pid }\n\
                  \x20   - counter: by_name_total\n      labels: { v: comm }\n";
    for (program, attach) in WAYS {
        let directory = directory();
        let binary = private_copy(program, directory.path());
        let mut one = Forms::start(&binary);
        let tracer = Tracer::start(&config(&binary, attach, "", probes));
        let mut two = Forms::start(&binary);
        one.fire("i32", 11);
        two.fire("i32", 23);
        let pids = [one.pid(), two.pid()].map(|pid| pid.to_string());
        expect(&tracer, "by_pid_total", &[(&pids[0], 11), (&pids[1], 23)]);
        expect(&tracer, "by_name_total", &[(program, 34)]);
    }
}

#[test]
fn process_filter_counts_other_processes_as_filtered() {
    for (program, attach) in WAYS {
        let directory = directory();
        let binary = private_copy(program, directory.path());
        let mut one = Forms::start(&binary);
        let mut two = Forms::start(&binary);
        let filter = format!("  pid: {}\n", one.pid());
        let plain = "  - on: usdt:forms:u8\n    metrics: [{ counter: plain_hits_total }]\n";
        let tracer = Tracer::start(&config(&binary, attach, &filter, &(counted("i32", "0") + plain)));
        one.fire("i32", 5);
        two.fire("i32", 25);
        one.fire("u8", 2);
        two.fire("u8", 3);
        let rows = ["-2147483648", "-1", "0", "1", "2147483647"].map(|value| (value, 1));
        expect(&tracer, "i32_total", &rows);
        assert_eq!(tracer.render()["plain_hits_total"], "2");
        let accounting = tracer.accounting_at_rest();
        assert_eq!((accounting[0].hits, accounting[0].aggregated, accounting[0].filtered), (30, 5, 25));
        assert_eq!((accounting[1].hits, accounting[1].aggregated, accounting[1].filtered), (5, 2, 3));
    }
}

/// As many texts as fit into an event; the plan refuses more of them.
#[test]
fn several_long_strings_in_one_event() {
    let probes = |n: usize| {
        let args: String =
            (0..n).map(|i| format!("t{i}: {{ index: 0, type: string, max: 256 }}, ")).collect();
        let labels: String = (0..n).map(|i| format!("t{i}: t{i}, ")).collect();
        format!(
            "  - on: usdt:forms:long_string\n    args: {{ {args} }}\n    metrics:\n\
             \x20   - counter: texts_total\n      labels: {{ {labels} }}\n"
        )
    };
    let directory = directory();
    let binary = private_copy("forms", directory.path());
    let tracer = Tracer::start(&config(&binary, "auto", "", &probes(4)));
    let answer = Forms::start(&binary).fire("long_string", 2);
    let text = &answer["values"][0].as_str().unwrap()[..255];
    let labels: Vec<_> = (0..4).map(|i| format!("t{i}=\"{text}\"")).collect();
    assert_eq!(tracer.render()[&format!("texts_total{{{}}}", labels.join(","))], "2");
    let wrong = crate::support::tracer::plan_of(&config(&binary, "auto", "", &probes(5)), false).unwrap_err();
    assert!(wrong.contains("1024 bytes; the limit per event is 768"), "{wrong}");
}

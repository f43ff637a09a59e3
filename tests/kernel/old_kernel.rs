//! The built exporter on both kernels of Debian 12, in an emulated machine: 6.1 has no link for many sites at once,
//! 6.12 has one but no sessions. Only the way to attach differs; the numbers are the same.

use crate::support::demo::{Totals, program};
use crate::support::exposition::Metrics;
use crate::support::on_kernel::{EXPORTER, Output};

/// The commands for the busybox shell of the emulated machine. The test splits their output at the lines `-- NAME`.
const COMMANDS: &str = r#"
start() {
    $EXPORTER --config /config.yaml >/log 2>&1 &
    exporter=$!
    until wget -q -O /dev/null http://127.0.0.1:9436/ready 2>/dev/null; do
        kill -0 $exporter 2>/dev/null || { cat /log; exit 1; }
        sleep 0.2
    done
}
cat >/config.yaml <<END
node_name: demo
slow_events: { file: /events.db }
targets:
- { name: bitcoind, binary: $DEMO, profile: fibre }
- name: forms
  binary: $FORMS
  probes:
  - on: usdt:forms:cold
    args: { text: { index: 0, type: string } }
    metrics:
    - { counter: forms_cold_total, labels: { text: text } }
    - { counter: forms_run_total, labels: { exe: exe, cmdline: cmdline } }
    - { counter: forms_long_total, when: 'text != "$LONG"', labels: { text: text } }
  - function: fire_i8
    args: { shot: { index: 0, type: u64 } }
    returns: u8
    metrics:
    - { histogram: forms_call_seconds, value: duration, slow: { over: -1, fields: shot, stack: true } }
    - { counter: forms_returned_total, labels: { value: retval, shot: shot } }
  - span: forms_cold_seconds
    from: usdt:forms:cold
    to: function:cold_drop
    args: { text: { index: 0, type: string } }
    labels: { text: text }
  - span: forms_between_seconds
    from: usdt:forms:i16
    to: usdt:forms:u16
END
start
$DEMO --rate 0 --blocks 200 --wait-attached >/totals || exit 1
$FORMS cold 3 i8 4 i16 1 u16 1 i16 1 u16 1 >/dev/null || exit 1
wget -q -O /metrics http://127.0.0.1:9435/metrics || exit 1
cat >/loads.yaml <<'END'
node_name: old
metrics_port: 9445
health_port: 9446
log_level: debug
targets:
- { name: loads, process: sh, library: libdemo.so, probes: [ { on: "usdt:a:b", metrics: [ { counter: b_total } ] } ] }
- { name: boxed, container: web, unit: "app-*", probes: [ { on: "usdt:a:c", metrics: [ { counter: c_total } ] } ] }
END
$EXPORTER --config /loads.yaml >/loads 2>&1 &
loads=$!
until grep -q "Waiting for events" /loads; do
    kill -0 $loads 2>/dev/null || { cat /loads; exit 1; }
    sleep 0.2
done
kill $loads
wait $loads
kill $exporter
wait $exporter
echo "-- status"
echo $?
for name in totals metrics log loads; do
    echo "-- $name"
    cat /$name
done
echo "-- events"
$EXPORTER events --file /events.db --format json || exit 1
echo "-- then"
mount -t bpf bpf /sys/fs/bpf
cat >/config.yaml <<END
state: pinned
targets:
- name: forms
  binary: $FORMS
  probes:
  - { on: usdt:forms:cold, metrics: [{ counter: cold_total }] }
  - { function: fire_i8, returns: u8, metrics: [{ histogram: call_seconds, value: duration }] }
END
for turn in 1 2; do
    start
    [ $turn = 1 ] || wget -q -O /metrics http://127.0.0.1:9435/metrics || exit 1
    kill -9 $exporter
    wait $exporter
    [ $turn = 2 ] || $FORMS cold 3 i8 4 >/dev/null || exit 1
done
echo "-- pinned"
cat /metrics
echo "-- log of pinned"
cat /log
echo "-- unpinned"
$EXPORTER unpin /sys/fs/bpf/exporter-9435 || exit 1
"#;

/// Fires everything on this kernel, where the exporter attaches in this way.
fn numbers_are_right_on(kernel: &str, attach: &str) {
    let [demo, forms] = ["fibre-demo", "forms"].map(|name| program(name).display().to_string());
    let commands = COMMANDS
        .replace("$DEMO", &demo)
        .replace("$FORMS", &forms)
        .replace("$EXPORTER", EXPORTER)
        .replace("$LONG", &"too long for the kernel to compare ".repeat(3));
    let output = Output::of(kernel, &commands, &[&demo, &forms]);
    let log = output.part("log");
    assert_eq!(output.part("status"), "0", "{log}");
    assert!(!log.contains("may find breakpoints in it"), "{log}");
    let loads = output.part("loads");
    assert!(!loads.contains("does not tell what processes map"), "{loads}");
    let totals = Totals(serde_json::from_str(output.part("totals")).expect("totals in JSON"));
    assert_eq!(totals.fired("validation:block_connected"), 200);
    let scrape = Metrics::parse(output.part("metrics")).unwrap_or_else(|error| panic!("{error}"));

    let (forms, fibre): (Vec<_>, Vec<_>) =
        scrape.measured().0.into_iter().partition(|((name, _), _)| name.starts_with("forms_"));
    Metrics(fibre.into_iter().collect()).assert_same(&totals.series("demo"));
    let forms = Metrics(forms.into_iter().collect());
    let cold = forms.select("forms_cold_total", &[]);
    assert_eq!(cold.len(), 1, "a string on a page that is not resident is read: {cold:?}");
    assert_eq!(cold[0].1, 3.0);
    assert_eq!(cold, forms.select("forms_long_total", &[]), "by way of user space it is the same");
    let run = forms.select("forms_run_total", &[]);
    assert!(run.len() == 1 && run[0].1 == 3.0 && run[0].0["exe"].ends_with("/forms"), "{run:?}");
    assert!(run[0].0["cmdline"].ends_with("/forms cold 3 i8 4 i16 1 u16 1 i16 1 u16 1"), "{run:?}");
    let text = cold[0].0["text"].as_str();
    assert_eq!(forms.value("forms_cold_seconds_count", &[("text", text)]), 3.0, "the span's start keeps it");
    assert_eq!(forms.value("forms_call_seconds_count", &[]), 4.0);
    for shot in ["0", "1", "2", "3"] {
        assert_eq!(forms.value("forms_returned_total", &[("value", "1"), ("shot", shot)]), 1.0);
    }
    assert_eq!(forms.value("forms_between_seconds_count", &[]), 2.0);
    for name in ["fibre_exporter_probe_lost_total", "fibre_exporter_probe_read_faults_total"] {
        assert_eq!(scrape.sum(name, &[]), 0.0, "{name}");
    }
    assert_eq!(scrape.sum("fibre_exporter_errors_total", &[]), 0.0, "{log}");
    let about = scrape.select("fibre_exporter_info", &[("attach", attach)]);
    let program = if attach == "perf_event" { "probe_perf" } else { "probe_multi" };
    // Where the kernel does not report processes, a target that is a file causes no scan for them.
    assert_eq!(scrape.value("fibre_exporter_process_scans_total", &[]), 1.0);
    assert_eq!(scrape.value("fibre_exporter_program_misses_total", &[("program", program)]), 0.0);
    assert!(about.len() == 1 && about[0].0["kernel"].starts_with(&format!("{kernel}.")), "{about:?}");

    let events: serde_json::Value = serde_json::from_str(output.part("events")).expect("events in JSON");
    let events = events.as_array().expect("a list");
    assert_eq!(events.len(), 4, "{events:?}");
    for event in events {
        // The program had ended before its stack was symbolized; the read faults above show that the stack could be
        // read.
        assert!(event["fields"]["stack"].is_string(), "{event}");
    }

    // Calls that were made while no exporter was running.
    let pinned = Metrics::parse(output.part("pinned")).unwrap_or_else(|error| panic!("{error}"));
    let log = output.part("log of pinned");
    assert_eq!(pinned.value("cold_total", &[]), 3.0, "{log}");
    assert_eq!(pinned.value("call_seconds_count", &[]), 4.0, "{log}");
    assert!(log.contains("Took over the probes that version"), "{log}");
}

#[test]
fn linux_6_1() {
    numbers_are_right_on("6.1", "perf_event");
}

#[test]
fn linux_6_12() {
    numbers_are_right_on("6.12", "uprobe_multi");
}

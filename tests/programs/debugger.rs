//! Compares every argument of every probe of a real program with what a debugger reads.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::support::exporter::Exporter;
use crate::support::program::{directory, private, run};

/// Compared bytes of a text, including its NUL.
const TEXT: usize = 64;

/// A script that stops at every probe and writes each argument: a number, or the text at an unsigned address. Null
/// means that there is no text.
const DEBUGGER: &str = r#"
import collections, gdb, json
counts = collections.Counter()
def text(address):
    found = b""
    try:
        while len(found) < TEXT - 1:
            byte = gdb.selected_inferior().read_memory(address + len(found), 1).tobytes()
            if byte == b"\0":
                break
            found += byte
        return "".join("\ufffd" if ord(c) < 32 or 127 <= ord(c) < 160 else c for c in found.decode())
    except (gdb.MemoryError, UnicodeDecodeError):
        return None
class Probe(gdb.Breakpoint):
    def __init__(self, name):
        super().__init__("-probe-stap " + name)
        self.silent, self.name = True, name
    def stop(self):
        for number in range(int(gdb.parse_and_eval("$_probe_argc"))):
            value = gdb.parse_and_eval(f"$_probe_arg{number}")
            is_text = value.type.sizeof == 8 and str(value.type).startswith("u")
            value = text(int(value)) if is_text else str(int(value))
            counts[json.dumps([self.name, number, value])] += 1
        return False
for command in ["pagination off", "breakpoint pending on", "confirm off", "debuginfod enabled off"]:
    gdb.execute("set " + command)
for name in PROBES:
    Probe(name)
gdb.execute("run")
json.dump([json.loads(key) + [count] for key, count in counts.items()], open(OUTPUT, "w"))
"#;

const SCRIPT: &str = r#"<?php
class A {
    function f($x) { if ($x > 3) throw new Exception("Größe $x"); return $x; }
    static function g() { return 1; }
}
function plain($n) { return $n <= 0 ? 0 : plain($n - 1) + 1; }
for ($i = 0; $i < 6; $i++) {
    try { (new A)->f($i); } catch (Exception $e) { plain(3); }
    A::g();
}
echo @$undefined["x"];
set_error_handler(fn($number, $text) => true);
trigger_error("a \"mistake\"\non two lines", E_USER_WARNING);
"#;

/// Returns the probes in PHP's notes, with the widths of their arguments as readelf shows them: 8 for `8@%rax`, -4 for
/// `-4@%ecx`.
fn probes(notes: &str) -> BTreeMap<String, Vec<i32>> {
    let mut probes = BTreeMap::new();
    let (mut provider, mut name) = ("", "");
    for line in notes.lines() {
        match line.trim().split_once(": ") {
            Some(("Provider", word)) => provider = word,
            Some(("Name", word)) => name = word,
            Some(("Arguments", all)) => {
                let widths = all.split(' ').filter_map(|arg| arg.split_once('@')?.0.parse().ok());
                probes.insert(format!("{provider}:{name}"), widths.collect());
            }
            _ => {}
        }
    }
    probes
}

#[test]
fn php_arguments_match_a_debugger() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    let php = private("/usr/bin/php8.2", directory.path());
    fs::write(at("script.php"), SCRIPT).unwrap();
    let notes = run(Command::new("readelf").arg("--notes").arg(&php).env("LC_ALL", "C"));
    let probes = probes(&notes);
    assert!(probes.len() >= 8, "{probes:?}");

    let names: Vec<&String> = probes.keys().collect();
    let debugger = format!("TEXT, PROBES, OUTPUT = {TEXT}, {names:?}, {:?}\n{DEBUGGER}", at("read.json"));
    fs::write(at("debugger.py"), debugger).unwrap();
    run(Command::new("gdb")
        .args(["-nx", "-q", "-batch", "-x"])
        .arg(at("debugger.py"))
        .arg("--args")
        .args([&php, &at("script.php")])
        .env("USE_ZEND_DTRACE", "1"));
    let read: Value = serde_json::from_str(&fs::read_to_string(at("read.json")).unwrap()).unwrap();

    let mut targets = format!("  - name: php\n    binary: {}\n    probes:\n", php.display());
    for (number, (name, widths)) in probes.iter().enumerate() {
        for (index, width) in widths.iter().enumerate() {
            let kind = if *width == 8 { format!(", type: string, max: {TEXT}") } else { String::new() };
            writeln!(
                targets,
                "      - {{ on: 'usdt:{name}', args: {{ a: {{ index: {index}{kind} }} }}, metrics: [{{ counter: \
                 p{number}_{index}_total, labels: {{ value: {{ value: a, limit: 1000 }} }} }}] }}"
            )
            .unwrap();
        }
    }
    let exporter = Exporter::tracing(&targets);
    run(Command::new(&php).arg(at("script.php")).env("USE_ZEND_DTRACE", "1"));
    let samples = exporter.scrape();
    samples.assert_nothing_lost();

    let mut hit = 0;
    for (number, (name, widths)) in probes.iter().enumerate() {
        for index in 0..widths.len() {
            let metric = format!("p{number}_{index}_total");
            let mut left = samples.by(&metric, "value");
            let all: f64 = left.values().sum();
            let own = read.as_array().unwrap().iter().filter(|row| row[0] == **name && row[1] == index);
            let mut count = 0.0;
            for row in own {
                let times = row[3].as_f64().unwrap();
                count += times;
                // If there is no text here, there may be some text or none there.
                if let Some(value) = row[2].as_str() {
                    let shown = left.remove(value);
                    assert_eq!(shown, Some(times), "{name}, argument {index}, {value:?}: {left:?}");
                }
            }
            assert_eq!(all, count, "{name}, argument {index}");
            hit += usize::from(count > 0.0);
        }
    }
    assert!(hit > 15, "only {hit} arguments were compared");
}

//! The profiles `python`, `php` and `ruby` compared with real interpreters' own accounting.

use std::fs;
use std::process::Command;

use crate::support::exporter::Exporter;
use crate::support::program::{directory, finish, private, run};

#[test]
fn python_collections_imports_and_audit_events() {
    let directory = directory();
    let python = private("/usr/bin/python3.11", directory.path());
    let exporter = Exporter::with_profile(&python, "python");
    // A normal exit would collect again, after the counts were printed.
    let script = "
import gc, os, sys
class Node: pass
for _ in range(40):
    a, b = Node(), Node()
    a.other, b.other = b, a
    del a, b
    gc.collect(1)
for _ in range(7):
    gc.collect()
for n in range(5):
    try: __import__(f'no_such_module_{n}')
    except ImportError: pass
for _ in range(30):
    sys.audit('test.event', 1)
gc.disable()
for g in gc.get_stats(): print(g['collections'], g['collected'])
sys.stdout.flush()
os._exit(0)
";
    // With importtime, Python writes a line per import.
    let output = finish(Command::new(&python).args(["-I", "-X", "importtime", "-c", script]));
    assert!(output.status.success(), "{output:?}");
    let accounting: Vec<(f64, f64)> = String::from_utf8(output.stdout)
        .expect("output in UTF-8")
        .lines()
        .map(|line| line.split_once(' ').expect("two numbers"))
        .map(|(a, b)| (a.parse().expect("a number"), b.parse().expect("a number")))
        .collect();
    let errors = String::from_utf8_lossy(&output.stderr);
    let imports = errors.lines().filter(|line| line.starts_with("import time:") && !line.contains("[us]"));
    let imports = imports.count() as f64;

    let samples = exporter.scrape();
    assert!(accounting.len() == 3 && accounting[1].0 >= 40.0 && accounting[2].0 >= 7.0, "{accounting:?}");
    for (generation, (collections, _)) in accounting.iter().enumerate() {
        let label = [("generation", generation.to_string())];
        let label = label.each_ref().map(|(name, value)| (*name, value.as_str()));
        assert_eq!(samples.sum("python_gc_total", &label), *collections, "generation {generation}");
        assert_eq!(samples.sum("python_gc_pause_duration_seconds_count", &label), *collections);
    }
    let collected = accounting.iter().map(|(_, collected)| collected).sum::<f64>();
    assert!(collected >= 80.0);
    assert_eq!(samples.sum("python_gc_collected_objects_total", &[]), collected);
    assert!(samples.sum("python_gc_pause_duration_seconds_sum", &[]) > 0.0);

    let events = samples.by("python_audit_events_total", "event");
    assert_eq!(events["test.event"], 30.0, "{events:?}");
    assert_eq!(samples.sum("python_imports_total", &[]), imports);
    assert!(samples.sum("python_imports_total", &[("found", "no")]) >= 5.0);
    assert_eq!(samples.sum("python_import_duration_seconds_count", &[]), imports);
    samples.assert_nothing_lost();
}

#[test]
fn php_calls_exceptions_errors_and_requests() {
    let directory = directory();
    let php = private("/usr/bin/php8.2", directory.path());
    let script = directory.path().join("script.php");
    let text = r#"<?php
function fifty($n) { return $n + 1; }
class Made { function twenty() { return strlen("x"); } }
class Thrown extends Exception {}
for ($i = 0; $i < 50; $i++) fifty($i);
$made = new Made();
for ($i = 0; $i < 20; $i++) $made->twenty();
for ($i = 0; $i < 10; $i++) { try { throw new Thrown("x"); } catch (Thrown $e) {} }
for ($i = 0; $i < 4; $i++) trigger_error("a notice");
echo $undefined;
include __DIR__ . "/included.php";
"#;
    fs::write(&script, text).expect("write the script");
    fs::write(directory.path().join("included.php"), "<?php function other() {} other();").expect("write");
    let exporter = Exporter::with_profile(&php, "php");
    for _ in 0..3 {
        run(Command::new(&php).arg("-n").arg(&script).env("USE_ZEND_DTRACE", "1"));
    }

    let samples = exporter.scrape();
    let calls = |class: &str, function: &str| {
        samples.sum("php_function_calls_total", &[("class", class), ("function", function)])
    };
    assert_eq!(calls("", "fifty"), 3.0 * 50.0);
    assert_eq!(calls("Made", "twenty"), 3.0 * 20.0);
    assert_eq!(calls("", "other"), 3.0);
    let thrown = samples.by("php_exceptions_thrown_total", "class");
    assert_eq!(thrown["Thrown"], 30.0, "{thrown:?}");
    assert_eq!(samples.sum("php_exceptions_caught_total", &[]), 30.0);
    assert_eq!(samples.sum("php_errors_total", &[("type", "user_notice")]), 3.0 * 4.0);
    assert_eq!(samples.sum("php_errors_total", &[("type", "warning")]), 3.0);
    assert_eq!(samples.sum("php_errors_total", &[]), 3.0 * 5.0);
    assert_eq!(samples.sum("php_requests_total", &[("method", "other")]), 3.0);
    assert_eq!(samples.sum("php_request_duration_seconds_count", &[]), 3.0);
    // The script and its includes.
    assert_eq!(samples.sum("php_compile_duration_seconds_count", &[]), 3.0 * 2.0);
    samples.assert_nothing_lost();
}

#[test]
fn ruby_collections_exceptions_requires_and_calls() {
    let directory = directory();
    let library = private("/usr/lib/x86_64-linux-gnu/libruby-3.1.so.3.1", directory.path());
    // The profile, plus the example from its own comments.
    let exporter = Exporter::tracing(&format!(
        "  - name: ruby\n    binary: {}\n    profile: ruby\n    probes:\n\
         \x20     - on: usdt:ruby:cmethod__entry\n\
         \x20       args: {{ class: {{ index: 0, type: string, max: 60 }}, method: {{ index: 1, type: string, max: 60 }} }}\n\
         \x20       metrics:\n\
         \x20         - counter: ruby_method_calls_total\n\
         \x20           labels: {{ class: {{ value: class, limit: 100 }}, method: {{ value: method, limit: 500 }} }}\n",
        library.display()
    ));
    let required = directory.path().join("required.rb");
    fs::write(&required, "module Required; end\n").expect("write");
    let script = format!(
        "class Thrown < StandardError; end
30.times {{ 'text'.crypt('ab') }}
20.times {{ begin; raise Thrown; rescue Thrown; end }}
12.times {{ GC.start }}
9.times {{ require '{0}' }}
3.times {{ load '{0}' }}
GC.disable
puts GC.count",
        required.display()
    );
    let output = run(Command::new("/usr/bin/ruby")
        .args(["--disable-gems", "-e", &script])
        .env("LD_LIBRARY_PATH", directory.path()));
    let collections: f64 = output.trim().parse().expect("a number");

    let samples = exporter.scrape();
    let metric = |name: &str| samples.sum(name, &[]);
    assert!(collections >= 12.0);
    assert_eq!(metric("ruby_gc_marks_total"), collections);
    assert_eq!(metric("ruby_gc_mark_duration_seconds_count"), collections);
    assert!(metric("ruby_gc_sweep_duration_seconds_count") >= 12.0);
    assert_eq!(samples.sum("ruby_exceptions_total", &[("class", "Thrown")]), 20.0);
    let called = [("class", "String"), ("method", "crypt")];
    assert_eq!(samples.sum("ruby_method_calls_total", &called), 30.0);
    assert_eq!(metric("ruby_loads_total"), 3.0);
    // Ruby itself requires a few files.
    let own = run(Command::new("/usr/bin/ruby")
        .args(["--disable-gems", "-e", "1"])
        .env("LD_LIBRARY_PATH", directory.path()));
    assert!(own.is_empty());
    let again = exporter.scrape();
    let of_start = again.sum("ruby_requires_total", &[]) - metric("ruby_requires_total");
    assert_eq!(metric("ruby_requires_total"), 9.0 + of_start);
    assert_eq!(metric("ruby_require_duration_seconds_count"), 9.0 + of_start);
    assert!(metric("ruby_parse_duration_seconds_count") >= 1.0 + 1.0 + 3.0);
    samples.assert_nothing_lost();
}

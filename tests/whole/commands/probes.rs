//! `exporter probes`.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value as Json;

use super::{Scratch, demo, exporter};
use crate::support::program::Running;

/// Returns programs with USDT probes: ours, and two from packages that the tests need anyway.
fn programs() -> Vec<String> {
    let python = std::fs::canonicalize("/usr/bin/python3").expect("Debian's python3").display().to_string();
    let cpp = "/usr/lib/x86_64-linux-gnu/libstdc++.so.6".to_string();
    vec![demo("fibre-demo"), demo("forms"), demo("forms-no-pie"), python, cpp]
}

fn json(args: &[&str]) -> Json {
    serde_json::from_str(&exporter(&[&["probes", "--json"], args].concat()).good()).expect("JSON")
}

fn list(value: &Json) -> &Vec<Json> {
    value.as_array().expect("a list")
}

/// Sites, semaphores and argument forms by probe, according to binutils.
type Probes = BTreeMap<String, (u64, u64, Vec<Vec<String>>)>;

fn of_readelf(program: &str) -> Probes {
    let output = Command::new("readelf").args(["-n", program]).output().expect("run readelf");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let (mut probes, mut provider, mut name, mut semaphore) = (Probes::new(), "", String::new(), 0);
    for line in text.lines().map(str::trim) {
        if let Some(found) = line.strip_prefix("Provider: ") {
            provider = found;
        } else if let Some(found) = line.strip_prefix("Name: ") {
            name = format!("{provider}:{found}");
        } else if let Some((_, address)) = line.split_once("Semaphore: 0x") {
            semaphore = u64::from(address.contains(|digit| digit != '0'));
        } else if let Some(args) = line.strip_prefix("Arguments:") {
            let probe = probes.entry(name.clone()).or_default();
            probe.0 += 1;
            probe.1 += semaphore;
            for (index, form) in args.split_whitespace().enumerate() {
                probe.2.resize(probe.2.len().max(index + 1), Vec::new());
                if !probe.2[index].iter().any(|known| known == form) {
                    probe.2[index].push(form.to_string());
                }
            }
        }
    }
    probes
}

fn of_exporter(program: &str) -> Probes {
    let mut probes = Probes::new();
    for provider in list(&json(&[program])["files"][0]["providers"]) {
        for probe in list(&provider["probes"]) {
            let name = format!(
                "{}:{}",
                provider["provider"].as_str().expect("text"),
                probe["name"].as_str().expect("text")
            );
            let forms = list(&probe["args"]).iter();
            let forms =
                forms.map(|arg| serde_json::from_value(arg["forms"].clone()).expect("texts")).collect();
            let number = |key: &str| probe[key].as_u64().expect("a number");
            probes.insert(name, (number("sites"), number("semaphores"), forms));
        }
    }
    probes
}

#[test]
fn probes_match_binutils_output() {
    for program in programs() {
        let expected = of_readelf(&program);
        assert!(!expected.is_empty(), "readelf shows no probes in {program}");
        assert_eq!(of_exporter(&program), expected, "{program}");
    }
}

#[test]
fn columns_describe_each_probe() {
    let text = exporter(&["probes", &demo("fibre-demo")]).good();
    let row = text.lines().find(|line| line.contains("block_race_winner")).expect("its row");
    assert_eq!(
        row.split_whitespace().collect::<Vec<_>>().join(" "),
        "block_race_winner 1 yes cheap arg0 u64, arg1 i32, arg2 u64, arg3 u64"
    );
    assert!(text.contains("udp: 7 USDT probes at 7 sites"), "{text}");
    assert!(text.contains("may be a pointer"), "{text}");
}

#[test]
fn unreadable_argument_states_the_reason() {
    let text = exporter(&["probes", &demo("forms")]).good();
    assert!(text.contains("arg8 f64 (unreadable), arg9 u64"), "{text}");
    let reason = text.lines().find(|line| line.contains("arg8 cannot be read")).expect("the reason");
    assert!(reason.contains("floating-point number") && reason.contains("f@"), "{reason}");
}

#[test]
fn program_without_probes_suggests_next_steps() {
    let text = exporter(&["probes", "/bin/true"]).good();
    assert!(text.contains("no USDT probes") && text.contains("--functions"), "{text}");
    let scratch = Scratch::new();
    for (name, hint) in [
        ("postgres", "--enable-dtrace"),
        ("libjvm.so", "this JVM was built without probes"),
        ("bitcoind", "-DWITH_USDT=ON"),
        ("php8.2", "USE_ZEND_DTRACE=1"),
    ] {
        let copy = scratch.write(name, std::fs::read("/bin/true").expect("read"));
        let text = exporter(&["probes", &copy]).good();
        assert!(text.contains(hint), "{name}: {text}");
    }
}

#[test]
fn rejects_non_programs_with_a_reason() {
    let scratch = Scratch::new();
    let mut narrow = std::fs::read(demo("fibre-demo")).expect("read");
    narrow[4] = 1;
    let mut foreign = narrow.clone();
    (foreign[4], foreign[18]) = (2, 243);
    let cases = [
        (scratch.write("text", "just text\n"), "not an ELF file"),
        (scratch.write("script", "#!/usr/bin/env bash\nexec true\n"), "a script for /usr/bin/env bash"),
        (scratch.write("empty", ""), "not an ELF file"),
        (scratch.write("narrow", narrow), "a 32-bit program (x32)"),
        (scratch.write("foreign", foreign), "built for another architecture (ELF machine 243)"),
        (scratch.path("none").display().to_string(), "No such file"),
        ("/usr".to_string(), "not a regular file"),
        ("4194304".to_string(), "process 4194304: does not exist"),
        ("no-such-process".to_string(), "no process is named no-such-process"),
        ("readelf".to_string(), "`exporter probes /usr/bin/readelf`"),
    ];
    for (target, reason) in cases {
        for format in [&[][..], &["--json"], &["--yaml"]] {
            let ran = exporter(&[&["probes", &target], format].concat());
            assert_eq!(ran.out, "", "{target}");
            let told = ran.bad(2);
            assert!(told.contains(reason), "{target}: {told}");
        }
    }
}

#[test]
fn foreign_architecture_is_listed_but_not_traced() {
    let scratch = Scratch::new();
    let mut arm = std::fs::read(demo("fibre-demo")).expect("read");
    arm[18] = 183;
    let arm = scratch.write("arm", arm);
    let text = exporter(&["probes", &arm]).good();
    assert!(text.contains("built for aarch64, but this machine is x86_64"), "{text}");
    let checked = exporter(&["check", &scratch.write("c.yaml", super::config(&arm, "profile: fibre"))]);
    assert!(checked.bad(2).contains("another architecture"));
}

#[test]
fn finds_a_process_by_pid_and_name() {
    let scratch = Scratch::new();
    // A name that no process of another test has.
    let program = scratch.path("probes-by-name");
    std::fs::copy(demo("fibre-demo"), &program).expect("copy the demo");
    let program = program.display().to_string();
    let process = Running::start(Command::new(&program).args(["--rate", "1"]));
    let by_file = exporter(&["probes", &program]).good();
    assert_eq!(exporter(&["probes", &process.pid()]).good(), by_file);
    assert_eq!(exporter(&["probes", "probes-by-name"]).good(), by_file);
    let yaml = exporter(&["probes", "--yaml", &process.pid()]).good();
    assert!(yaml.contains(&format!("binary: {program}")), "{yaml}");
    let yaml = exporter(&["probes", "--yaml", "probes-by-name"]).good();
    assert!(yaml.contains("process: probes-by-name"), "{yaml}");
    exporter(&["check", &scratch.write("c.yaml", yaml)]).good();
}

#[test]
fn process_lists_libraries_with_probes() {
    let scratch = Scratch::new();
    let source = "#include <string>\n#include <unistd.h>\n\
                  int main(int argc, char **argv) { std::string s(argv[0]); while (argc > 0) pause(); throw s; }";
    let program = scratch.compile("waits", "c++", source, &[]);
    let process = Running::start(&mut Command::new(&program));
    let told = |text: &str| text.contains("libraries that have some") && text.contains("libstdc++.so.6");
    // Until the loader has mapped the library.
    let text = (0..100).map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        exporter(&["probes", &process.pid()]).good()
    });
    let last =
        text.inspect(|text| assert!(text.contains("no USDT probes"), "{text}")).find(|text| told(text));
    assert!(last.is_some(), "the library is never named");
}

#[test]
fn functions_list_cost_and_limitations() {
    let scratch = Scratch::new();
    let source = "int twice(int n) { return 2 * n; }\nint main(int argc, char **argv) { (void)argv; return twice(argc); }\n";
    let plain = scratch.compile("plain", "cc", source, &["-O0", "-fcf-protection=none"]);
    let functions = |args: &[&str]| json(args)["files"][0]["functions"].clone();
    let found = functions(&[&plain, "--functions", "tw?ce"]);
    assert_eq!(list(&found).len(), 1);
    assert_eq!((&found[0]["name"], &found[0]["cost"]), (&Json::from("twice"), &Json::from("cheap")));
    assert_eq!(found[0]["limits"], Json::Array(vec![]));
    let returned = &found[0]["return"];
    assert_eq!((&returned["exits"], &returned["single_stepped"]), (&Json::from(1), &Json::from(1)));
    assert_eq!((&returned["refused"], &returned["trampoline_refused"]), (&Json::Null, &Json::Null));
    let text = exporter(&["probes", &plain, "--functions", "twice"]).good();
    assert!(text.contains("1 exit, single-stepped") && text.contains("5 to 15 us a call"), "{text}");
    assert!(text.contains("`returns_by: trampoline` costs about 1 us"), "{text}");
    let inside = functions(&[&plain, "--functions", "twice+0x1"]);
    assert!(
        inside[0]["limits"][0].as_str().is_some_and(|limit| limit.contains("not a function entry")),
        "{inside}"
    );

    let go = format!("__attribute__((section(\".go.buildinfo\"))) const char go[] = \"x\";\n{source}");
    let go = scratch.compile("go", "cc", &go, &["-O0"]);
    let text = exporter(&["probes", &go, "--functions", "twice"]).good();
    assert!(text.contains("words in Go's order") && text.contains("an unknown Go version"), "{text}");

    let jumps = "#include <setjmp.h>\n#include <stdlib.h>\njmp_buf b;\nint twice(int n) { return 2 * n; }\nvoid ends(void) { exit(1); }\n\
                 int main(void) { if (!setjmp(b)) longjmp(b, 1); ends(); }\n";
    let jumps = scratch.compile("jumps", "cc", jumps, &["-O1", "-fno-inline"]);
    let text = exporter(&["probes", &jumps, "--functions", "*"]).good();
    assert!(text.contains("its return cannot be traced: it never returns"), "{text}");
    let text = exporter(&["probes", &jumps, "--functions", "main"]).good();
    assert!(!text.contains("costs about 1 us"), "{text}");
    // Nor does `check` recommend what is refused.
    let timed = |program: &str, name: &str| {
        let yaml = format!(
            "targets: [{{ name: t, binary: {program}, probes: [{{ function: {name}, metrics: [{{ gauge: g, value: retval }}] }}] }}]"
        );
        exporter(&["check", &scratch.write("timed.yaml", &yaml)]).good()
    };
    let text = timed(&plain, "twice");
    assert!(text.contains("`returns_by: trampoline` costs about 1 us"), "{text}");
    let text = timed(&jumps, "twice");
    assert!(text.contains("the return is traced at") && !text.contains("trampoline"), "{text}");

    let stripped = scratch.compile("stripped", "cc", source, &["-O0", "-s"]);
    let text = exporter(&["probes", &stripped, "--functions", "twice"]).good();
    assert!(text.contains("no function twice in this file") && text.contains("debug symbols"), "{text}");

    // With its debug symbols beside it, its names are available again, to `probes` and to `check`.
    let status =
        Command::new("objcopy").args(["--only-keep-debug", &plain, &format!("{plain}.debug")]).status();
    assert!(status.is_ok_and(|status| status.success()), "objcopy fails");
    let status = Command::new("objcopy")
        .args(["--strip-all", &format!("--add-gnu-debuglink={plain}.debug"), &plain])
        .status();
    assert!(status.is_ok_and(|status| status.success()), "objcopy fails");
    assert_eq!(functions(&[&plain, "--functions", "twice"])[0]["name"], "twice");
    let yaml = exporter(&["probes", "--yaml", "--functions", "twice", &plain]).good();
    assert!(exporter(&["check", &scratch.write("c.yaml", yaml)]).good().contains("plain_twice_calls_total"));
}

#[test]
fn check_accepts_every_starter_config() {
    let scratch = Scratch::new();
    for program in programs() {
        let yaml = exporter(&["probes", "--yaml", &program]).good();
        let checked = exporter(&["check", &scratch.write("c.yaml", &yaml)]).good();
        for name in of_readelf(&program).keys() {
            assert!(yaml.contains(&format!("- on: usdt:{name}\n")), "{name} is not in:\n{yaml}");
            assert!(checked.contains(&format!("  {name} ")), "{name} is not in:\n{checked}");
        }
    }
    let with_functions = ["probes", "--yaml", "--functions", "*", &demo("forms")];
    let yaml = exporter(&with_functions).good();
    assert!(yaml.contains("- function: "), "{yaml}");
    exporter(&["check", &scratch.write("c.yaml", &yaml)]).good();
}

#[test]
fn starter_config_arguments_work_when_uncommented() {
    let scratch = Scratch::new();
    let yaml = exporter(&["probes", "--yaml", &demo("fibre-demo")]).good();
    let probe = yaml.find("- on: usdt:udp:block_race_winner").expect("the probe");
    let (before, after) = yaml.split_at(probe);
    let after = after.replacen("        # args:", "        args:", 1);
    let after = after.replacen("        #   arg1: 1 #", "          height: 1 #", 1);
    let after = after.replacen("_total\n", "_total\n            value: height\n", 1);
    let table = exporter(&["check", &scratch.write("c.yaml", format!("{before}{after}"))]).good();
    assert!(table.contains("height = arg1 -4@"), "{table}");
}

#[test]
fn no_starter_config_without_probes() {
    let told = exporter(&["probes", "--yaml", "/bin/true"]).bad(2);
    assert!(told.contains("cannot generate a configuration: no USDT probes"), "{told}");
}

/// Names that providers and functions may have, but a user's metrics must not.
#[test]
fn starter_config_of_reserved_names_is_accepted() {
    let scratch = Scratch::new();
    let providers = ["network", "xdp", "tc_egress", "process", "fibre_exporter", "NETWORK", "_9", "le"];
    let probes: String = providers.iter().map(|name| format!("DTRACE_PROBE1({name}, hit, n);")).collect();
    let source = format!("#include <sys/sdt.h>\nint main(int n, char **v) {{ {probes} return 0; }}\n");
    let program = scratch.compile("awkward", "cc", &source, &[]);
    let yaml = exporter(&["probes", &program, "--yaml"]).good();
    assert_eq!(yaml.matches("- on: usdt:").count(), providers.len());
    exporter(&["check", &scratch.write("c.yaml", yaml)]).good();
}

#[test]
fn starter_configs_of_real_programs_are_accepted() {
    let scratch = Scratch::new();
    let real = [
        "/usr/lib/postgresql/15/bin/postgres",
        "/usr/lib/jvm/java-17-openjdk-amd64/lib/server/libjvm.so",
        "/usr/lib/x86_64-linux-gnu/libvirt.so.0",
        "/usr/lib/x86_64-linux-gnu/libruby-3.1.so.3.1",
    ];
    for program in programs().iter().map(String::as_str).chain(real) {
        let yaml = exporter(&["probes", program, "--yaml"]).good();
        exporter(&["check", &scratch.write("c.yaml", yaml)]).good();
    }
    let itself = env!("CARGO_BIN_EXE_exporter");
    let yaml = exporter(&["probes", itself, "--functions", "*plan_draft*", "--yaml"]).good();
    exporter(&["check", &scratch.write("c.yaml", yaml)]).good();
}

//! `exporter check`.

use std::process::Command;

use super::{Scratch, config, demo, exporter, ran};
use crate::support::program::Running;

fn check(text: &str) -> super::Ran {
    let scratch = Scratch::new();
    exporter(&["check", &scratch.write("c.yaml", text)])
}

fn squeezed(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn checks_every_profile_against_the_demo() {
    let names = exporter(&["profiles"]).good();
    let names: Vec<_> = names.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains(&"fibre") && names.contains(&"bitcoin-core"), "{names:?}");
    for name in names {
        let ran = check(&config(&demo("fibre-demo"), &format!("profile: {name}")));
        let profile = exporter(&["profiles", name]).good();
        // The demo only has probes of these two providers.
        if ["usdt:udp:", "usdt:validation:"].iter().any(|provider| profile.contains(provider)) {
            assert!(ran.good().contains("fibre-demo"), "{name}");
        } else {
            let told = ran.bad(2);
            // The demo calls functions of the C library, which it does not contain itself.
            let whys = ["it has none of the target's probes", "use the shared library that defines it"];
            assert!(whys.iter().any(|err| told.contains(err)), "{name}: {told}");
        }
    }
}

#[test]
fn prints_the_plan_as_a_table() {
    let table = check(&config(&demo("fibre-demo"), "profile: fibre")).good();
    let rows: Vec<String> = table.lines().map(squeezed).collect();
    assert_eq!(rows[0], format!("t: {}", demo("fibre-demo")));
    assert_eq!(rows[1], "PROBE SITES SEMAPHORES ARGUMENTS METRIC COMPUTED IN");
    let send = rows.iter().find(|row| row.starts_with("udp:block_send_start")).expect("a row");
    assert_eq!(
        *send,
        "udp:block_send_start 1 all counter fibre_blocks_sent_total kernel: equal to the number of hits"
    );
    let winner = rows.iter().find(|row| row.starts_with("udp:block_race_winner")).expect("a row");
    assert!(winner.contains("winner = arg2 8@"), "{winner}");
    // Each column is aligned.
    let at = |line: &str, word: &str| line.find(word).unwrap_or_else(|| panic!("no {word} in {line}"));
    let lines: Vec<&str> = table.lines().collect();
    let send = lines.iter().find(|line| line.contains("udp:block_send_start")).expect("a row");
    assert_eq!(at(lines[1], "METRIC"), at(send, "counter fibre_blocks_sent_total"));
    assert_eq!(at(lines[1], "COMPUTED"), at(send, "kernel: "));
}

#[test]
fn user_space_metrics_state_the_reason() {
    let probes = "probes:
      - on: usdt:udp:block_race_winner
        args: { winner: { index: 2, type: string } }
        metrics:
          - counter: deliveries_total
            labels: { by: { value: winner, match: { \"*FIBRE*\": udp }, default: other } }";
    let table = check(&config(&demo("fibre-demo"), probes)).good();
    assert!(table.contains("user space: winner: the glob \"*FIBRE*\" is matched in user space"), "{table}");
}

#[test]
fn spans_and_returns_list_both_ends() {
    let probes = "probes:
      - span: race_seconds
        from: usdt:udp:block_send_start
        to: usdt:udp:block_race_time
        by: thread
      - function: main
        metrics: [{ gauge: left_with, value: retval }, { histogram: ran_seconds, value: duration }]";
    let table = check(&config(&demo("fibre-demo"), probes)).good();
    let rows: Vec<String> = table.lines().map(squeezed).collect();
    let has = |words: &[&str]| {
        assert!(rows.iter().any(|row| words.iter().all(|word| row.contains(word))), "{words:?}:\n{table}");
    };
    has(&["udp:block_send_start", " 1 all", "kernel: starts a span"]);
    has(&["udp:block_race_time 1 all", "race_seconds kernel"]);
    has(&["retval = %rax", "left_with"]);
    has(&["ran_seconds"]);
}

#[test]
fn rejects_go_function_returns() {
    let scratch = Scratch::new();
    let source = "__attribute__((section(\".go.buildinfo\"))) const char go[] = \"x\";\nint main(void) { return 0; }\n";
    let go = scratch.compile("go", "cc", source, &[]);
    let probes = "probes: [{ function: main, metrics: [{ gauge: a, value: retval }] }]";
    let told = check(&config(&go, probes)).bad(2);
    assert!(told.contains("Go program") && told.contains("crashes"), "{told}");
}

#[test]
fn missing_file_is_waited_for() {
    let table = check(&config("/nonexistent/program", "profile: fibre")).good();
    assert!(
        table.contains("/nonexistent/program: No such file") && table.contains("waiting for it"),
        "{table}"
    );
}

#[test]
fn errors_quote_the_note_and_are_located() {
    let probes = "probes:
      - on: usdt:forms:many
        args: { number: 8, fine: 1 }
        metrics:
          - { gauge: a, value: number }
          - { gauge: b, value: fine }
      - on: usdt:forms:i16
        args: { third: 3 }
        metrics: [{ gauge: c, value: third }]
      - on: usdt:forms:globl
        metrics: [{ counter: d }]
      - function: no_such_function
        metrics: [{ counter: e }]";
    let ran = check(&config(&demo("forms"), probes));
    assert!(ran.out.contains("number = arg8 8f@"), "{}", ran.out);
    let told = ran.bad(2);
    let lines: Vec<&str> = told.lines().filter(|line| !line.trim_start().starts_with("help:")).collect();
    let expected: [(&str, &[&str]); 4] = [
        ("c.yaml:6:", &["argument \"number\" cannot be read", "floating-point", "note reads `-1@"]),
        ("c.yaml:11:", &["argument \"third\" has index 3", "has 1 arguments", "note reads `-2@"]),
        ("c.yaml:13:", &["no USDT probe forms:globl", "the nearest", "forms:global"]),
        ("c.yaml:15:", &["no function no_such_function"]),
    ];
    for (line, (place, words)) in lines.iter().zip(expected) {
        assert!(line.contains(place), "{place}: {line}");
        words.iter().for_each(|word| assert!(line.contains(word), "{word}: {line}"));
    }
    assert_eq!(lines.len(), expected.len() + 1, "{told}");
    assert!(told.contains("4 errors"), "{told}");
}

#[test]
fn non_program_file_is_a_single_error() {
    let scratch = Scratch::new();
    let text = scratch.write("text", "just text\n");
    for (file, reason) in [(text.as_str(), "not an ELF file"), ("/bin/true", "no USDT probes")] {
        let told = check(&config(file, "profile: [fibre, bitcoin-core]")).bad(2);
        assert!(told.contains(reason) && told.contains("1 error in "), "{told}");
    }
}

/// Returns the row of a probe in the table that attaching prints: state, sites, hits, lost.
fn row(out: &str, probe: &str) -> Vec<String> {
    let out = out.split("Attached for").nth(1).unwrap_or_else(|| panic!("nothing was attached:\n{out}"));
    let row = out.lines().find(|line| line.contains(probe)).unwrap_or_else(|| panic!("no {probe}:\n{out}"));
    row.split_whitespace().skip(2).map(str::to_owned).collect()
}

#[test]
fn attach_counts_hits_and_detaches() {
    let scratch = Scratch::new();
    let program = scratch.path("attached");
    std::fs::copy(demo("fibre-demo"), &program).expect("copy the demo");
    let program = program.display().to_string();
    let process = Running::start(Command::new(&program).args(["--rate", "50"]));
    let file = scratch.write("c.yaml", config(&program, "profile: [fibre, bitcoin-core]"));
    let out = exporter(&["check", "--attach", "--seconds", "2", &file]).good();
    for probe in ["udp:block_send_start", "validation:block_connected", "udp:block_race_winner"] {
        let cells = row(&out, probe);
        let number = |n: usize| cells[n].parse::<u64>().expect("a number");
        assert_eq!(cells[0], "attached", "{out}");
        assert_eq!((number(1), number(3)), (1, 0), "{out}");
        assert!(number(2) > 0, "{out}");
    }
    assert_eq!(row(&out, "mempool:added")[0], "absent", "{out}");
    drop(process);
}

#[test]
fn unprivileged_attach_is_rejected_by_the_kernel() {
    let scratch = Scratch::new();
    let file = scratch.write("c.yaml", config(&demo("fibre-demo"), "profile: fibre"));
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all", env!("CARGO_BIN_EXE_exporter")]);
    let told = ran(command.args(["check", "--attach", &file])).bad(3);
    assert!(told.contains("failed to load the BPF programs") && told.contains("CAP_BPF"), "{told}");
}

#[test]
fn errors_are_reported_before_attaching() {
    let scratch = Scratch::new();
    let probe = "probes: [{ on: \"usdt:forms:nope\", metrics: [{ counter: a }] }]";
    let ran = exporter(&["check", "--attach", &scratch.write("c.yaml", config(&demo("forms"), probe))]);
    assert!(!ran.out.contains("Attached for"), "{}", ran.out);
    ran.bad(2);
}

/// What the HTTP server cannot use is rejected before anything starts, together with other errors, and in the same way
/// by both commands.
#[test]
fn unusable_certificates_and_passwords_are_config_errors() {
    let scratch = Scratch::new();
    let made = || rcgen::generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
    let (one, other) = (made(), made());
    let cert = scratch.write("one.crt", one.cert.pem());
    let right = scratch.write("one.key", one.signing_key.serialize_pem());
    // Otherwise it is warned about.
    std::fs::set_permissions(&right, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("change the mode");
    let wrong = scratch.write("other.key", other.signing_key.serialize_pem());
    let garbage =
        scratch.write("garbage.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    let hash = scratch.write("hash", "$2b$12$tooshort\n");
    let with = |key: &str, more: &str| {
        let text = config(&demo("fibre-demo"), "profile: fibre");
        scratch.write("c.yaml", format!("tls_cert: {cert}\ntls_key: {key}\n{more}{text}"))
    };
    exporter(&["check", &with(&right, "")]).good();
    let password = format!("metrics_auth_username: u\nmetrics_auth_password_file: {hash}\n");
    for (key, more, errors) in [(&wrong, "", 1), (&garbage, "", 1), (&wrong, password.as_str(), 2)] {
        let file = with(key, more);
        let told = exporter(&["check", &file]).bad(2);
        assert_eq!(told.matches("c.yaml:").count(), errors, "{told}");
        assert_eq!(told.contains("looks like a bcrypt hash but is not a valid one"), errors == 2, "{told}");
        assert_eq!(exporter(&["--config", &file]).bad(2), told);
    }
}

#[test]
fn unused_argument_is_only_a_warning() {
    let probes = "probes:
      - on: usdt:udp:block_race_winner
        args: { unneeded: 2 }
        metrics: [{ counter: races_total }]";
    let ran = check(&config(&demo("fibre-demo"), probes));
    assert!(ran.err.starts_with("warning: ") && ran.err.contains("\"unneeded\""), "{}", ran.err);
    assert_eq!(ran.code, 0);
}

#[test]
fn missing_argument_information_is_reported() {
    let scratch = Scratch::new();
    let source = "__attribute__((noinline)) int wide(double x, int n) { return n + (int)x; }
                  int main(int n, char **v) { (void)v; return wide(1.5, n); }";
    let plain = scratch.compile("plain", "cc", source, &["-O1"]);
    let described = scratch.compile("described", "cc", source, &["-O1", "-g"]);
    let table = |binary: &str, args: &str| {
        let probes = format!(
            "probes:\n    - function: wide\n      {args}\n      metrics: [{{ counter: c_total, labels: {{ n: n }} }}]"
        );
        check(&config(binary, &probes)).good()
    };
    let untyped = table(&plain, "args: { n: 0 }");
    assert!(
        untyped.contains("note: n read as signed 64-bit integers")
            && untyped.contains("float and double do not count"),
        "{untyped}"
    );
    let typed = table(&plain, "args: { n: { index: 0, type: i32 } }");
    assert!(
        !typed.contains("signed 64-bit integers") && typed.contains("float and double do not count"),
        "{typed}"
    );

    let by_debug_information = table(&described, "args: { n: 0 }");
    assert!(by_debug_information.contains("n = arg0 %rdi (int n)"), "{by_debug_information}");
    assert!(
        by_debug_information.contains("double x (in no general register), 0: int n")
            && !by_debug_information.contains("64-bit integers"),
        "{by_debug_information}"
    );
    for (args, warned) in [
        ("args: { n: { index: 0, type: i64 } }", "warning: n is read as i64, but it is `int n`"),
        ("args: { n: { index: 0, type: string } }", "warning: n is read as text, but it is `int n`"),
        ("args: { n: 1 }", "warning: n is read at position 1, but"),
    ] {
        let table = table(&described, args);
        assert!(table.contains(warned), "{table}");
    }
}

/// Arguments that are needed at the end keep the names that the configuration gives them, and the plan says where they
/// are read and where they are used.
#[test]
fn arguments_saved_for_the_return_are_listed() {
    let scratch = Scratch::new();
    let source =
        "__attribute__((noinline)) int copy(char *to, const char *from, int n) { to[0] = from[0]; return n; }
                  int main(int n, char **v) { char to[9]; return copy(to, v[0], n); }";
    let binary = scratch.compile("copies", "cc", source, &["-O1", "-g"]);
    let probes = "probes:
      - function: copy
        returns: i32
        args: { to: { index: 0, type: string, at: return }, from: { index: 1, type: string }, n: 2 }
        metrics:
          - { histogram: copy_seconds, value: duration, labels: { to: to, from: from } }
          - { counter: copied_total, value: retval, labels: { n: n } }
      - { span: s_seconds, from: 'function:copy', to: 'function:main', by: thread, args: { n: 2 }, labels: { n: n } }";
    let table = check(&config(&binary, probes)).good();
    for line in [
        "to = arg0 %rdi (char * to), kept for the return",
        "from = arg1 %rsi (const char * from), kept for the return",
        "n = arg2 %rdx (int n), kept for the return",
        "to, read at the return",
        "from, read at the entry",
        "n = arg2 %rdx (int n), kept for the end",
        "n, read at the start",
    ] {
        assert!(table.contains(line), "{line}:\n{table}");
    }
    assert!(!table.contains("start:") && !table.contains("`type: string` reads the text"), "{table}");
    let missing =
        check(&config(&binary, "probes: [{ function: cpoy, metrics: [{ counter: a_total }] }]")).bad(2);
    assert!(missing.contains("nearest is copy") && missing.contains("--functions '*'"), "{missing}");
}

/// Arguments may be in variables that only a debug file has symbols for.
#[test]
fn debug_file_resolves_symbols_in_notes() {
    let scratch = Scratch::new();
    let source = r#"int main(void) { return 0; }
        __asm__(".data\nserved: .long 3\n.text\nsale: nop\nret\n"
            ".pushsection .note.stapsdt,\"\",\"note\"\n.balign 4\n.4byte 8, 994f-993f, 3\n.asciz \"stapsdt\"\n"
            "993: .8byte sale, 0, 0\n.asciz \"shop\"\n.asciz \"sale\"\n.asciz \"-4@served(%rip)\"\n"
            "994: .balign 4\n.popsection");
    "#;
    let binary = scratch.compile("shop", "cc", source, &[]);
    let debug = format!("{binary}.debug");
    let run =
        |arguments: &[&str]| assert!(Command::new("objcopy").args(arguments).status().unwrap().success());
    run(&["--only-keep-debug", &binary, &debug]);
    run(&["--strip-all", &format!("--add-gnu-debuglink={debug}"), &binary]);
    let probes =
        "probes: [{ on: 'usdt:shop:sale', args: { n: 0 }, metrics: [{ counter: a_total, value: n }] }]";
    assert!(check(&config(&binary, probes)).good().contains("n = arg0 -4@served(%rip)"));
    assert!(!exporter(&["probes", &binary]).good().contains("debug symbols"));
    std::fs::remove_file(&debug).unwrap();
    let told = check(&config(&binary, probes)).bad(2);
    assert!(told.contains("has no symbol `served`; install its debug symbols"), "{told}");
}

#[test]
fn discouraged_metric_names_are_noted() {
    let probes = "probes:
      - on: usdt:udp:block_race_winner
        metrics: [{ counter: races }]";
    let ran = check(&config(&demo("fibre-demo"), probes));
    assert!(
        ran.err.contains("note: ") && ran.err.contains("races: counter names should end in _total"),
        "{}",
        ran.err
    );
    assert_eq!(ran.code, 0);
}

#[test]
fn hashes_one_password_and_refuses_the_rest() {
    let hash = |password: &str| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_exporter"))
            .args(["hash-password", "--cost", "4"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("start the exporter");
        std::io::Write::write_all(&mut child.stdin.take().expect("its input"), password.as_bytes())
            .expect("write");
        child.wait_with_output().expect("wait")
    };
    let printed = hash("s3cret\r\n");
    let text = String::from_utf8(printed.stdout).expect("text");
    assert!(printed.status.success() && printed.stderr.is_empty() && text.ends_with('\n'), "{text}");
    assert!(bcrypt::verify("s3cret", text.trim_end()).expect("a hash"), "{text}");
    for (password, reason) in [
        ("\n", "is empty"),
        ("\u{feff}s3cret\n", "byte order mark"),
        ("s3cret\nanother line\n", "more than one line"),
        ("\ns3cret\n", "more than one line"),
        (&*"x".repeat(73), "longer than 72 bytes"),
    ] {
        let refused = hash(password);
        let told = String::from_utf8_lossy(&refused.stderr);
        assert!(
            refused.status.code() == Some(2) && refused.stdout.is_empty() && told.contains(reason),
            "{told}"
        );
    }
}

#[test]
fn warnings_of_the_start_about_certificates_are_shown() {
    let scratch = Scratch::new();
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let cert = scratch.write("node.crt", pair.cert.pem());
    let key = scratch.write("node.key", pair.signing_key.serialize_pem());
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .expect("change the mode");
    // The key is an EC key.
    let suites = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_RSA_WITH_AES_128_CBC_SHA";
    let tls = format!(
        "cert_file: {cert}, key_file: {key}, cipher_suites: [{suites}], curve_preferences: [X25519, CurveP521]"
    );
    let web = format!("web: {{ tls_server_config: {{ {tls} }} }}\n");
    let ran = check(&format!("{web}{}", config(&demo("fibre-demo"), "profile: fibre")));
    assert_eq!(ran.code, 0, "{}", ran.err);
    for warning in [
        "warning: clients that speak only TLS 1.2 cannot connect: none of cipher_suites is for",
        "unsafe permissions",
        "warning: cipher_suites: TLS_RSA_WITH_AES_128_CBC_SHA left out",
        "warning: curve_preferences: CurveP521 left out",
    ] {
        assert!(ran.err.contains(warning), "{warning}\n{}", ran.err);
    }
}

#[test]
fn unusable_paths_are_errors() {
    let with = |more: &str| check(&format!("{more}\n{}", config(&demo("fibre-demo"), "profile: fibre")));
    let told = with("log_file: /nowhere/exporter.log").bad(2);
    assert!(told.contains("failed to open the log file /nowhere/exporter.log: No such file"), "{told}");
    let both = with("log_file: /\nstate: pinned\nstate_directory: /tmp/state").bad(2);
    assert!(both.contains("failed to open the log file /: Is a directory"), "{both}");
    assert!(
        both.contains("failed to use /tmp/state for `state: pinned`: /tmp is not on a BPF file system"),
        "{both}"
    );
    assert!(both.contains("2 errors"), "{both}");
    let scratch = Scratch::new();
    let log = scratch.write("exporter.log", "");
    for path in [log.clone(), format!("{log}.new")] {
        with(&format!("log_file: {path}")).good();
    }
    assert!(!std::path::Path::new(&format!("{log}.new")).exists());
}

#[test]
fn unusable_files_of_slow_events_are_errors() {
    let scratch = Scratch::new();
    let path = |name: &str| scratch.path(name).display().to_string();
    let (new, foreign) = (path("state/events.db"), path("foreign.db"));
    let made = Command::new("python3")
        .args(["-c", "import sqlite3,sys; sqlite3.connect(sys.argv[1]).execute('create table t(a)')"])
        .arg(&foreign)
        .status();
    assert!(made.expect("run python3").success());
    let probes =
        "probes:\n    - { function: main, metrics: [{ histogram: h_seconds, value: duration, slow: 1 }] }";
    let with =
        |file: &str| format!("slow_events: {{ file: {file} }}\n{}", config(&demo("fibre-demo"), probes));
    check(&with(&new)).good();
    assert!(!scratch.path("state").exists());
    for (file, reason) in [
        ("/nowhere/at/all.db", "failed to make the directory for the file of slow events /nowhere/at/all.db"),
        (&foreign, "is a database of another program"),
        ("/", "failed to open the file of slow events /"),
    ] {
        let told = check(&with(file)).bad(2);
        assert!(told.contains(reason), "{told}");
    }
}

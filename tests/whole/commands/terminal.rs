//! `exporter check` on a terminal.

use std::process::{Command, Stdio};

use super::{Ran, Scratch, config, demo, exporter, ran};
use crate::support::demo::{Demo, private_copy};
use crate::support::exporter::{send_signal, wait_for_end};

/// Returns what `check` prints on a terminal with this number of columns.
fn on_a_terminal(columns: u32, before: &str, arguments: &str) -> Ran {
    let exporter = env!("CARGO_BIN_EXE_exporter");
    let line = format!("stty cols {columns} && export TERM=xterm {before} && {exporter} check {arguments}");
    ran(Command::new("script").args(["-qec", &line, "/dev/null"]))
}

fn widest(text: &str) -> usize {
    text.lines().map(|line| line.trim_end().chars().count()).max().unwrap_or_default()
}

#[test]
fn narrow_screen_shows_a_block_per_probe() {
    let scratch = Scratch::new();
    let file = scratch.write("c.yaml", config(&demo("fibre-demo"), "profile: fibre"));
    let narrow = on_a_terminal(80, "", &file);
    assert_eq!(narrow.code, 0, "{narrow:?}");
    // The program's path is a word that cannot be wrapped.
    let probes = narrow.out.split_once("fibre-demo").expect("the program").1;
    assert!(widest(probes) <= 80, "{probes}");
    for line in [
        "  udp:block_race_winner",
        "    sites 1, semaphores all",
        "    metric counter fibre_blocks_sent_total",
        "    metric histogram fibre_block_reconstruction_duration_seconds",
    ] {
        assert!(probes.lines().any(|shown| shown.trim_end() == line), "{line} in\n{probes}");
    }
    assert!(
        probes.contains("counter fibre_block_deliveries_total{") && !probes.contains("kernel: "),
        "{probes}"
    );
    let wide = on_a_terminal(400, "", &file);
    assert_eq!(wide.out.replace('\r', ""), exporter(&["check", &file]).good(), "as it is without a screen");
}

#[test]
fn target_line_wraps_and_functions_show_no_semaphores() {
    let scratch = Scratch::new();
    let probe = "probes: [{ function: f, metrics: [{ counter: f_total }] }]";
    let file = scratch.write("c.yaml", config("/nowhere/at/all/program", probe));
    let narrow = on_a_terminal(50, "", &file);
    assert!(widest(&narrow.out) <= 50 && narrow.out.contains("waiting for it"), "{narrow:?}");
    assert!(narrow.out.contains("sites ?\r\n"), "{narrow:?}");
}

#[test]
fn function_list_fits_a_narrow_screen() {
    let exporter = env!("CARGO_BIN_EXE_exporter");
    let program = demo("leaf");
    let line = format!("stty cols 60 && {exporter} probes {program} --functions 'main'");
    let narrow = ran(Command::new("script").args(["-qec", &line, "/dev/null"]));
    assert_eq!(narrow.code, 0, "{narrow:?}");
    assert!(narrow.out.contains("  main\r\n    offset 0x"), "{narrow:?}");
}

#[test]
fn lists_and_remarks_fit_the_screen() {
    let exporter = env!("CARGO_BIN_EXE_exporter");
    let leaf = demo("leaf");
    for columns in [40, 80] {
        for command in ["profiles".to_owned(), format!("probes {leaf}")] {
            let line = format!("stty cols {columns} && {exporter} {command}");
            let shown = ran(Command::new("script").args(["-qec", &line, "/dev/null"]));
            assert_eq!(shown.code, 0, "{shown:?}");
            // The path of the program is a single word, which cannot be wrapped.
            let out: String = shown
                .out
                .lines()
                .filter(|line| !line.contains(&leaf))
                .map(|line| format!("{line}\n"))
                .collect();
            assert!(widest(&out) <= columns, "{command}, {columns}: {out}");
        }
    }
}

#[test]
fn states_are_colored_unless_disabled() {
    let scratch = Scratch::new();
    let program = private_copy("fibre-demo", scratch.path("").as_path()).display().to_string();
    let file = scratch.write("c.yaml", config(&program, "profile: fibre"));
    let shown = |before| on_a_terminal(200, before, &format!("--attach --seconds 1 {file}")).out;
    let coloured = shown("");
    assert!(coloured.contains("\x1b[32mattached\x1b[0m"), "{coloured}");
    // Progress is shown in the meantime.
    assert!(coloured.contains(" of 1 s: ") && coloured.contains("Ctrl-C"), "{coloured}");
    let plain = shown("NO_COLOR=1");
    assert!(plain.contains("  attached  ") && !plain.contains("\x1b[32m"), "{plain}");
}

#[test]
fn ctrl_c_stops_and_prints_the_counts() {
    let scratch = Scratch::new();
    let program = private_copy("fibre-demo", scratch.path("").as_path());
    let yaml =
        format!("{}network:\n  interfaces: [lo]\n", config(&program.display().to_string(), "profile: fibre"));
    let file = scratch.write("c.yaml", yaml);
    let (out, err) = (scratch.path("out"), scratch.path("err"));
    let create = |path| Stdio::from(std::fs::File::create(path).expect("make a file"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_exporter"));
    command.args(["check", "--attach", "--seconds", "600", &file]).stdin(Stdio::null());
    let mut child = command.stdout(create(&out)).stderr(create(&err)).spawn().expect("start the exporter");
    let totals = Demo::start(&program, &["--rate", "0", "--blocks", "50", "--wait-attached"]).end();
    send_signal(child.id(), "INT");
    let status = wait_for_end(&mut child);
    let told = std::fs::read_to_string(&out).expect("what it printed");
    let wrong = std::fs::read_to_string(&err).expect("what it complained of");
    assert!(status.success(), "{status}: {told}{wrong}");
    assert!(told.contains(" s (interrupted) by "), "{told}");
    let row = told.lines().rfind(|line| line.contains("validation:block_connected")).expect("a row");
    let cells: Vec<_> = row.split_whitespace().collect();
    assert_eq!(cells[4], totals.fired("validation:block_connected").to_string(), "{row}");
    let lo: Vec<_> = told.lines().filter(|line| line.trim_start().starts_with("lo ")).collect();
    let directions: Vec<_> = lo.iter().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(directions, ["ingress", "egress"], "{told}");
    assert_eq!(wrong, "", "nobody watches");
}

//! What the exporter opens at startup, before it drops its privileges: ports and the log file, whoever owns it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use crate::support::demo::program;
use crate::support::exporter::{Place, Port, Setup, exporter, finish, send_signal, wait_for};

/// A user whose files root may write only with CAP_DAC_OVERRIDE, which the exporter does not keep.
const SOMEBODY: u32 = 31_337;

/// Runs a shell command in the network namespace of a process.
fn within(pid: u32, command: &str) -> String {
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["--net", "--target", &pid.to_string(), "sh", "-c", command]);
    let output = nsenter.output().expect("run nsenter");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn starts_with_low_ports_foreign_log_and_late_address() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let directory = place.path("theirs");
    fs::create_dir(&directory).expect("make a directory");
    let log = place.write("theirs/log", "");
    for (path, mode) in [(&directory, 0o700), (&log, 0o600)] {
        chown(path, Some(SOMEBODY), Some(SOMEBODY)).expect("give it away");
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("protect it");
    }
    // In a private network namespace, where no port is taken and the address does not exist yet.
    let exporter = Setup::fibre(&place, &demo)
        .yaml(&format!("bind: 192.0.2.7\nlog_file: {}\n", log.display()))
        .arguments(&["--port", "80", "--health-port", "81"])
        .through(&["unshare", "--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""])
        .start();
    exporter.wait_for_log("no interface has the address 192.0.2.7");
    within(exporter.pid(), "ip address add 192.0.2.7/32 dev lo");
    let scraped = within(exporter.pid(), "curl -sS --fail http://192.0.2.7/metrics");
    assert!(
        scraped.contains("\nfibre_exporter_errors_total{error_type=\"log_write_failed\"} 0\n"),
        "{scraped}"
    );
    assert_eq!(within(exporter.pid(), "curl -sS --fail http://192.0.2.7:81/health"), "ok\n");
    wait_for("the log in the other user's file", || {
        fs::read_to_string(&log).is_ok_and(|text| text.contains("Waiting for events"))
    });
}

#[test]
fn log_lines_lost_to_a_full_disk_are_counted() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let exporter = Setup::fibre(&place, &demo).yaml("log_file: /dev/full\n").start();
    exporter.wait_until_ready();
    let failed =
        exporter.scrape().value("fibre_exporter_errors_total", &[("error_type", "log_write_failed")]);
    assert!(failed > 0.0, "{}", exporter.log());
}

#[test]
fn log_file_that_cannot_be_reopened_is_reported_on_standard_output() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let directory = place.path("logs");
    fs::create_dir(&directory).expect("make a directory");
    let log = directory.join("exporter.log");
    let exporter = Setup::fibre(&place, &demo).yaml(&format!("log_file: {}\n", log.display())).start();
    exporter.wait_until_ready();
    fs::rename(&directory, place.path("former")).expect("move the directory");
    wait_for("the log to say so", || {
        // Something to log.
        send_signal(exporter.pid(), "HUP");
        exporter.log().contains("[ERROR] exporter: failed to reopen ")
    });
    exporter.stop();
}

/// Otherwise, the kernel would kill it with SIGXFSZ.
#[test]
fn log_lines_beyond_the_file_size_limit_are_counted() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let log = place.path("limited.log");
    // Limits only the log file: the reader of its standard output was started without a limit.
    let limited = ["bash", "-c", "exec > >(cat) 2>&1; ulimit -f 0; exec \"$0\" \"$@\""];
    let exporter =
        Setup::fibre(&place, &demo).yaml(&format!("log_file: {}\n", log.display())).through(&limited).start();
    exporter.wait_until_ready();
    let failed =
        exporter.scrape().value("fibre_exporter_errors_total", &[("error_type", "log_write_failed")]);
    assert!(failed > 0.0, "{}", exporter.log());
}

/// Otherwise, each limit would make it fail at a different point, in some cases with a panic.
#[test]
fn low_open_file_limit_is_reported_first() {
    let place = Place::new();
    let configuration = place.write(
        "config.yaml",
        "targets:\n- name: t\n  binary: /bin/true\n  probes:\n  - function: \"0x1000\"\n    metrics: [{ counter: starts_total }]\n",
    );
    for limit in [6, 8].into_iter().chain((48..128).step_by(8)) {
        let mut limited = Command::new("sh");
        let (metrics, health) = (Port::claim(), Port::claim());
        let ports = format!("--port {} --health-port {}", metrics.number, health.number);
        limited.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" --config \"$1\" {ports}")]);
        limited.args([exporter().get_program(), configuration.as_os_str()]);
        let (code, _, errors) = finish(&mut limited);
        assert_eq!(code, Some(1), "{limit}: {errors}");
        assert!(errors.contains(&format!("it may open {limit} files and needs at least 128")), "{errors}");
    }
}

/// Below the exporter's filter of system calls, which does not allow all ways to ask for a process.
#[test]
fn absent_process_id_is_a_warning() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let mut ended = Command::new("true").spawn().expect("run true");
    ended.wait().expect("wait for true");
    let exporter = Setup::fibre(&place, &demo).arguments(&["--pid", &ended.id().to_string()]).start();
    exporter.wait_for_log(&format!("Target bitcoind: no process has the id {}", ended.id()));
}

//! Temporary refusals are retried and reported as such.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::support::exporter::{Place, Setup};

fn yaml(binary: &Path) -> String {
    format!(
        "node_name: t\ntargets:\n- name: t\n  binary: {}\n  probes:\n  - function: main\n    metrics: [{{ counter: \
         main_total }}]\n",
        binary.display()
    )
}

fn compile(place: &Place, name: &str) -> std::path::PathBuf {
    let (source, binary) = (place.write("main.c", "int main(void) { return 0; }\n"), place.path(name));
    assert!(Command::new("cc").arg("-o").args([&binary, &source]).status().unwrap().success());
    binary
}

fn counts_a_run(exporter: &crate::support::exporter::Exporter, binary: &Path) {
    exporter.wait_until_ready();
    assert!(Command::new(binary).status().unwrap().success());
    assert!(exporter.text().lines().any(|line| line == "main_total{node=\"t\"} 1"), "{}", exporter.text());
}

#[test]
fn retries_when_out_of_file_descriptors() {
    let place = Place::new();
    let built = compile(&place, "built");
    let binary = place.path("program");
    let exporter = Setup::new(&place, yaml(&binary)).start();
    let limit = |files: &str| {
        let pid = exporter.pid().to_string();
        assert!(Command::new("prlimit").args(["--pid", &pid, files]).status().unwrap().success());
    };
    limit("--nofile=3:20000");
    std::fs::rename(&built, &binary).unwrap();
    exporter.wait_for_log("Too many open files");
    exporter.wait_for_log("LimitNOFILE");
    assert!(!exporter.log().contains("as root"), "{}", exporter.log());
    limit("--nofile=20000:20000");
    counts_a_run(&exporter, &binary);
}

#[test]
fn unreadable_file_is_attached_once_readable() {
    let place = Place::new();
    let binary = compile(&place, "program");
    let mode = |bits| std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(bits)).unwrap();
    mode(0o000);
    // Drop the capabilities that let root read everything.
    let exporter = Setup::new(&place, yaml(&binary))
        .through(&["setpriv", "--bounding-set", "-dac_override,-dac_read_search"])
        .start();
    exporter.wait_for_log("Permission denied");
    let (status, text) = exporter.health("/ready");
    assert!(status == 503 && text.contains("CAP_DAC_READ_SEARCH"), "{text}");
    mode(0o755);
    counts_a_run(&exporter, &binary);
}

#[test]
fn noexec_mount_is_reported() {
    let place = Place::new();
    let binary = compile(&place, "program");
    let directory = place.path("mounted");
    std::fs::create_dir(&directory).unwrap();
    let mount = format!(
        "mount -t tmpfs -o noexec none {0} && cp {1} {0} && exec \"$@\"",
        directory.display(),
        binary.display()
    );
    let exporter = Setup::new(&place, yaml(&directory.join("program")))
        .through(&["unshare", "--mount", "sh", "-c", &mount, "sh"])
        .start();
    exporter.wait_for_log("mounted with `noexec`");
    assert_eq!(exporter.health("/ready").0, 503);
}

#[test]
fn missing_kernel_btf_is_reported() {
    let place = Place::new();
    let binary = compile(&place, "program");
    let config = place.write("config.yaml", &yaml(&binary));
    let hide = "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", hide, "sh", env!("CARGO_BIN_EXE_exporter"), "check", "--attach"])
        .arg(&config)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(said.contains("/sys/kernel/btf/vmlinux") && !said.contains("as root"), "{said}");
}

//! What the exporter is permitted to do, and what it reports about missing permissions.

use std::fs::{self, Permissions};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;

use exporter::kernel::can_make_wait;

use crate::support::demo::{Forms, play, program};
use crate::support::exporter::{Exporter, Place, Setup, send_signal, wait_for};

/// Returns `/proc/PID/status` of each thread.
pub fn threads(exporter: &Exporter) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", exporter.pid())).expect("list threads");
    let paths: Vec<PathBuf> = tasks.map(|task| task.expect("a thread").path().join("status")).collect();
    // Request threads may end in the meantime.
    paths.iter().filter_map(|path| fs::read_to_string(path).ok()).collect()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
}

#[test]
fn every_thread_has_its_seccomp_filter() {
    let own = fs::read_to_string("/proc/self/status").expect("read the test's own status");
    let filters = |status: &str| field(status, "Seccomp_filters").parse::<u32>().expect("a number");
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let exporter = Setup::fibre(&place, &demo).start();
    exporter.wait_until_ready();
    let threads = threads(&exporter);
    assert!(threads.len() >= 4, "{threads:?}");
    for status in threads {
        assert_eq!((field(&status, "Seccomp"), field(&status, "NoNewPrivs")), ("2", "1"), "{status}");
        assert!(filters(&status) > filters(&own), "{status}");
    }
}

#[test]
fn only_the_gate_thread_runs_at_realtime_priority() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let exporter = Setup::fibre(&place, &demo).start();
    exporter.wait_until_ready();
    let tasks = fs::read_dir(format!("/proc/{}/task", exporter.pid())).expect("list threads");
    let stats = tasks.filter_map(|task| fs::read_to_string(task.expect("a thread").path().join("stat")).ok());
    // The policy is the 41st field, the name is the second.
    let policy_of = |stat: String| {
        let (name, fields) = stat.split_once('(').expect("a name").1.rsplit_once(") ").expect("fields");
        (name.to_string(), fields.split(' ').nth(38).expect("a policy").to_string())
    };
    let (gate, others): (Vec<_>, Vec<_>) = stats.map(policy_of).partition(|(name, _)| name == "exec-gate");
    // There is no such thread if the kernel itself makes programs wait.
    let expected = (!can_make_wait()).then(|| ("exec-gate".to_string(), libc::SCHED_RR.to_string()));
    assert_eq!(gate, Vec::from_iter(expected));
    let ordinary = libc::SCHED_OTHER.to_string();
    assert!(others.len() >= 4 && others.iter().all(|(_, policy)| *policy == ordinary), "{others:?}");
}

/// With exactly the capabilities that the shipped unit grants.
#[test]
fn unit_capabilities_suffice_for_programs_of_other_users() {
    let unit = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/fibre-exporter.service"));
    let unit = unit.expect("read the unit");
    let names =
        unit.lines().find_map(|line| line.strip_prefix("AmbientCapabilities=")).expect("its capabilities");
    let names: Vec<_> = names.split(' ').map(|name| name.trim_start_matches("CAP_").to_lowercase()).collect();
    for (attach, more) in [("multi", ""), ("perf", ",+sys_admin")] {
        let place = Place::new();
        let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
        fs::set_permissions(&demo, Permissions::from_mode(0o700)).expect("protect it");
        chown(&demo, Some(31_337), Some(31_337)).expect("give it away");
        let capabilities = format!("-all,+{}{more}", names.join(",+"));
        let exporter = Setup::fibre(&place, &demo)
            .yaml(&format!("attach: {attach}\n"))
            .nobody_with(&capabilities)
            .start();
        exporter.wait_until_ready();
        let totals = play(&demo, &["--rate", "0", "--blocks", "50", "--wait-attached"]);
        exporter.scrape().measured().assert_same(&totals.series("demo"));
        assert!(!exporter.log().contains("[WARNING]"), "{}", exporter.log());
    }
}

/// Where /proc hides processes of other users, one that is running must not be said not to exist.
#[test]
fn processes_that_proc_hides_are_not_said_to_be_missing() {
    let place = Place::new();
    let binary = place.copy_of(&program("forms"), "forms-hidden");
    let forms = Forms::start(&binary);
    for option in ["invisible", "noaccess"] {
        let target = |name: &str, selector: String| {
            format!(
                "- name: {name}\n  {selector}\n  probes:\n  - on: usdt:forms:i32\n    metrics:\n    \
                 - {{ counter: {name}_total }}\n"
            )
        };
        let yaml = format!(
            "targets:\n{}{}{}",
            target("by_name", "process: forms-hidden".into()),
            target("by_id", format!("pid: {}", forms.pid())),
            target("by_library", "process: forms-hidden\n  library: libc.so.6".into()),
        );
        let mount = format!("mount -t proc -o hidepid={option} proc /proc && exec \"$@\"");
        let exporter = Setup::new(&place, yaml)
            .through(&["unshare", "--mount", "sh", "-c", &mount, "sh"])
            .nobody_with("-all,+bpf,+perfmon")
            .start();
        for target in ["by_name", "by_id", "by_library"] {
            let (_, reasons) = exporter.health("/ready");
            let reason = reasons.lines().find(|line| line.starts_with(target)).expect("a reason");
            assert!(reason.ends_with("CAP_SYS_PTRACE is needed"), "{option}: {reason}");
        }
    }
}

#[test]
fn two_concurrent_exporters_count_the_same() {
    let places = [Place::new(), Place::new()];
    let binary = places[0].copy_of(&program("forms"), "forms");
    let yaml = format!(
        "targets:\n- name: forms\n  binary: {}\n  probes:\n  - on: usdt:forms:i32\n    metrics:\n    \
         - {{ counter: forms_fired_total }}\n",
        binary.display()
    );
    let mut forms = Forms::start(&binary);
    let [first, second] = places.each_ref().map(|place| Setup::new(place, yaml.clone()).start());
    let fired = |exporter: &Exporter| exporter.scrape().value("forms_fired_total", &[]);
    first.wait_until_ready();
    second.wait_until_ready();
    forms.fire("i32", 1000);
    let before = fired(&first);
    assert!(before > 0.0);
    assert_eq!(fired(&second), before);
    first.stop();
    forms.fire("i32", 1000);
    assert_eq!(fired(&second), 2.0 * before);
}

#[test]
fn attached_probes_count_after_dropping_all_privileges() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let later = place.path("later");
    let exporter = Setup::fibre(&place, &demo).yaml("keep_privileges: none\n").start();
    exporter.wait_for_log("All privileges dropped");
    for status in threads(&exporter) {
        for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
            assert_eq!(field(&status, set), "0000000000000000", "{set}: {status}");
        }
    }
    let totals = play(&demo, &["--rate", "0", "--blocks", "50", "--wait-attached"]);
    exporter.scrape().measured().assert_same(&totals.series("demo"));
    // A reload that changes no probe works; one that needs the kernel is rejected with a reason, and changes nothing.
    let config = place.path("config.yaml");
    let text = fs::read_to_string(&config).expect("read the configuration");
    let reload = |text: &str| {
        fs::write(&config, text).expect("write the configuration");
        send_signal(exporter.pid(), "HUP");
    };
    reload(&format!("{text}log_level: DEBUG\n"));
    exporter.wait_for_log("Configuration reloaded");
    fs::copy(program("forms"), &later).expect("copy a program");
    let more = format!(
        "targets:\n- name: later\n  binary: {}\n  probes:\n  - on: usdt:forms:i32\n    metrics:\n    \
         - {{ counter: forms_fired_total }}\n",
        later.display()
    );
    reload(&format!("{text}{more}"));
    exporter.wait_for_log("The configuration was not reloaded");
    exporter.wait_for_log("`keep_privileges: none`): restart the exporter");
    exporter.scrape().measured().assert_same(&totals.series("demo"));
}

#[test]
fn later_targets_are_reported_after_dropping_privileges() {
    let place = Place::new();
    let directory = place.path("theirs");
    fs::create_dir(&directory).expect("make a directory");
    let binary = directory.join("forms");
    let yaml = format!(
        "keep_privileges: none\ntargets:\n- name: forms\n  binary: {}\n  probes:\n  - on: usdt:forms:i32\n    metrics:\n    \
         - {{ counter: forms_fired_total }}\n",
        binary.display()
    );
    let exporter = Setup::new(&place, yaml).start();
    exporter.wait_for_log("not attached when all privileges were dropped");
    fs::copy(program("forms"), place.path("forms")).expect("copy a program");
    chown(place.path("forms"), Some(31_337), Some(31_337)).expect("give it away");
    fs::set_permissions(place.path("forms"), Permissions::from_mode(0o700)).expect("protect it");
    fs::rename(place.path("forms"), &binary).expect("move it");
    wait_for("the reason", || exporter.health("/ready").1.contains("keep_privileges: none"));
}

/// As under `ip netns exec`, `/sys` has no cgroups. Sockets that are open before the exporter starts belong to the process
/// that has them open: its descriptors are borrowed, which nothing else needs.
#[test]
fn open_sockets_are_attributed_where_cgroups_are_hidden() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let client = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
    let _server = listener.accept().expect("its other end");
    let place = Place::new();
    let network = "node_name: test\nnetwork: { interfaces: [lo], count: { processes: true } }\n";
    let hidden =
        ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /sys/fs/cgroup && exec \"$@\"", "sh"];
    let exporter = Setup::new(&place, network).through(&hidden).start();
    exporter.wait_until_ready();
    let own = fs::read_to_string("/proc/self/comm").expect("the test's own name");
    let labels = [("direction", "egress"), ("process", own.trim_end())];
    exporter.scrape_until("packets of a connection that was open before", |metrics| {
        (&client).write_all(b"a").expect("the connection");
        metrics.sum("network_process_packets_total", &labels) > 3.0
    });
}

//! The process itself: how it ends, what it may do, and what it leaves behind.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use libbpf_rs::query::{LinkInfoIter, MapInfoIter, ProgInfoIter};

use crate::privileges::threads;
use crate::support::demo::{Demo, Forms, I32_SITES, program};
use crate::support::exporter::{Exporter, Place, Setup, TIMEOUT, wait_for};

/// Starts an exporter that traces a probe of `forms`, which reports its semaphore.
fn traces_forms(place: &Place, forms: &std::path::Path) -> Exporter {
    let exporter = Setup::new(place, forms_config(forms)).start();
    exporter.wait_until_ready();
    exporter
}

pub fn forms_config(forms: &std::path::Path) -> String {
    format!(
        "targets:\n\
         - name: forms\n  \
           binary: {}\n  \
           probes:\n  \
           - on: usdt:forms:i32\n    \
             metrics:\n    \
             - {{counter: forms_fired_total, help: Fired.}}\n",
        forms.display()
    )
}

#[test]
fn exits_with_0_on_a_signal_under_load() {
    for signal in ["TERM", "INT"] {
        let place = Place::new();
        let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
        let mut exporter = Setup::fibre(&place, &demo).arguments(&["--verbose"]).secure().start();
        exporter.wait_until_ready();
        // Events arrive, one client is silent, and another was served and stays connected.
        let demo = Demo::start(&demo, &["--rate", "2000"]);
        let _silent = TcpStream::connect((Ipv4Addr::LOCALHOST, exporter.port)).expect("connect");
        exporter.scrape();
        let status = exporter.end(signal);
        assert!(status.success(), "SIG{signal}: {status}\n{}", exporter.log());
        let log = exporter.log();
        assert!(log.contains(&format!("SIG{signal}: stopping")), "{log}");
        assert!(log.ends_with("[INFO] exporter: Stopped\n"), "{log}");
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, exporter.port)).is_err(), "it still listens");
        demo.stop();
    }
}

/// A service manager that receives the messages of sd_notify(3).
pub struct Manager {
    pub socket: PathBuf,
    told: UnixDatagram,
}

impl Manager {
    pub fn new(place: &Place) -> Self {
        let socket = place.path("notify");
        let told = UnixDatagram::bind(&socket).expect("the manager's socket");
        told.set_read_timeout(Some(TIMEOUT)).expect("a time-out");
        Self { socket, told }
    }

    /// Receives the next message, skipping those that store sockets.
    pub fn told(&self) -> String {
        std::iter::repeat_with(|| self.any())
            .find(|message| !message.starts_with("FDSTORE=1\n"))
            .expect("one")
    }

    /// Receives the next message.
    fn any(&self) -> String {
        let mut message = [0; 1024];
        let length = self.told.recv(&mut message).expect("a message to the manager");
        String::from_utf8_lossy(&message[..length]).into_owned()
    }
}

/// sd_notify(3): which notifications systemd receives, and when.
#[test]
fn notifies_systemd_of_ready_watchdog_and_stopping() {
    let place = Place::new();
    let forms = place.copy_of(&program("forms"), "forms");
    let manager = Manager::new(&place);
    let mut exporter = Setup::new(&place, forms_config(&forms))
        .environment("NOTIFY_SOCKET", &manager.socket.display().to_string())
        .environment("WATCHDOG_USEC", "300000")
        .start();
    let ready = manager.told();
    assert!(ready.starts_with("READY=1\n"), "{ready}");
    assert!(ready.contains("STATUS=Serving metrics at http://"), "{ready}");
    assert!(ready.ends_with(&format!(":{}/metrics\n", exporter.port)), "{ready}");
    // The notification is true when it is sent.
    exporter.scrape();
    for _ in 0..3 {
        assert_eq!(manager.told(), "WATCHDOG=1\n");
    }
    exporter.end("TERM");
    let last = std::iter::from_fn(|| Some(manager.told())).find(|message| message != "WATCHDOG=1\n");
    assert!(last.expect("a last message").starts_with("STOPPING=1\n"));
}

/// Listens like a manager that has stored sockets, on the configured ports and on a port of an earlier configuration,
/// and starts the exporter with these sockets.
const KEPT: &str = r#"
import os, re, socket, sys
config = open(sys.argv[sys.argv.index("--config") + 1]).read()
ports = [int(re.search(name + r"_port: (\d+)", config).group(1)) for name in ("metrics", "health")]
sockets = [socket.create_server(("127.0.0.1", port)) for port in ports] + [socket.create_server(("127.0.0.1", 0))]
for n, s in enumerate(sockets):
    os.dup2(s.fileno(), 100 + n)
for n in range(3):
    os.dup2(100 + n, 3 + n)
os.closerange(6, 200)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="3", LISTEN_FDNAMES="kept-port-1:kept-port-2:kept-port-3")
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn stored_sockets_are_reused_and_stored_again() {
    let place = Place::new();
    let forms = place.copy_of(&program("forms"), "forms");
    let manager = Manager::new(&place);
    // The ports are already bound: binding them again would fail.
    let exporter = Setup::new(&place, forms_config(&forms))
        .environment("NOTIFY_SOCKET", &manager.socket.display().to_string())
        .through(&["python3", "-c", KEPT])
        .start();
    exporter.wait_until_ready();
    exporter.scrape();
    assert_eq!(manager.any(), "FDSTOREREMOVE=1\nFDNAME=kept-port-3\n");
    assert_eq!(manager.any(), format!("FDSTORE=1\nFDNAME=kept-port-{}\n", exporter.port));
    assert_eq!(manager.any(), format!("FDSTORE=1\nFDNAME=kept-port-{}\n", exporter.health_port));
}

/// sd-daemon(3): a priority before each line, and no additional timestamp. JOURNAL_STREAM alone is not sufficient: a
/// child whose output is redirected inherits it.
#[test]
fn journal_gets_priorities_and_files_get_timestamps() {
    let place = Place::new();
    let forms = place.copy_of(&program("forms"), "forms");
    let output = place.write("log", "").metadata().expect("the log's inode");
    let run = |inode: u64| {
        let mut exporter = Setup::new(&place, forms_config(&forms))
            .environment("JOURNAL_STREAM", &format!("{}:{inode}", output.dev()))
            .start();
        exporter.end("TERM");
        exporter.log()
    };
    let journal = run(output.ino());
    assert!(journal.lines().all(|line| line.starts_with('<')), "{journal}");
    assert!(journal.contains("<6>Waiting for events...\n"), "{journal}");
    let elsewhere = run(1);
    assert!(elsewhere.contains(" [INFO] exporter: Waiting for events...\n"), "{elsewhere}");
}

#[test]
fn semaphore_is_raised_only_while_attached() {
    let place = Place::new();
    let binary = place.copy_of(&program("forms"), "forms");
    let mut forms = Forms::start(&binary);
    assert_eq!(forms.semaphore("forms:i32"), 0);
    for signal in ["TERM", "INT", "KILL"] {
        let mut exporter = traces_forms(&place, &binary);
        assert_eq!(forms.semaphore("forms:i32"), I32_SITES, "raised in a process that ran before");
        assert_eq!(Forms::start(&binary).semaphore("forms:i32"), I32_SITES, "and in one that starts after");
        assert_eq!(forms.semaphore("forms:u32"), 0, "not of a probe that nobody asked for");
        // The kernel raises it once for all tracers of a site: it stays raised as long as one of them remains.
        let second = traces_forms_beside(&binary);
        drop(second);
        let counted = exporter.scrape().value("forms_fired_total", &[]);
        assert_eq!(forms.semaphore("forms:i32"), I32_SITES);
        forms.fire("i32", 5);
        assert_eq!(exporter.scrape().value("forms_fired_total", &[]), counted + 5.0);
        exporter.end(signal);
        // After SIGKILL, the kernel removes the probes asynchronously.
        wait_for("the semaphore to be lowered", || forms.semaphore("forms:i32") == 0);
        assert_eq!(forms.fire("i32", 5)["fired"], 5, "the program goes on, SIG{signal}");
    }
}

#[test]
fn leaves_nothing_in_the_kernel_after_any_exit() {
    for attach in ["auto", "perf"] {
        for signal in ["TERM", "KILL"] {
            let place = Place::new();
            let binary = place.copy_of(&program("forms"), "forms");
            let mut exporter =
                Setup::new(&place, forms_config(&binary)).yaml(&format!("attach: {attach}\n")).start();
            exporter.wait_until_ready();
            let held = held_in_kernel(exporter.pid());
            for kind in ["link_id:", "prog_id:", "map_id:"] {
                assert!(held.iter().any(|(of, _)| *of == kind), "no {kind} among {held:?}");
            }
            assert!(held.is_subset(&all_in_kernel()), "{held:?}");
            exporter.end(signal);
            // The kernel frees the objects asynchronously.
            wait_for("links, programs and maps to go", || held.is_disjoint(&all_in_kernel()));
        }
    }
}

/// Links, programs and maps by their IDs, which the kernel does not reuse.
pub type Held = BTreeSet<(&'static str, u32)>;

/// Returns the objects that the process holds.
pub fn held_in_kernel(pid: u32) -> Held {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("list descriptors");
    let texts = descriptors.map(|at| std::fs::read_to_string(at.expect("a descriptor").path()));
    let mut held = Held::new();
    for text in texts.map_while(Result::ok) {
        for line in text.lines() {
            for kind in ["link_id:", "prog_id:", "map_id:"] {
                held.extend(line.strip_prefix(kind).map(|id| (kind, id.trim().parse().expect("a number"))));
            }
        }
    }
    held
}

/// Returns all objects in the kernel.
pub fn all_in_kernel() -> Held {
    let links = LinkInfoIter::default().map(|link| ("link_id:", link.id));
    let programs = ProgInfoIter::default().map(|program| ("prog_id:", program.id));
    let maps = MapInfoIter::default().map(|map| ("map_id:", map.id));
    links.chain(programs).chain(maps).collect()
}

/// Starts the exporter in a separate directory, which must outlive it.
fn traces_forms_beside(forms: &std::path::Path) -> (Exporter, Place) {
    let place = Place::new();
    let exporter = traces_forms(&place, forms);
    (exporter, place)
}

#[test]
fn every_thread_keeps_only_six_capabilities() {
    let dac_read_search = 1 << 2;
    let lease = 1 << 28;
    let sys_ptrace = 1 << 19;
    let sys_admin = 1 << 21;
    let perfmon = 1 << 38;
    let bpf = 1 << 39;
    let checkpoint_restore = 1 << 40;
    let kept: u64 = dac_read_search | lease | sys_ptrace | perfmon | bpf | checkpoint_restore;
    for (attach, expected) in [("multi", kept), ("perf", kept | sys_admin)] {
        let place = Place::new();
        let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
        let exporter = Setup::fibre(&place, &demo).yaml(&format!("attach: {attach}\n")).start();
        exporter.wait_until_ready();
        let threads = threads(&exporter);
        assert!(threads.len() >= 4, "{threads:?}");
        for status in threads {
            let set = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)).expect(name);
                u64::from_str_radix(line.trim(), 16).expect("a set in hexadecimal")
            };
            for name in ["CapEff:", "CapPrm:", "CapBnd:"] {
                assert_eq!(set(name), expected, "{name} of {attach}: {status}");
            }
            assert_eq!((set("CapInh:"), set("CapAmb:")), (0, 0), "{status}");
        }
    }
}

#[test]
fn four_capabilities_suffice_without_root() {
    let place = Place::new();
    let demo = place.copy_of(&program("fibre-demo"), "bitcoind");
    let capabilities = "-all,+bpf,+perfmon,+sys_ptrace,+dac_read_search";
    let exporter = Setup::fibre(&place, &demo).nobody_with(capabilities).start();
    exporter.wait_until_ready();
    let totals = crate::support::demo::play(&demo, &["--rate", "0", "--blocks", "50", "--wait-attached"]);
    exporter.scrape().measured().assert_same(&totals.series("demo"));
    assert!(!exporter.log().contains("[WARNING]"), "{}", exporter.log());
}

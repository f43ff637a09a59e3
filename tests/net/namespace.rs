//! Unnamed network namespaces: each belongs to a thread, and disappears with it and everything in it.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Output};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce() + Send>;

/// A namespace in which closures and commands are run.
pub struct Namespace {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// The thread's ID, by which `ip link set ... netns` identifies the namespace.
    id: i32,
}

impl Namespace {
    pub fn new() -> Self {
        let (jobs, queue) = channel::<Job>();
        let (ready, started) = channel();
        let thread = std::thread::spawn(move || {
            // SAFETY: the system call takes no pointers and affects this thread alone.
            let made = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(
                made,
                0,
                "no network namespace: {}; this test needs root",
                std::io::Error::last_os_error()
            );
            // SAFETY: as above.
            ready.send(unsafe { libc::gettid() }).unwrap();
            for job in queue {
                job();
            }
        });
        let id = started.recv().expect("the thread has a namespace");
        Self { jobs: Some(jobs), thread: Some(thread), id }
    }

    /// Returns the ID by which `ip link` identifies the namespace.
    pub fn id(&self) -> i32 {
        self.id
    }

    /// Runs a closure inside the namespace.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel();
        let job = Box::new(move || done.send(job()).expect("the test waits"));
        self.jobs.as_ref().unwrap().send(job).expect("the thread lives");
        result.recv().expect("the job did not finish; see its panic above")
    }

    /// Runs a command inside the namespace, which must succeed, and returns its output.
    pub fn command(&self, line: &str) -> String {
        let output = self.output(line);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{line}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// Runs a command inside the namespace.
    pub fn output(&self, line: &str) -> Output {
        let words: Vec<String> = line.split_whitespace().map(String::from).collect();
        let shown = line.to_string();
        self.run(move || {
            Command::new(&words[0])
                .args(&words[1..])
                .output()
                .unwrap_or_else(|error| panic!("{shown}: {error}"))
        })
    }

    /// Returns the kernel's own counters of an interface.
    pub fn statistics(&self, interface: &str) -> Statistics {
        Statistics::read(&self.command(&format!("ip -s -j link show dev {interface}")))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.jobs.take());
        let joined = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(joined, Some(Ok(()))), "a job in the namespace panicked");
        }
    }
}

/// The kernel's statistics of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub tx_dropped: u64,
}

impl Statistics {
    /// Parses the output of `ip -s -j link show` for one interface.
    pub fn read(text: &str) -> Self {
        let json: serde_json::Value = serde_json::from_str(text).expect("JSON of ip");
        let number =
            |direction: &str, what: &str| json[0]["stats64"][direction][what].as_u64().expect("a number");
        Statistics {
            rx_packets: number("rx", "packets"),
            rx_bytes: number("rx", "bytes"),
            tx_packets: number("tx", "packets"),
            tx_bytes: number("tx", "bytes"),
            tx_dropped: number("tx", "dropped"),
        }
    }
}

/// The addresses of the two ends.
pub const HERE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub const THERE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

const HERE_MAC: &str = "02:00:00:00:99:01";
const THERE_MAC: &str = "02:00:00:00:99:02";

/// Creates two namespaces with a veth pair between them, `exn0` here and `exn1` there, down and without frames so far.
pub fn pair() -> (Namespace, Namespace) {
    let (here, there) = (Namespace::new(), Namespace::new());
    connect(&here, &there);
    (here, there)
}

/// Creates the veth pair.
pub fn connect(here: &Namespace, there: &Namespace) {
    connect_with("", here, there);
}

/// Creates the veth pair with this index for the end here, which may have been used before.
pub fn connect_at(index: i32, here: &Namespace, there: &Namespace) {
    connect_with(&format!("index {index}"), here, there);
}

fn connect_with(options: &str, here: &Namespace, there: &Namespace) {
    here.command(&format!(
        "ip link add exn0 {options} address {HERE_MAC} type veth peer name exn1 address {THERE_MAC} netns {}",
        there.id
    ));
    here.command(&format!("ip addr add {HERE}/24 dev exn0"));
    there.command(&format!("ip addr add {THERE}/24 dev exn1"));
    here.command("ip addr add fd99::1/64 dev exn0 nodad");
    there.command("ip addr add fd99::2/64 dev exn1 nodad");
}

/// Brings both ends up. Frames only flow from now on, so programs attached before see all of them. The far end comes
/// first: frames sent to an end that is down pass our egress program and are then dropped by the device.
pub fn up(here: &Namespace, there: &Namespace) {
    here.command("ip link set lo up");
    there.command("ip link set lo up");
    there.command("ip link set exn1 up");
    here.command("ip link set exn0 up");
    for (end, name) in [(here, "exn0"), (there, "exn1")] {
        // The carrier is detected a moment later, and until then frames are dropped.
        let is_up = || end.command(&format!("ip link show dev {name}")).contains("state UP");
        let came_up = (0..3000).any(|_| {
            is_up() || {
                std::thread::sleep(std::time::Duration::from_millis(10));
                false
            }
        });
        assert!(came_up, "{name} does not come up");
    }
    // Static neighbors: nothing waits for address resolution, whose queue would lose some packets.
    here.command(&format!("ip neigh replace {THERE} lladdr {THERE_MAC} nud permanent dev exn0"));
    there.command(&format!("ip neigh replace {HERE} lladdr {HERE_MAC} nud permanent dev exn1"));
}

/// Sends a frame unchanged, `times` times, from an interface of the calling thread's network namespace.
pub fn send_raw(interface: &str, frame: &[u8], times: usize) {
    send_by(&raw_socket(), interface, frame, times);
}

/// Opens a packet socket in the calling thread's network namespace, which receives nothing.
pub fn raw_socket() -> OwnedFd {
    // SAFETY: the kernel created the descriptor for this caller alone.
    unsafe {
        let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        assert!(socket >= 0, "no raw socket: {}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(socket)
    }
}

/// Like [`send_raw`], but with an existing socket.
pub fn send_by(socket: &OwnedFd, interface: &str, frame: &[u8], times: usize) {
    let name = std::ffi::CString::new(interface).unwrap();
    // SAFETY: the name is NUL-terminated, and the lengths of the address and the frame are given; all outlive the
    // calls.
    unsafe {
        let mut to: libc::sockaddr_ll = std::mem::zeroed();
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
        to.sll_halen = 6;
        for _ in 0..times {
            let size = size_of::<libc::sockaddr_ll>() as u32;
            let socket = socket.as_raw_fd();
            let sent =
                libc::sendto(socket, frame.as_ptr().cast(), frame.len(), 0, (&raw const to).cast(), size);
            assert_eq!(sent, frame.len() as isize, "{}", std::io::Error::last_os_error());
        }
    }
}

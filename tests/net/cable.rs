//! A veth pair as a cable: a built exporter counts on one end, the other belongs to another machine.

use std::io::Read;
use std::process::{Child, Command, Stdio};

use crate::counting::until;
use crate::namespace::{Namespace, Statistics};
use crate::support::bpffs::BpfFs;
use crate::support::exporter::{Exporter, Place, Setup, send_signal};
use crate::support::exposition::Metrics;

/// A pair of interfaces between the exporter's network namespace, which is that of this program, and another one.
pub struct Cable {
    pub name: String,
    pub there: Namespace,
}

impl Cable {
    /// Creates the pair, down and without frames so far.
    pub fn lay() -> Self {
        let cable = Self { name: format!("exp{}", std::process::id()), there: Namespace::new() };
        cable.connect();
        cable
    }

    pub fn connect(&self) {
        let Self { name, there } = self;
        run(&format!("ip link add {name} type veth peer name exn1 netns {}", there.id()));
        run(&format!("ip addr add {}/30 dev {name}", address(1)));
        there.command(&format!("ip addr add {}/30 dev exn1", address(2)));
    }

    /// Brings both ends up, the far end first: frames sent to an end that is down pass the egress program and are then
    /// dropped.
    pub fn up(&self) {
        self.there.command("ip link set exn1 up");
        run(&format!("ip link set {} up", self.name));
        until("the pair is up", || run(&format!("ip link show dev {}", self.name)).contains("state UP"));
    }

    /// Starts traffic in both directions, which lasts until dropped.
    pub fn traffic(&self) -> Traffic {
        let to = address(1);
        Traffic(self.there.run(move || {
            let mut ping = Command::new("ping");
            ping.args(["-q", "-i", "0.002", &to]).stdout(Stdio::piped()).spawn().expect("start ping")
        }))
    }

    /// Returns whether the exporter's end answers the other one.
    pub fn pings(&self) -> bool {
        self.there.output(&format!("ping -c 1 -W 1 -q {}", address(1))).status.success()
    }

    /// Returns the kernel's own counters.
    pub fn kernel(&self) -> Statistics {
        Statistics::read(&run(&format!("ip -s -j link show dev {}", self.name)))
    }

    pub fn yaml(&self, more: &str) -> String {
        format!("node_name: test\nnetwork: {{ interfaces: [{}]{more} }}\n", self.name)
    }

    /// Starts an exporter and waits until it counts.
    pub fn start(&self, place: &Place, bpf: &BpfFs, more: &str) -> Exporter {
        let exporter = Setup::new(place, self.yaml(more)).yaml(&bpf.config()).start();
        exporter.wait_until_ready();
        exporter
    }

    pub fn ours(&self, metrics: &Metrics) -> [f64; 2] {
        ["xdp_packets_total", "tc_egress_packets_total"]
            .map(|name| metrics.sum(name, &[("interface", &self.name)]))
    }

    /// Asserts that the exporter has counted what the kernel has, at a moment without traffic.
    pub fn agrees_with_the_kernel(&self, exporter: &Exporter) {
        let (mut kernel, mut ours) = (self.kernel(), [0.0; 2]);
        until("nothing crossed between two readings", || {
            let before = kernel;
            ours = self.ours(&exporter.scrape());
            std::thread::sleep(std::time::Duration::from_millis(20));
            kernel = self.kernel();
            kernel == before
        });
        let expected = [kernel.rx_packets, kernel.tx_packets].map(|packets| packets as f64);
        assert_eq!(ours, expected, "{kernel:?} {}", exporter.log());
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.name]).status();
    }
}

/// Running traffic, ended when dropped.
pub struct Traffic(Child);

impl Traffic {
    /// Ends the traffic and asserts that there was not a single answer.
    pub fn end_unanswered(mut self, mode: &str) {
        send_signal(self.0.id(), "INT");
        let mut said = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut said).expect("what ping says");
        assert!(said.contains(" 0 received"), "{mode}: {said}");
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        send_signal(self.0.id(), "INT");
        let _ = self.0.wait();
    }
}

/// Returns an address in a subnet that no concurrent test uses.
pub fn address(host: u8) -> String {
    let number = std::process::id() % (1 << 14);
    format!("10.{}.{}.{}", 100 + (number >> 10), number >> 2 & 255, (number & 3) * 64 + u32::from(host))
}

/// Runs a command in the exporter's network namespace.
pub fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().expect("a command")).args(words).output().expect("run it");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

//! What attribution (`cgroups`, `processes`) costs a packet: a socket sends to another one over the loopback device, and
//! one thread does all the work, the kernel's included. Turns without programs, and with the programs of each setting,
//! take turns in one run; each row compares their medians.
//!
//! Usage: `cargo bench --bench sockets -- [--rounds N] [--markdown FILE]`
//!
//! Needs root and cgroup v2. The programs are attached to a cgroup of this process, so that nothing else runs them.

mod support;

#[allow(clippy::all, clippy::pedantic)]
mod programs {
    include!(concat!(env!("OUT_DIR"), "/sockets.skel.rs"));
}

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, OpenObject};
use rustix::time::{ClockId, clock_gettime};

use programs::generated::{SocketsSkel, SocketsSkelBuilder};
use support::{Options, Result};

const MESSAGES: usize = 20_000;
const MESSAGE: usize = 64;
/// Each with `cgroups`, `processes`.
const SETTINGS: [(&str, bool, bool); 3] =
    [("cgroups", true, false), ("processes", false, true), ("cgroups and processes", true, true)];

/// A cgroup with this process in it, which goes back when it is dropped.
struct Group {
    path: PathBuf,
    before: PathBuf,
}

impl Group {
    fn enter() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let root = mounts.find(|words| words.get(2) == Some(&"cgroup2")).ok_or("no cgroup2")?[1].to_string();
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).ok_or("no cgroup of version 2")?;
        let root = PathBuf::from(root);
        let path = root.join(format!("bench-sockets-{}", std::process::id()));
        fs::create_dir(&path)?;
        fs::write(path.join("cgroup.procs"), "0")?;
        Ok(Self { before: root.join(own), path })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A destructor cannot report an error.
        let _ = fs::write(self.before.join("cgroup.procs"), "0");
        let _ = fs::remove_dir(&self.path);
    }
}

/// The kinds of traffic.
const TRAFFIC: [&str; 3] = ["UDP", "UDP, connected", "TCP"];

/// The ends of one kind.
enum Traffic {
    Udp { from: UdpSocket, to: UdpSocket, address: SocketAddr },
    ConnectedUdp { from: UdpSocket, to: UdpSocket },
    Tcp { from: TcpStream, to: TcpStream },
}

impl Traffic {
    /// In the order of [`TRAFFIC`].
    fn all() -> Result<[Self; TRAFFIC.len()]> {
        let pair =
            || Ok::<_, std::io::Error>((UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?));
        let (from, to) = pair()?;
        let udp = Self::Udp { address: to.local_addr()?, from, to };
        let (from, to) = pair()?;
        from.connect(to.local_addr()?)?;
        to.connect(from.local_addr()?)?;
        let connected = Self::ConnectedUdp { from, to };
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let from = TcpStream::connect(listener.local_addr()?)?;
        from.set_nodelay(true)?;
        let to = listener.accept()?.0;
        Ok([udp, connected, Self::Tcp { from, to }])
    }

    /// Returns the nanoseconds of CPU time per message.
    fn run(&mut self) -> Result<f64> {
        let now = || {
            let time = clock_gettime(ClockId::ThreadCPUTime);
            time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
        };
        let (start, mut message) = (now(), [7; MESSAGE]);
        for _ in 0..MESSAGES {
            match self {
                Self::Udp { from, to, address } => {
                    from.send_to(&message, *address)?;
                    to.recv_from(&mut message)?;
                }
                Self::ConnectedUdp { from, to } => {
                    from.send(&message)?;
                    to.recv(&mut message)?;
                }
                Self::Tcp { from, to } => {
                    from.write_all(&message)?;
                    to.read_exact(&mut message)?;
                }
            }
        }
        Ok((now() - start) / MESSAGES as f64)
    }
}

fn load(storage: &mut MaybeUninit<OpenObject>, cgroups: bool, processes: bool) -> Result<SocketsSkel<'_>> {
    let mut open = SocketsSkelBuilder::default().open(storage)?;
    let constants = open.maps.rodata_data.as_deref_mut().ok_or("no constants")?;
    (constants.with_cgroups, constants.with_processes) = (cgroups, processes);
    for mut program in open.open_object_mut().progs_mut() {
        let is_of_packets = program.section().to_string_lossy().starts_with("cgroup_skb/");
        program.set_autoload(processes || is_of_packets);
    }
    Ok(open.load()?)
}

/// Attaches what the exporter would, for as long as the links live.
fn attach(skel: &SocketsSkel<'_>, processes: bool, group: &File) -> Result<Vec<Link>> {
    let progs = &skel.progs;
    let of_users = [
        &progs.socket_created,
        &progs.connected4,
        &progs.connected6,
        &progs.sent4,
        &progs.sent6,
        &progs.received4,
        &progs.received6,
    ];
    let of_packets = [&progs.sockets_ingress, &progs.sockets_egress];
    let wanted = of_users.into_iter().filter(|_| processes).chain(of_packets);
    wanted.map(|program| Ok(program.attach_cgroup(group.as_raw_fd())?)).collect()
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn main() -> Result<()> {
    let options = Options::from_args()?;
    let group = Group::enter()?;
    let directory = File::open(&group.path)?;
    let mut storage = [const { MaybeUninit::uninit() }; SETTINGS.len()];
    let skels: Vec<_> = storage
        .iter_mut()
        .zip(SETTINGS)
        .map(|(storage, (_, cgroups, processes))| load(storage, cgroups, processes))
        .collect::<Result<_>>()?;
    // By traffic: the times without programs, then those of each setting.
    let mut times = vec![vec![Vec::new(); SETTINGS.len() + 1]; TRAFFIC.len()];
    for _ in 0..options.rounds {
        for number in 0..=SETTINGS.len() {
            let mut links = Vec::new();
            if let Some(setting) = number.checked_sub(1) {
                links = attach(&skels[setting], SETTINGS[setting].2, &directory)?;
            }
            // Opened now, so that each socket has a process.
            for (mut traffic, times) in Traffic::all()?.into_iter().zip(&mut times) {
                traffic.run()?;
                times[number].push(traffic.run()?);
            }
            drop(links);
        }
    }
    let mut table = String::from(
        "| attribution by | traffic | a message without it, ns | with it, ns more | ratio |\n|---|---|---:|---:|---:|\n",
    );
    for (traffic, times) in TRAFFIC.iter().zip(&times) {
        let without = median(times[0].clone());
        for ((name, ..), with) in SETTINGS.iter().zip(&times[1..]) {
            let with = median(with.clone());
            writeln!(
                table,
                "| {name} | {traffic} | {without:.0} | {:.0} | {:.2} |",
                with - without,
                with / without
            )?;
        }
    }
    print!("{table}");
    if let Some(path) = options.markdown {
        fs::write(path, &table)?;
    }
    Ok(())
}

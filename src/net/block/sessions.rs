//! Established SSH connections, which go on although their peer is blocked.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::super::sockets::{established, local_ports};
use super::maps::Connection;
use super::redirected::redirected;
use crate::glob;
use crate::mutex::lock;
use crate::procfs::{processes, text};

/// The configuration of the SSH server.
const SSHD_CONFIG: &str = "/etc/ssh/sshd_config";
/// Directories of systemd's units, in which sockets of sshd and changes to them may be.
const UNITS: [&str; 2] = ["/etc/systemd/system", "/run/systemd/generator"];
/// How deeply files may include others, as in sshd.
const MAX_DEPTH: usize = 16;
/// The names of SSH servers' processes: OpenSSH has other ones for connections since version 9.8.
const SERVERS: [&str; 4] = ["sshd", "sshd-session", "sshd-auth", "dropbear"];
/// How old what is the same for all namespaces may be.
const SHARED_MAX_AGE: Duration = Duration::from_millis(500);

/// What was read a moment ago, for all namespaces: reading it takes long, and routers may announce changes all the time.
struct Shared<T>(Mutex<Option<(Instant, T)>>);

impl<T: Clone> Shared<T> {
    const fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn get(&self, read: impl FnOnce() -> T) -> T {
        let mut recent = lock(&self.0);
        match &*recent {
            Some((at, known)) if at.elapsed() <= SHARED_MAX_AGE => known.clone(),
            _ => {
                let at = Instant::now();
                recent.insert((at, read())).1.clone()
            }
        }
    }
}

/// The TCP ports of the SSH server. `own` is the connection in which the exporter was started, if any.
pub(super) fn ssh_ports(own: Option<Connection>) -> BTreeSet<u16> {
    static CONFIGURED: Shared<BTreeSet<u16>> = Shared::new();
    let mut ports = CONFIGURED.get(configured_ports);
    ports.extend(own.map(|(_, _, port)| port));
    ports
}

fn configured_ports() -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    add_ports(Path::new(SSHD_CONFIG), MAX_DEPTH, &mut ports);
    if ports.is_empty() {
        ports.insert(22);
    }
    UNITS.iter().for_each(|directory| add_socket_ports(Path::new(directory), &mut ports));
    ports
}

/// The ports on which running SSH servers accept connections in the calling thread's network namespace, whatever their
/// configuration: an sshd with a port on its command line, or one that another program listens for and starts. Of
/// processes of other users than root only if `of_any_user`, because anybody may give a process any name.
pub(super) fn served_ports(of_any_user: bool) -> BTreeSet<u16> {
    let ours = server_sockets(of_any_user);
    let (listening, established) = match local_ports() {
        Ok(all) if !ours.is_empty() => all,
        // Reported where connections are determined.
        _ => return BTreeSet::new(),
    };
    let is_ours = |(_, inode): &&(u16, u32)| ours.contains(inode);
    let all: BTreeSet<u16> = listening.iter().map(|(port, _)| *port).collect();
    // The listener of a server that was started for one connection is another program's.
    let accepted = established.iter().filter(is_ours).filter(|(port, _)| all.contains(port));
    listening.iter().filter(is_ours).chain(accepted).map(|(port, _)| *port).collect()
}

/// A socket that an SSH server has open.
struct ServerSocket {
    inode: u32,
    is_of_root: bool,
}

/// The inodes of sockets that SSH servers of root, or of any user, have open.
fn server_sockets(of_any_user: bool) -> HashSet<u32> {
    static OPEN: Shared<Arc<[ServerSocket]>> = Shared::new();
    let all = OPEN.get(|| read_server_sockets().into());
    all.iter().filter(|socket| of_any_user || socket.is_of_root).map(|socket| socket.inode).collect()
}

/// What may not be read is left out.
fn read_server_sockets() -> Vec<ServerSocket> {
    let mut found = Vec::new();
    for process in processes().map(|pid| PathBuf::from(format!("/proc/{pid}"))) {
        let name = text(process.join("comm")).unwrap_or_default();
        if !SERVERS.contains(&name.trim_end()) {
            continue;
        }
        let is_of_root = fs::metadata(&process).is_ok_and(|process| process.uid() == 0);
        let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        let inode = |target: PathBuf| {
            target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u32>().ok()
        };
        let inodes = files.filter_map(|file| fs::read_link(file.path()).ok()).filter_map(inode);
        found.extend(inodes.map(|inode| ServerSocket { inode, is_of_root }));
    }
    found
}

/// The connections to these ports that are established now, in the calling thread's network namespace.
///
/// # Errors
/// If the kernel has no socket diagnostics.
pub(super) fn sessions(ports: &BTreeSet<u16>) -> io::Result<BTreeSet<Connection>> {
    let mut found = BTreeSet::new();
    for port in ports {
        found.extend(established(*port)?);
    }
    let as_seen_here = found.iter().map(|ends| (ends.peer.ip(), ends.peer.port(), ends.local.port()));
    Ok(as_seen_here.chain(redirected(&found)).collect())
}

/// `SSH_CONNECTION`: the client's address and port, the server's address and port.
pub(super) fn session_of(text: &str) -> Option<Connection> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [client, from, _, to] = words[..] else { return None };
    let client: IpAddr = client.split('%').next()?.parse().ok()?;
    Some((client.to_canonical(), from.parse().ok()?, to.parse().ok()?))
}

/// `man 5 sshd_config`. What cannot be read is left out.
fn add_ports(path: &Path, depth: usize, ports: &mut BTreeSet<u16>) {
    let text = std::fs::read(path).unwrap_or_default();
    for line in String::from_utf8_lossy(&text).lines() {
        // A keyword may be separated from its arguments by `=`, and arguments may be quoted.
        let mut words = line.split(|c: char| c.is_whitespace() || matches!(c, '=' | '"'));
        let mut words = words.by_ref().filter(|word| !word.is_empty());
        let keyword = words.next().unwrap_or_default().to_ascii_lowercase();
        match keyword.as_str() {
            "port" => ports.extend(words.next().and_then(|port| port.parse::<u16>().ok())),
            "listenaddress" => ports.extend(words.next().and_then(port_of)),
            // Of a socket unit.
            "listenstream" => {
                ports.extend(words.next().and_then(|at| at.parse().ok().or_else(|| port_of(at))))
            }
            "include" if depth > 0 => {
                let included = words.flat_map(|pattern| files(path, pattern));
                included.for_each(|file| add_ports(&file, depth - 1, ports));
            }
            _ => {}
        }
    }
}

/// The ports on which systemd listens for sshd, if that differs from sshd's own configuration.
fn add_socket_ports(units: &Path, ports: &mut BTreeSet<u16>) {
    for unit in ["ssh.socket", "sshd.socket"] {
        add_ports(&units.join(unit), 0, ports);
        let changes = files(&units.join(unit), &format!("{unit}.d/*.conf"));
        changes.iter().for_each(|file| add_ports(file, 0, ports));
    }
}

/// The port of `HOST:PORT`, `ADDRESS:PORT` or `[ADDRESS]:PORT`.
fn port_of(address: &str) -> Option<u16> {
    let (host, port) = address.rsplit_once(':')?;
    let is_ipv6_alone = host.contains(':') && !host.ends_with(']');
    port.parse().ok().filter(|_| !is_ipv6_alone)
}

/// The files that a pattern in this file matches. Only the file's name may have wildcards.
fn files(from: &Path, pattern: &str) -> Vec<PathBuf> {
    let pattern = from.parent().unwrap_or(Path::new("/")).join(pattern);
    let (Some(directory), Some(name)) = (pattern.parent(), pattern.file_name()) else { return Vec::new() };
    let name = name.to_string_lossy();
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| glob::matches(&name, &entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ports_of_sshd_and_included_files() {
        let directory = tempfile::tempdir().unwrap();
        let main = directory.path().join("sshd_config");
        let read = |text: &str| {
            std::fs::write(&main, text).unwrap();
            let mut ports = BTreeSet::new();
            add_ports(&main, MAX_DEPTH, &mut ports);
            ports.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(read("#Port 23\nPort 2222\nport=2200\nPort \"2201\"\n"), [2200, 2201, 2222]);
        assert_eq!(
            read("ListenAddress 0.0.0.0:2222\nListenAddress [::]:2223\nListenAddress ::1\n"),
            [2222, 2223]
        );
        std::fs::create_dir(directory.path().join("sshd_config.d")).unwrap();
        std::fs::write(directory.path().join("sshd_config.d/50-cloud.conf"), "Port 2022\n").unwrap();
        std::fs::write(directory.path().join("sshd_config.d/readme"), "Port 2023\n").unwrap();
        assert_eq!(read("Include sshd_config.d/*.conf\n"), [2022]);
        let absolute = format!("Include {}/sshd_config.d/*\n", directory.path().display());
        assert_eq!(read(&absolute), [2022, 2023]);
        // A file that includes itself ends somewhere.
        assert_eq!(read("Port 7\nInclude sshd_config\n"), [7]);
    }

    #[test]
    fn reads_ports_of_socket_units() {
        let directory = tempfile::tempdir().unwrap();
        let mut ports = BTreeSet::new();
        add_socket_ports(directory.path(), &mut ports);
        assert!(ports.is_empty());
        std::fs::write(directory.path().join("sshd.socket"), "[Socket]\nListenStream=0.0.0.0:2024\n")
            .unwrap();
        std::fs::create_dir(directory.path().join("ssh.socket.d")).unwrap();
        let change =
            "[Socket]\nListenStream=\nListenStream=2022\nListenStream=[::]:2023\nListenStream=/run/x\n";
        std::fs::write(directory.path().join("ssh.socket.d/override.conf"), change).unwrap();
        add_socket_ports(directory.path(), &mut ports);
        assert_eq!(ports, BTreeSet::from([2022, 2023, 2024]));
    }

    #[test]
    fn parses_the_session_of_the_environment() {
        let session = session_of("192.0.2.9 50000 10.0.0.1 22").unwrap();
        assert_eq!(session, ("192.0.2.9".parse().unwrap(), 50000, 22));
        assert_eq!(session_of(""), None);
    }

    #[test]
    fn finds_an_established_connection() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let _server = listener.accept().unwrap();
        let found = sessions(&BTreeSet::from([port])).unwrap();
        let peer = client.local_addr().unwrap();
        assert_eq!(found, BTreeSet::from([(peer.ip(), peer.port(), port)]));
    }
}

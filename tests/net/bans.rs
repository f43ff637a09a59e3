//! Debian's sshd in a namespace, and a client that guesses passwords: PAM's results ban its address, and its packets
//! are dropped from then on.
//!
//! Needs root, `sshd`, `ssh` and `ip`.

use std::fs::{self, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::counting::until;
use crate::namespace::{HERE, Namespace, pair, up};
use crate::support::exporter::{Place, Setup, exporter as command, finish};
use crate::support::program::{finish as run_to_end, private, run};

const PORT: u16 = 2222;

/// A server that is killed when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if it has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts sshd with its own copy of libpam, which its children use too.
fn serve(here: &Namespace, place: &Place) -> Server {
    // Its privilege separation directory.
    fs::create_dir_all("/run/sshd").expect("make its directory");
    let key = place.path("key");
    run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key));
    let config = format!(
        "Port {PORT}\nListenAddress {HERE}\nHostKey {}\nUsePAM yes\nPasswordAuthentication yes\n\
         KbdInteractiveAuthentication no\nUseDNS no\nPidFile none\n",
        key.display()
    );
    let config = place.write("sshd_config", &config);
    let mut sshd = Command::new("/usr/sbin/sshd");
    sshd.args(["-D", "-e", "-f"]).arg(config).env("LD_LIBRARY_PATH", place.path(""));
    sshd.stdin(Stdio::null()).stderr(fs::File::create(place.path("sshd.log")).expect("make a log"));
    Server(here.run(move || sshd.spawn().expect("start sshd; scripts/install-deps.sh --tests installs it")))
}

fn is_reached(from: &Namespace) -> bool {
    from.run(|| TcpStream::connect_timeout(&(HERE, PORT).into(), Duration::from_secs(2)).is_ok())
}

/// Tries to log in with wrong passwords, three per connection.
fn try_passwords(from: &Namespace, place: &Place) {
    let answer = place.write("answer", "#!/bin/sh\necho wrong\n");
    fs::set_permissions(&answer, Permissions::from_mode(0o700)).expect("make it executable");
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none", "-p", &PORT.to_string(), "-o", "StrictHostKeyChecking=no"])
        .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "PreferredAuthentications=password"])
        .args(["-o", "ConnectTimeout=10", &format!("nobody-of-that-name@{HERE}"), "true"])
        .envs([("SSH_ASKPASS", answer.as_os_str()), ("SSH_ASKPASS_REQUIRE", "force".as_ref())]);
    let output = from.run(move || run_to_end(&mut ssh));
    assert!(!output.status.success(), "nobody has that password");
}

#[test]
fn password_guesser_is_banned_and_released() {
    let place = Place::new();
    let (here, there) = pair();
    up(&here, &there);
    let libpam = private("/lib/x86_64-linux-gnu/libpam.so.0", Path::new(&place.path("")));
    let socket = place.path("control.sock");
    // In struct pam_handle, the remote host is the eighth word.
    let yaml = format!(
        "slow_events: {{ file: {events} }}\n\
         network:\n  interfaces: [{{ netns: /proc/{pid}/task/{id}/ns/net, interfaces: exn0 }}]\n  block: {{ mode: enforce, socket: {socket}, file: {file} }}\n\
         targets:\n- name: sshd\n  binary: {libpam}\n  probes:\n  - function: pam_authenticate\n    returns: i32\n    \
         args: {{ rhost: {{ index: 0, offset: 56, type: string }} }}\n    \
         ban: {{ address: rhost, when: retval != 0, after: 3, within: 1h, ttl: 1h, reason: failed logins, mode: enforce }}\n",
        events = place.path("events.db").display(),
        pid = std::process::id(),
        id = here.id(),
        socket = socket.display(),
        file = place.path("blocklist.db").display(),
        libpam = libpam.display(),
    );
    let exporter = Setup::new(&place, yaml).start();
    exporter.wait_until_ready();
    let _server = serve(&here, &place);
    until("sshd serves", || is_reached(&there));
    // On a busy machine, a client may give up before it has tried three passwords.
    until("three wrong passwords", || {
        try_passwords(&there, &place);
        exporter.log().contains("failed logins by 10.99.0.2/32")
    });
    until("it is banned", || !is_reached(&there));
    let scrape = exporter.scrape();
    assert_eq!(scrape.value("xdp_autobans_total", &[("reason", "failed logins")]), 1.0);
    assert_eq!(scrape.value("xdp_module_enabled", &[("module", "ban")]), 1.0);
    assert!(scrape.sum("xdp_drops_total", &[("reason", "blocklist")]) > 0.0);
    let unblock = finish(command().args(["unblock", "10.99.0.2", "--socket"]).arg(&socket));
    assert_eq!(unblock.0, Some(0), "{unblock:?}");
    until("it is released", || is_reached(&there));
}

//! Lists fetched from a URL: nginx serves them, minisign signs them.
//!
//! Needs root.

use std::fs;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use crate::support::exporter::{Exporter, Place, Port, Setup, finish, send_signal, wait_for, wait_for_end};

/// nginx, serving the directory `www` over TLS to clients with a certificate.
struct Nginx<'a> {
    place: &'a Place,
    port: Port,
    process: Option<Child>,
}

impl<'a> Nginx<'a> {
    fn start(place: &'a Place) -> Self {
        let port = Port::claim();
        fs::create_dir_all(place.path("www")).expect("make a directory");
        let tls = place.certificates("tls");
        let path = |name: &str| place.path(name).display().to_string();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {};\n", path(kind)))
            .concat();
        place.write(
            "nginx.conf",
            &format!(
                "daemon off; user root; worker_processes 1; pid {pid}; error_log {error};\nevents {{ }}\nhttp {{\n{temporary}\
                 access_log {access};\nserver {{ listen 127.0.0.1:{port} ssl; server_name localhost; root {www};\n\
                 ssl_certificate {certificate}; ssl_certificate_key {key};\nssl_client_certificate {ca}; ssl_verify_client on;\n\
                 rewrite ^/moved$ /list.txt permanent; }}\n}}\n",
                pid = path("nginx.pid"),
                error = path("error.log"),
                access = path("access.log"),
                www = path("www"),
                certificate = tls.certificate.display(),
                key = tls.key.display(),
                ca = tls.authority.display(),
            ),
        );
        // A client certificate from the same authority.
        let made = format!(
            "set -e; cd {directory}; openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=client \
             -keyout client.key -out client.csr; openssl x509 -req -in client.csr -CA ca.crt -CAkey ca.key -days 2 -out client.crt",
            directory = path("tls")
        );
        let (code, out, err) = finish(Command::new("sh").args(["-c", &made]));
        assert_eq!(code, Some(0), "{out}{err}");
        let mut nginx = Self { place, port, process: None };
        nginx.run();
        nginx
    }

    fn run(&mut self) {
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-c").arg(self.place.path("nginx.conf")).arg("-p").arg(self.place.path(""));
        command.stdin(Stdio::null()).stderr(Stdio::null());
        self.process = Some(command.spawn().expect("start nginx; run scripts/install-deps.sh --tests"));
        wait_for("nginx listens", || TcpStream::connect(("127.0.0.1", self.port.number)).is_ok());
    }

    fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            send_signal(process.id(), "TERM");
            wait_for_end(&mut process);
        }
    }

    /// Returns how often nginx has responded with this status.
    fn answered(&self, status: &str) -> usize {
        let log = fs::read_to_string(self.place.path("access.log")).unwrap_or_default();
        log.lines().filter(|line| line.contains(&format!("\" {status} "))).count()
    }

    /// Replaces a file atomically.
    fn publish(&self, name: &str, text: &str) {
        let next = self.place.write("next", text);
        fs::rename(next, self.place.path("www").join(name)).expect("publish");
    }

    /// Signs the list with this time in the trusted comment, which is signed as well.
    fn sign(&self, time: u64) {
        let path = |name: &str| self.place.path(name).display().to_string();
        let args = [
            "-S",
            "-s",
            &path("secret"),
            "-m",
            &path("www/list.txt"),
            "-x",
            &path("signature"),
            "-t",
            &format!("timestamp:{time}\tfile:list.txt"),
        ];
        let (code, out, err) = finish(Command::new("minisign").args(args));
        assert_eq!(code, Some(0), "{out}{err}");
        let signature = fs::read_to_string(self.place.path("signature")).expect("a signature");
        self.publish("list.txt.minisig", &signature);
    }
}

impl Drop for Nginx<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

fn start(place: &Place, list: &str) -> Exporter {
    let path = |name: &str| place.path(name).display().to_string();
    let yaml = format!(
        "network:\n  interfaces: lo\n  block: {{ socket: {}, file: {}, blocklist_url: {list} }}\n",
        path("control.sock"),
        path("blocklist.db")
    );
    Setup::new(place, yaml).start()
}

/// Waits until the blocklist has this number of entries from the list.
fn entries(exporter: &Exporter, url: &str, wanted: f64) {
    exporter.scrape_until(&format!("{wanted} entries"), |metrics| {
        metrics.sum("xdp_blocklist_entries", &[("source", url)]) == wanted
    });
}

fn up(exporter: &Exporter, url: &str, wanted: f64) {
    exporter.scrape_until(&format!("the source to be {wanted}"), |metrics| {
        metrics.sum("xdp_blocklist_source_up", &[("source", url)]) == wanted
    });
}

#[test]
fn signed_list_is_fetched_verified_and_stored() {
    let place = Place::new();
    let mut nginx = Nginx::start(&place);
    let path = |name: &str| place.path(name).display().to_string();
    let (code, out, err) =
        finish(Command::new("minisign").args(["-G", "-W", "-p", &path("public"), "-s", &path("secret")]));
    assert_eq!(code, Some(0), "{out}{err}");
    let public = fs::read_to_string(place.path("public")).expect("the key");
    let key = public.lines().nth(1).expect("its second line").to_string();
    nginx.publish("list.txt", "192.0.2.0/24\n198.51.100.7\n");
    nginx.sign(2000);
    let url = format!("https://localhost:{}/list.txt", nginx.port);
    let port = nginx.port.number;
    let list = |url: &str, key: &str| {
        format!(
            "{{ url: '{url}', minisign: {key}, signature_url: 'https://localhost:{}/list.txt.minisig', ca: {}, \
             certificate: {}, key: {}, interval: 1s }}",
            port,
            path("tls/ca.crt"),
            path("tls/client.crt"),
            path("tls/client.key")
        )
    };
    let signed = list(&url, &key);
    let mut exporter = start(&place, &signed);
    entries(&exporter, &url, 2.0);
    up(&exporter, &url, 1.0);
    wait_for("it is not sent again", || nginx.answered("304") > 1);
    assert_eq!(nginx.answered("200"), 2, "the list and its signature");

    // A different list with the previous list's signature.
    nginx.publish("list.txt", "192.0.2.0/24\n198.51.100.7\n203.0.113.0/24\n");
    up(&exporter, &url, 0.0);
    exporter.wait_for_log("the signature at");
    entries(&exporter, &url, 2.0);
    nginx.sign(3000);
    entries(&exporter, &url, 3.0);
    up(&exporter, &url, 1.0);

    // The first list with its own valid signature.
    nginx.publish("list.txt", "192.0.2.0/24\n198.51.100.7\n");
    nginx.sign(2000);
    exporter.wait_for_log("older lists are rejected");
    up(&exporter, &url, 0.0);
    entries(&exporter, &url, 3.0);
    nginx.publish("list.txt", "192.0.2.0/24\n198.51.100.7\n203.0.113.0/24\n");
    nginx.sign(3000);
    up(&exporter, &url, 1.0);

    nginx.stop();
    up(&exporter, &url, 0.0);
    exporter.wait_for_log("the previous list stays in use");
    let age = |exporter: &Exporter| {
        exporter.scrape().value("xdp_blocklist_source_age_seconds", &[("source", &url)])
    };
    let before = age(&exporter);
    wait_for("the age grows", || age(&exporter) > before + 1.0);
    exporter.end("KILL");
    exporter = start(&place, &signed);
    entries(&exporter, &url, 3.0);
    assert!(age(&exporter) >= before, "{}", exporter.text());
    exporter.end("TERM");

    // With a different key, the cached list cannot be verified.
    let other = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    exporter = start(&place, &list(&url, other));
    exporter.wait_for_log("or its check has changed");
    up(&exporter, &url, 0.0);
    entries(&exporter, &url, 0.0);
    exporter.end("TERM");

    // A URL that redirects.
    nginx.run();
    let moved = format!("https://localhost:{}/moved", nginx.port);
    let exporter = start(&place, &list(&moved, &key));
    entries(&exporter, &moved, 3.0);
}

//! The web configuration of Prometheus's exporters, and the addresses at which the metrics are served.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::prelude::{BASE64_STANDARD, Engine};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::support::demo::program;
use crate::support::exporter::{Exporter, PASSWORD, Place, Setup, TIMEOUT, USER, finish, wait_for};
use crate::support::http;
use crate::support::prometheus::{Prometheus, Scrape};

fn hash(password: &str) -> String {
    // The cost is low because this is often an unoptimized build.
    bcrypt::hash(password, 4).expect("hash a password")
}

/// Starts an exporter with this web configuration file.
fn with(place: &Place, web: &str) -> Exporter {
    let web = place.write("web.yml", web);
    let binary = place.copy_of(&program("fibre-demo"), "bitcoind");
    Setup::fibre(place, &binary).arguments(&["--web.config.file", web.to_str().expect("a path")]).start()
}

/// Returns the status that curl gets with these arguments; 0 if the connection fails.
fn status(url: &str, more: &[&str]) -> u16 {
    http::answer(http::curl(url).args(more)).map_or(0, |(status, _)| status)
}

/// A certificate authority, a server certificate for localhost, and client certificates.
struct Pki {
    directory: PathBuf,
}

type Authority = CertifiedIssuer<'static, KeyPair>;

impl Pki {
    fn new(place: &Place) -> Pki {
        let pki = Pki { directory: place.path("pki") };
        fs::create_dir(&pki.directory).expect("make a directory");
        let (ours, theirs) = (authority("ours"), authority("theirs"));
        pki.write("ca.crt", &ours.pem());
        pki.issue("server", "localhost", &ours);
        pki.issue("client", "scraper.example", &ours);
        pki.issue("other", "other.example", &ours);
        pki.issue("stranger", "scraper.example", &theirs);
        // As `openssl req -x509` creates them: marked as an authority.
        let own = authority("own");
        pki.write("own.crt", &own.pem());
        pki.write("own.key", &own.key().serialize_pem());
        pki
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.join(name), text).expect("write a file");
    }

    fn issue(&self, name: &str, host: &str, issuer: &Authority) {
        let mut params = CertificateParams::new(vec![host.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, host);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, issuer).expect("a certificate");
        self.write(&format!("{name}.crt"), &certificate.pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    fn web(&self, more: &str) -> String {
        let (cert, key) = (self.file("server.crt"), self.file("server.key"));
        format!("tls_server_config:\n  cert_file: {cert}\n  key_file: {key}\n{more}")
    }

    /// Returns the status for a client with this certificate.
    fn status(&self, exporter: &Exporter, client: Option<&str>, more: &[&str]) -> u16 {
        let mut arguments = vec!["--cacert".to_owned(), self.file("ca.crt")];
        if let Some(name) = client {
            arguments.extend(["--cert".into(), self.file(&format!("{name}.crt"))]);
            arguments.extend(["--key".into(), self.file(&format!("{name}.key"))]);
        }
        let arguments: Vec<_> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        status(&format!("https://localhost:{}/metrics", exporter.port), &arguments)
    }
}

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

#[test]
fn each_user_has_a_password_and_changes_apply() {
    let place = Place::new();
    let (ada, grace) = (hash("one"), hash("two"));
    let exporter = with(&place, &format!("basic_auth_users:\n  ada: {ada}\n  grace: {grace}\n"));
    let url = format!("http://localhost:{}/metrics", exporter.port);
    let asked = |user: &str| status(&url, &["--user", user]);
    assert_eq!(
        ["ada:one", "grace:two", "ada:two", "grace:one", "alan:one"].map(asked),
        [200, 200, 401, 401, 401]
    );
    assert_eq!(status(&url, &[]), 401);
    let new = hash("three");
    place.write("web.yml", &format!("basic_auth_users:\n  ada: {ada}\n  grace: {new}\n"));
    wait_for("the new password", || asked("grace:three") == 200);
    assert_eq!(["ada:one", "grace:two"].map(asked), [200, 401]);
    exporter.wait_for_log("The passwords and the web configuration were reloaded");
    // An invalid configuration changes nothing.
    place.write("web.yml", "basic_auth_users:\n  ada: hunter2\n");
    exporter.wait_for_log("expected a bcrypt hash");
    exporter.wait_for_log("was not reloaded");
    assert_eq!(["ada:one", "grace:three", "ada:hunter2"].map(asked), [200, 200, 401]);
    place.write("web.yml", "");
    wait_for("no password to be asked for", || status(&url, &[]) == 200);
    assert!(!exporter.log().contains("hunter2") && !exporter.log().contains(&ada));
}

#[test]
fn password_file_changes_apply() {
    let place = Place::new();
    let file = place.write("password", "before\n");
    let binary = place.copy_of(&program("fibre-demo"), "bitcoind");
    let auth = format!("metrics_auth_username: u\nmetrics_auth_password_file: {}\n", file.display());
    let exporter = Setup::fibre(&place, &binary).yaml(&auth).start();
    let url = format!("http://localhost:{}/metrics", exporter.port);
    assert_eq!(status(&url, &["--user", "u:before"]), 200);
    place.write("password", "after\n");
    wait_for("the new password", || status(&url, &["--user", "u:after"]) == 200);
    assert_eq!(status(&url, &["--user", "u:before"]), 401);
}

#[test]
fn client_certificate_modes_are_honored() {
    let place = Place::new();
    let pki = Pki::new(&place);
    let clients = [None, Some("client"), Some("other"), Some("stranger"), Some("own")];
    let ca = format!("  client_ca_file: {}\n", pki.file("ca.crt"));
    let own = format!("  client_ca_file: {}\n", pki.file("own.crt"));
    let sans = "  client_allowed_sans: [nobody.example, scraper.example]\n";
    for (kind, more, expected) in [
        ("NoClientCert", "", [200, 200, 200, 200, 200]),
        ("RequestClientCert", "", [200, 200, 200, 200, 200]),
        ("RequireAnyClientCert", "", [0, 200, 200, 200, 200]),
        ("VerifyClientCertIfGiven", &ca, [200, 200, 200, 0, 0]),
        ("RequireAndVerifyClientCert", &ca, [0, 200, 200, 0, 0]),
        ("RequireAndVerifyClientCert", &own, [0, 0, 0, 0, 200]),
        ("RequireAndVerifyClientCert", &format!("{ca}{sans}"), [0, 200, 0, 0, 0]),
        ("RequireAnyClientCert", sans, [0, 200, 0, 200, 0]),
    ] {
        let exporter = with(&place, &pki.web(&format!("  client_auth_type: {kind}\n{more}")));
        for tls in ["1.2", "1.3"] {
            let found = clients.map(|client| pki.status(&exporter, client, &["--tls-max", tls]));
            assert_eq!(found, expected, "{kind} {more} with TLS {tls}");
        }
    }
}

#[test]
fn configured_tls_versions_and_cipher_suites_are_used() {
    let place = Place::new();
    let pki = Pki::new(&place);
    let only12 = ["--tls-max", "1.2"];
    let only13 = ["--tlsv1.3"];
    let exporter = with(&place, &pki.web("  min_version: TLS13\n"));
    assert_eq!([pki.status(&exporter, None, &only12), pki.status(&exporter, None, &only13)], [0, 200]);
    drop(exporter);
    let suites = "  max_version: TLS12\n  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384]\n";
    let exporter = with(&place, &pki.web(suites));
    let with_cipher = |name| pki.status(&exporter, None, &["--tls-max", "1.2", "--ciphers", name]);
    assert_eq!(pki.status(&exporter, None, &only13), 0);
    assert_eq!(with_cipher("ECDHE-ECDSA-AES256-GCM-SHA384"), 200);
    assert_eq!(with_cipher("ECDHE-ECDSA-AES128-GCM-SHA256"), 0);
    drop(exporter);
    let exporter = with(&place, &pki.web("  curve_preferences: [CurveP384]\n"));
    let with_curve = |name| pki.status(&exporter, None, &["--curves", name]);
    assert_eq!([with_curve("P-384"), with_curve("X25519")], [200, 0]);
}

#[test]
fn certificates_can_be_inline() {
    let place = Place::new();
    let pki = Pki::new(&place);
    let text = |name: &str| {
        let text = fs::read_to_string(pki.file(name)).expect("read a file");
        text.lines().map(|line| format!("        {line}\n")).collect::<String>()
    };
    let (cert, key) = (text("server.crt"), text("server.key"));
    let web = format!("web:\n  tls_server_config:\n      cert: |\n{cert}      key: |\n{key}");
    let binary = place.copy_of(&program("fibre-demo"), "bitcoind");
    let exporter = Setup::fibre(&place, &binary).yaml(&web).start();
    assert_eq!(pki.status(&exporter, None, &[]), 200);
}

#[test]
fn configured_headers_are_sent() {
    let place = Place::new();
    let headers = "http_server_config:\n  headers:\n    X-Frame-Options: deny\n    X-XSS-Protection: 1\n    \
                   Content-Security-Policy: \"default-src 'self'\"\n";
    let exporter = with(&place, headers);
    for path in ["/metrics", "/nothing"] {
        let mut curl = exporter.curl(exporter.port, path);
        let (_, answer) = http::answer(curl.arg("--include")).expect("an answer");
        let answer = answer.to_lowercase();
        for line in
            ["x-frame-options: deny", "x-xss-protection: 1", "content-security-policy: default-src 'self'"]
        {
            assert_eq!(answer.matches(line).count(), 1, "{line}: {answer}");
        }
    }
}

/// Requests these paths over one connection; returns the HTTP version, the status, and the number of new connections
/// for each, according to curl.
fn told(exporter: &Exporter, more: &[&str], paths: &[&str]) -> Vec<String> {
    let mut curl = exporter.curl(exporter.port, paths[0]);
    for path in &paths[1..] {
        curl.arg(exporter.curl(exporter.port, path).get_args().last().expect("a URL"));
    }
    let null: Vec<_> = paths.iter().flat_map(|_| ["--output", "/dev/null"]).collect();
    curl.args(more).args(null).args(["--write-out", "%{http_version} %{http_code} %{num_connects}\n"]);
    let (code, out, err) = finish(&mut curl);
    assert_eq!(code, Some(0), "{out}{err}");
    out.lines().map(str::to_owned).collect()
}

#[test]
fn http2_is_opt_in_with_one_request_at_a_time() {
    let place = Place::new();
    let setup = |more: &str| {
        let binary = place.copy_of(&program("fibre-demo"), "bitcoind");
        Setup::fibre(&place, &binary).secure().yaml(more).start()
    };
    let ca = place.path("certs/ca.crt").display().to_string();
    let right = format!("{USER}:{PASSWORD}");
    let ask = |exporter: &Exporter, more: &[&str], user: &str, paths: &[&str]| {
        told(exporter, &[&["--cacert", &ca, "--user", user], more].concat(), paths)
    };
    let plain = setup("");
    assert_eq!(ask(&plain, &["--http2"], &right, &["/metrics"]), ["1.1 200 1"]);
    drop(plain);
    let exporter = setup("web: { http_server_config: { http2: true } }\n");
    assert_eq!(ask(&exporter, &["--http1.1"], &right, &["/metrics"]), ["1.1 200 1"]);
    assert_eq!(
        ask(&exporter, &["--http2"], &right, &["/metrics", "/", "/api/v1/status", "/nothing"]),
        ["2 200 1", "2 200 0", "2 200 0", "2 404 0"]
    );
    for version in ["--http1.1", "--http2"] {
        let heads =
            ask(&exporter, &[version, "--head"], &right, &["/metrics", "/", "/api/v1/status", "/nothing"]);
        assert!(heads.len() == 4 && heads[..3].iter().all(|line| line.contains(" 200 ")), "{heads:?}");
    }
    // Concurrent requests wait for each other.
    let many = ask(&exporter, &["--http2", "--parallel"], &right, &["/metrics"; 8]);
    assert!(many.len() == 8 && many.iter().all(|line| line.starts_with("2 200 ")), "{many:?}");
    let wrong = ask(&exporter, &["--http2"], "x:y", &["/metrics", "/metrics"]);
    assert!(wrong.len() == 2 && wrong.iter().all(|line| line.starts_with("2 401 ")), "{wrong:?}");
    let large = format!("X: {}", "x".repeat(100_000));
    let large = exporter
        .curl(exporter.port, "/metrics")
        .args(["--cacert", &ca, "--http2", "--header", &large])
        .output();
    assert!(!String::from_utf8_lossy(&large.expect("run curl").stdout).contains("fibre_exporter_up"));
    let scrape = Scrape::secure(&exporter, &place);
    let prometheus = Prometheus::start(&scrape).unwrap();
    prometheus.wait_until_up(TIMEOUT).unwrap();
    assert_eq!(exporter.scrape().value("fibre_exporter_up", &[]), 1.0);
}

#[test]
fn rate_limit_spares_authenticated_clients() {
    let place = Place::new();
    let limit = "rate_limit:\n  interval: 1h\n  burst: 3\n";
    let exporter = with(&place, &format!("basic_auth_users:\n  ada: {}\n{limit}", hash("one")));
    let url = format!("http://localhost:{}/metrics", exporter.port);
    // The first request still counts as a stranger's, until the password is verified.
    assert_eq!(status(&url, &["--user", "ada:one"]), 200);
    let guesses: Vec<_> = (0..5).map(|n| status(&url, &["--user", &format!("ada:{n}")])).collect();
    assert_eq!(guesses, [401, 401, 429, 429, 429]);
    let known: Vec<_> = (0..5).map(|_| status(&url, &["--user", "ada:one"])).collect();
    assert_eq!(known, [200, 200, 200, 429, 429]);
    let refused = Command::new("curl").args(["--silent", "--include", "--user", "ada:one", &url]).output();
    let refused = String::from_utf8(refused.expect("run curl").stdout).unwrap();
    assert!(refused.to_lowercase().contains("\nretry-after: 3600\r\n"), "{refused}");
    assert_eq!(exporter.health("/health").0, 200);
}

#[test]
fn several_authorization_headers_are_refused() {
    let place = Place::new();
    let exporter = with(&place, &format!("basic_auth_users:\n  ada: {}\n", hash("one")));
    let url = format!("http://localhost:{}/metrics", exporter.port);
    let header = |password: &str| {
        format!("Authorization: Basic {}", BASE64_STANDARD.encode(format!("ada:{password}")))
    };
    let (good, bad) = (header("one"), header("two"));
    assert_eq!(status(&url, &["--header", &good]), 200);
    for headers in [[&good, &bad], [&bad, &good], [&good, &good]] {
        assert_eq!(status(&url, &["--header", headers[0], "--header", headers[1]]), 400);
    }
}

#[test]
fn serves_on_several_addresses_and_a_unix_socket() {
    let place = Place::new();
    let socket = place.path("e.sock");
    // A socket left behind by a killed exporter.
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("bind"));
    let binary = place.copy_of(&program("fibre-demo"), "bitcoind");
    let addresses = format!(
        "web_listen_address: ['127.0.0.1:{{port}}', '127.0.0.2:{{port}}', 'unix:{}']",
        socket.display()
    );
    let exporter = Setup::fibre(&place, &binary).listening(&addresses).start();
    let port = exporter.port;
    assert_eq!(status(&format!("http://127.0.0.1:{port}/metrics"), &[]), 200);
    assert_eq!(status(&format!("http://127.0.0.2:{port}/metrics"), &[]), 200);
    let by_socket = ["--unix-socket", socket.to_str().expect("a path")];
    assert_eq!(status("http://exporter/metrics", &by_socket), 200);
    // Only local clients can open the socket.
    assert_eq!(status("http://exporter/-/reload", &[&by_socket[..], &["--request", "POST"]].concat()), 200);
    let again = place.write("again.yaml", &format!("bitcoind_path: {}\n", binary.display()));
    let taken = format!("unix:{}", socket.display());
    let mut second = crate::support::exporter::exporter();
    second.arg("--config").arg(again).args(["--web.listen-address", &taken, "--health-port", "1"]);
    let (code, out, err) = finish(&mut second);
    assert!(code == Some(1) && [out, err].concat().contains("is in use"), "{code:?}");
}

#[test]
fn wildcard_addresses_of_both_families_are_served() {
    let place = Place::new();
    let binary = place.copy_of(&program("fibre-demo"), "bitcoind");
    let addresses = "web_listen_address: ['[::]:{port}', '0.0.0.0:{port}']";
    let exporter = Setup::fibre(&place, &binary).listening(addresses).start();
    for host in ["127.0.0.1", "127.0.0.2", "[::1]"] {
        assert_eq!(status(&format!("http://{host}:{}/metrics", exporter.port), &[]), 200, "{host}");
    }
}

/// Opens a listening socket and passes it as systemd does.
const ACTIVATE: &str = r#"
import os, socket, sys
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen(16)
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="metrics")
os.execv(sys.argv[2], sys.argv[2:])
"#;

#[test]
fn serves_on_systemd_sockets() {
    let place = Place::new();
    let binary = place.copy_of(&program("fibre-demo"), "bitcoind");
    let exporter = Setup::fibre(&place, &binary)
        .listening("web_systemd_socket: true")
        .through(&["python3", "-c", ACTIVATE, "{port}"])
        .start();
    assert_eq!(exporter.scrape().value("fibre_exporter_up", &[]), 1.0);
    let config = place.write("alone.yaml", &format!("bitcoind_path: {}\n", binary.display()));
    let mut alone = crate::support::exporter::exporter();
    let (code, out, err) = finish(alone.arg("--config").arg(config).arg("--web.systemd-socket"));
    assert!(code == Some(1) && [out, err].concat().contains("LISTEN_FDS"), "{code:?}");
}

#[test]
fn unusable_settings_are_located_errors() {
    let place = Place::new();
    let pki = Pki::new(&place);
    let web = |text: &str| {
        let web = place.write("web.yml", text);
        let config = place
            .write("check.yaml", &format!("bitcoind_path: /bin/true\nweb_config_file: {}\n", web.display()));
        let (code, _, err) = finish(crate::support::exporter::exporter().arg("check").arg(config));
        assert_eq!(code, Some(2), "{err}");
        assert!(!err.contains("hunter2"), "{err}");
        err.replace(web.to_str().expect("a path"), "web.yml")
    };
    let ca = |name: &str| {
        format!("  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: {}\n", pki.file(name))
    };
    let no_authority = web(&pki.web(&ca("server.key")));
    assert!(
        no_authority.contains("web.yml:5:19: tls_server_config.client_ca_file: ")
            && no_authority.contains("contains no certificate"),
        "{no_authority}"
    );
    let users = "basic_auth_users:\n  ada: $2y$10$hunter2\n  grace: $2y$31$7EqJtq98hPqEX7fNZaFWoOhi5BWX4eEG1hZ3bU1bN9S1n9vAqGn1e\n";
    let both = web(users);
    assert!(
        both.contains("web.yml:2:8: basic_auth_users.ada: ")
            && both.contains("web.yml:3:10: basic_auth_users.grace: "),
        "{both}"
    );
    let inline = "tls_server_config:\n  cert: hunter2\n  key: hunter2\n";
    let inline = web(inline);
    assert!(
        inline.contains("web.yml:2:9: tls_server_config.cert: `cert` contains no certificate"),
        "{inline}"
    );
    assert!(Path::new(&pki.file("ca.crt")).exists());
}

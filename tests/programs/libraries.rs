//! The profiles `libstdcxx`, `openssl`, `malloc` and `pam` against programs with known counts. Each test loads its own
//! copy of the library, which nothing else on this machine uses.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::exporter::{Exporter, Port, wait_for};
use crate::support::program::{Running, compile, directory, finish, private, run};

/// The directory of Debian's libraries.
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

#[test]
fn libstdcxx_throws_catches_and_rethrows() {
    let directory = directory();
    let source = r"
#include <stdexcept>
int main() {
    volatile int caught = 0;
    for (int i = 0; i < 50; i++)
        try { throw std::runtime_error(std::to_string(i)); } catch (const std::exception &) { caught++; }
    for (int i = 0; i < 10; i++)
        try {
            try { throw i; } catch (int) { caught++; throw; }
        } catch (int) { caught++; }
    return caught == 70 ? 0 : 1;
}
";
    let program = compile("g++", "throws.cc", &format!("#include <string>{source}"), &[], directory.path());
    let library = private(Path::new(LIBRARIES).join("libstdc++.so.6"), directory.path());
    let exporter = Exporter::with_profile(&library, "libstdcxx");
    run(Command::new(program).env("LD_LIBRARY_PATH", directory.path()));

    let samples = exporter.scrape();
    let of =
        |what: &str| samples.sum(&format!("libstdcxx_exceptions_{what}_total"), &[("program", "program")]);
    assert_eq!((of("thrown"), of("caught"), of("rethrown")), (60.0, 70.0, 10.0));
    let types = samples.by("libstdcxx_exceptions_thrown_by_type_total", "type");
    assert_eq!(types, [("int".to_owned(), 10.0), ("std::runtime_error".to_owned(), 50.0)].into());
    samples.assert_nothing_lost();
}

#[test]
fn rejects_a_structure_behind_a_memory_operand() {
    let directory = directory();
    let file = directory.path().join("config.yaml");
    let text = format!(
        "targets:\n  - name: cxx\n    binary: {LIBRARIES}/libstdc++.so.6\n    probes:\n\
         \x20     - on: usdt:libstdcxx:catch\n        args: {{ type: {{ index: 1, offset: 8, type: string }} }}\n\
         \x20       metrics: [{{ counter: caught_total, labels: {{ type: type }} }}]\n"
    );
    fs::write(&file, text).expect("write the configuration");
    let check = finish(Command::new(env!("CARGO_BIN_EXE_exporter")).arg("check").arg(file));
    let errors = String::from_utf8_lossy(&check.stderr);
    assert_eq!(check.status.code(), Some(2), "{errors}");
    assert!(errors.contains("`8@-80(%rbx)` is not a pointer in a register"), "{errors}");
}

#[test]
fn malloc_calls_and_bytes() {
    let directory = directory();
    // Neither inlining nor printing: printing would allocate too.
    let source = r"
#include <stdlib.h>
void *volatile kept;
int main(void) {
    for (int i = 0; i < 3000; i++) { kept = malloc(100 + i % 2 * 1900); free(kept); }
    for (int i = 0; i < 200; i++) { kept = calloc(3, 5); kept = realloc(kept, 5000); free(kept); }
    free(NULL);
    return 0;
}
";
    let program = compile("gcc", "allocates.c", source, &["-fno-builtin"], directory.path());
    let library = private(Path::new(LIBRARIES).join("libc.so.6"), directory.path());
    let exporter = Exporter::with_profile(&library, "malloc");
    let allocate = |program: &Path| run(Command::new(program).env("LD_LIBRARY_PATH", directory.path()));
    allocate(&program);

    let samples = exporter.scrape();
    let calls = |function: &str| samples.sum("malloc_calls_total", &[("function", function)]);
    assert_eq!(["malloc", "calloc", "realloc", "free"].map(calls), [3000.0, 200.0, 200.0, 3200.0]);
    let bytes = |function: &str| samples.sum("malloc_requested_bytes_total", &[("function", function)]);
    assert_eq!(bytes("malloc"), 1500.0 * 100.0 + 1500.0 * 2000.0);
    assert_eq!(bytes("realloc"), 200.0 * 5000.0);
    let up_to = |le: &str| samples.sum("malloc_size_bytes_bucket", &[("le", le)]);
    assert_eq!(["64", "128", "1024", "4096"].map(up_to), [0.0, 1500.0, 1500.0, 3000.0]);
    samples.assert_nothing_lost();
}

#[test]
fn openssl_handshakes_and_bytes_with_curl() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name).display().to_string();
    fs::write(at("served"), "text\n".repeat(5000)).expect("write a file to serve");
    run(Command::new("openssl").args([
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=localhost",
        "-days",
        "2",
        "-keyout",
        &at("key"),
        "-out",
        &at("cert"),
    ]));
    let port = Port::claim();
    let server = Command::new("openssl")
        .args(["s_server", "-quiet", "-WWW", "-cert", &at("cert"), "-key", &at("key")])
        .args(["-accept", &format!("127.0.0.1:{port}")])
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start openssl s_server");
    let _server = Running(server);
    wait_for("openssl s_server to listen", || TcpStream::connect((Ipv4Addr::LOCALHOST, port.number)).is_ok());

    // Only curl loads this copy; the server uses the system's library.
    let libraries = directory.path().join("libraries");
    fs::create_dir(&libraries).expect("make a directory");
    let library = private(Path::new(LIBRARIES).join("libssl.so.3"), &libraries);
    let exporter = Exporter::with_profile(&library, "openssl");
    let (mut sent, mut received) = (0.0, 0.0);
    for _ in 0..20 {
        let counts = run(Command::new("curl")
            .args(["-sS", "--http1.1", "--cacert", &at("cert"), "-o", "/dev/null"])
            .args(["-w", "%{size_request} %{size_header} %{size_download}"])
            .arg(format!("https://localhost:{port}/served"))
            .args(["--resolve", &format!("localhost:{port}:127.0.0.1")])
            .env("LD_LIBRARY_PATH", &libraries));
        let counts: Vec<f64> = counts.split(' ').map(|n| n.parse().expect("a number")).collect();
        sent += counts[0];
        received += counts[1] + counts[2];
    }

    let samples = exporter.scrape();
    let curl = [("program", "curl")];
    assert_eq!(samples.sum("openssl_writes_total", &curl), 20.0);
    assert_eq!(samples.sum("openssl_written_bytes_total", &curl), sent);
    assert!(received > 20.0 * 25_000.0);
    assert_eq!(samples.sum("openssl_read_bytes_total", &curl), received);
    // curl uses non-blocking I/O, so one handshake takes several calls.
    assert!(samples.sum("openssl_handshake_calls_total", &curl) >= 20.0);
    samples.assert_nothing_lost();
}

#[test]
fn pam_logins_by_service_and_result() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name).display().to_string();
    // Answers every prompt with its third argument, as if a person typed it.
    let source = r#"
#include <security/pam_appl.h>
#include <stdlib.h>
#include <string.h>
static const char *password;
static int answer(int n, const struct pam_message **asked, struct pam_response **answers, void *data) {
    (void)asked; (void)data;
    *answers = calloc(n, sizeof(**answers));
    for (int i = 0; i < n; i++) (*answers)[i].resp = strdup(password);
    return PAM_SUCCESS;
}
int main(int argc, char **argv) {
    if (argc != 4) return 100;
    struct pam_conv conversation = { answer, NULL };
    pam_handle_t *pam;
    password = argv[3];
    if (pam_start(argv[1], argv[2], &conversation, &pam)) return 101;
    int result = pam_authenticate(pam, 0);
    if (!result) result = pam_acct_mgmt(pam, 0);
    if (!result && !(result = pam_open_session(pam, 0))) result = pam_close_session(pam, 0);
    pam_end(pam, result);
    return result;
}
"#;
    let program = compile("gcc", "login.c", source, &["-lpam"], directory.path());
    let library = private(Path::new(LIBRARIES).join("libpam.so.0"), directory.path());

    // A user and two services that exist only in a mount namespace, in the programs' own view of the files.
    let hash = run(Command::new("openssl").args(["passwd", "-6", "right"]));
    let with_line = |file: &str, line: &str| {
        fs::read_to_string(file).unwrap_or_else(|err| panic!("{file}: {err}")) + line
    };
    fs::write(at("passwd"), with_line("/etc/passwd", "exporter-test:x:65432:65432::/:/bin/sh\n"))
        .expect("write");
    let shadow = format!("exporter-test:{}:19000:0:99999:7:::\n", hash.trim());
    fs::write(at("shadow"), with_line("/etc/shadow", &shadow)).expect("write");
    fs::create_dir(at("pam.d")).expect("make a directory");
    let service = "auth required pam_unix.so nodelay\naccount required pam_unix.so\n\
                   session required pam_permit.so\n";
    for name in ["door", "gate"] {
        fs::write(directory.path().join("pam.d").join(name), service).expect("write");
    }
    let bind = "mount --bind $0/passwd /etc/passwd && mount --bind $0/shadow /etc/shadow && \
                mount --bind $0/pam.d /etc/pam.d && export LD_LIBRARY_PATH=$0 && exec \"$@\"";
    let login = |service: &str, user: &str, password: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", bind]).arg(directory.path()).arg(&program);
        finish(command.args([service, user, password])).status.code()
    };

    let exporter = Exporter::with_profile(&library, "pam");
    for _ in 0..5 {
        assert_eq!(login("door", "exporter-test", "right"), Some(0));
    }
    for _ in 0..2 {
        assert_eq!(login("gate", "exporter-test", "wrong"), Some(7));
    }
    assert_eq!(login("gate", "nobody-of-this-name", "right"), Some(10));

    let samples = exporter.scrape();
    let of = |name: &str, label: &str, value: &str| samples.sum(name, &[(label, value)]);
    assert_eq!(of("pam_starts_total", "service", "door"), 5.0);
    assert_eq!(of("pam_starts_total", "service", "gate"), 3.0);
    let result = |service: &str, result: &str| {
        samples.sum("pam_authentications_total", &[("service", service), ("result", result)])
    };
    assert_eq!(result("door", "success"), 5.0);
    assert_eq!((result("gate", "auth_err"), result("gate", "user_unknown")), (2.0, 1.0));
    assert_eq!(samples.sum("pam_authentications_total", &[]), 8.0);
    assert_eq!(samples.sum("pam_authentication_duration_seconds_count", &[]), 8.0);
    for name in ["pam_account_checks_total", "pam_sessions_opened_total", "pam_sessions_closed_total"] {
        assert_eq!(samples.sum(name, &[("service", "door"), ("result", "success")]), 5.0, "{name}");
        assert_eq!(samples.sum(name, &[]), 5.0, "{name}");
    }
    samples.assert_nothing_lost();
}

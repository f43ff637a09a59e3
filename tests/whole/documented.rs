//! The commands of README.md and docs/, run one after the other as a reader would type them: in the directory of a
//! checkout, on a machine of their own as far as files under /etc and /usr/local, and the network, are concerned. For
//! commands that are not run, a reason is given.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::support::demo::program;
use crate::support::documentation::{fenced, pages, whole};
use crate::support::exporter::{Place, send_signal, wait_for, wait_for_end};
use crate::support::program::compile;

/// What to do with a command that begins with a given text.
enum Rule {
    /// It succeeds, and its output contains this text.
    Prints(&'static str),
    /// It serves until it is stopped, and must become ready. If it needs an extended configuration, [`SECURE`] is added
    /// to it.
    Serves,
    /// It is not run, for this reason.
    Not(&'static str),
}

use Rule::{Not, Prints, Serves};

/// The first match applies.
const RULES: &[(&str, Rule)] = &[
    // What a reader types first; the rest of the pages builds on the results.
    ("install -m 755", Prints("")),
    ("install -d", Prints("")),
    ("cp config.example.yaml", Prints("")),
    ("exporter check /etc", Prints("udp:block_reconstructed")),
    ("sudo exporter --config", Serves),
    ("exporter man", Prints("")),
    ("./generate-certs.sh --client", Prints("client.crt (new)")),
    ("./generate-certs.sh", Prints("192.168.1.10")),
    ("scp", Prints("")),
    ("exporter probes /usr/lib/postgresql/15/bin/postgres --yaml", Prints("")),
    ("exporter probes /usr/lib/postgresql/15/bin/postgres", Prints("query__start")),
    ("exporter check pg.yaml", Prints("postgresql:query__start")),
    ("exporter check --attach FILE", Prints("udp:block_reconstructed")),
    ("exporter check --attach config.yaml", Prints("udp:block_reconstructed")),
    ("exporter check FILE", Prints("udp:block_reconstructed")),
    ("exporter probes BITCOIND", Prints("block_reconstructed")),
    ("exporter probes FILE", Prints("block_reconstructed")),
    ("exporter probes /usr/local/bin/bitcoind", Prints("block_reconstructed")),
    ("exporter dashboard --alerts FILE", Prints("- alert: ExporterDown")),
    ("exporter dashboard FILE", Prints("fibre_last_block_height")),
    ("exporter unpin", Prints("nothing is pinned")),
    ("exporter profiles NAME", Prints("profile: fibre")),
    ("exporter profiles", Prints("postgresql")),
    ("exporter hash-password", Prints("$2")),
    ("exporter schema --markdown", Prints("| `bitcoind_path` |")),
    ("exporter schema > schema.json", Prints("")),
    ("exporter schema", Prints("json-schema.org")),
    ("curl -s http://127.0.0.1:9436/health", Prints("ok")),
    ("curl -s http://127.0.0.1:9436/ready", Prints("ready")),
    ("curl -s -K secret.curl https://127.0.0.1:9435/metrics", Prints("fibre_exporter_up 1")),
    ("curl -s -K secret.curl https://127.0.0.1:9435/api/v1/status", Prints("\"summary\":\"")),
    ("curl -s -K secret.curl https://localhost:9435/metrics | grep -c", Prints("9")),
    (
        "curl -s -K secret.curl https://localhost:9435/metrics | grep network_attached",
        Prints("network_attached{interface=\"eth0\",direction=\"ingress\"} 1"),
    ),
    ("ip -s link", Prints("eth0")),
    ("ip netns", Prints("")),
    ("tc filter show dev eth0 egress", Prints("")),
    ("exporter block", Not("it needs an exporter that blocks; tests/whole/blocklist.rs runs it")),
    ("exporter unblock", Not("it needs an exporter that blocks; tests/whole/blocklist.rs runs it")),
    ("exporter events", Not("no slow event was kept here; tests/whole/slow.rs shows some")),
    ("exporter check --attach", Not("the name of a command whose use is shown elsewhere")),
    ("exporter check", Not("the name of a command whose use is shown elsewhere")),
    ("exporter probes --functions GLOB", Not("an option; tests/whole/commands/probes.rs uses it")),
    ("./run", Not("it builds; scripts/test-from-nothing.sh runs it")),
    ("./test", Not("it is what runs this")),
    ("HARM_CALLS", Not("hours")),
    ("PROMETHEUS=", Not("./test runs these with Debian's Prometheus; another one is not installed")),
    (".ci/run", Not("it runs this")),
    ("scripts/install-deps.sh", Not("it changes the machine; ./test runs it first")),
    ("mdbook serve", Not("it is not installed for tests; .ci/run builds the book")),
    ("cargo bench", Not("minutes, for figures")),
    ("promtool test rules", Not("the name of a command; tests/unprivileged/stack/files.rs runs it")),
    ("systemctl", Not("no service manager; scripts/test-service.sh runs one")),
    ("journalctl", Not("no service manager; scripts/test-service.sh runs one")),
    ("ethtool", Not("it is for a network card")),
    ("docker", Not("no container engine; scripts/test-docker.sh runs one")),
    ("podman", Not("no container engine; scripts/test-docker.sh runs it")),
    ("scripts/test-docker.sh", Not("minutes, and a container engine")),
    ("chcon", Not("no SELinux")),
    ("firewall-cmd", Not("no firewall of that kind")),
    ("ufw", Not("no firewall of that kind")),
    ("curl -N -u prometheus", Not("asks for a password; tests/whole/blocklist.rs reads the stream")),
    ("curl -s localhost:9090", Not("no Prometheus here; tests/unprivileged/stack/live.rs asks one")),
];

/// Placeholders for something of the reader's.
const PLACEHOLDERS: &[(&str, &str)] = &[
    ("probes FILE", "probes /usr/local/bin/bitcoind"),
    ("FILE", "/etc/fibre-exporter/config.yaml"),
    ("BITCOIND", "/usr/local/bin/bitcoind"),
    ("NAME", "fibre"),
];

/// Pages in the order in which a reader gets to them, where one depends on another.
const FIRST: [&str; 2] = ["docs/bitcoin.md", "docs/applications.md"];

/// Returns the commands of a page: lines that are indented or in a block of commands, and inline code that begins like
/// a rule.
fn commands(text: &str) -> Vec<String> {
    let (mut found, mut block) = (Vec::new(), None);
    for line in text.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            block = if block.is_some() { None } else { Some(language.to_owned()) };
            continue;
        }
        let typed = match &block {
            None => line.strip_prefix("    ").filter(|line| !line.starts_with(' ')),
            Some(language) => ["sh", "console"].contains(&language.as_str()).then_some(line),
        };
        match typed {
            Some(line) => {
                let line = line.strip_prefix("$ ").unwrap_or(line).split(" #").next().unwrap().trim();
                // The lines of a diagram have wide gaps.
                found.extend(
                    Some(line.to_owned()).filter(|line| !line.contains("   ") && !line.starts_with('+')),
                );
            }
            None if block.is_none() => {
                let spans = line.split('`').skip(1).step_by(2).map(|span| span.replace("\\|", "|"));
                found.extend(spans.filter(|span| {
                    let words = RULES.iter().map(|(begin, _)| begin.split(' ').next().unwrap());
                    let first = span.split(' ').next().unwrap();
                    span.contains(' ') && words.into_iter().any(|word| word == first)
                }));
            }
            None => {}
        }
    }
    found
}

#[test]
fn every_documented_command_runs_or_is_excused() {
    let mut pages: Vec<String> = fs::read_dir("docs")
        .unwrap()
        .map(|entry| entry.unwrap().path().display().to_string())
        .filter(|page| page.ends_with(".md") && !FIRST.contains(&page.as_str()))
        .collect();
    pages.sort();
    pages.extend(["README.md".into(), "CONTRIBUTING.md".into()]);
    let mut machine = Machine::new();
    let mut used = vec![false; RULES.len()];
    let mut wrong = String::new();
    for page in FIRST.map(String::from).into_iter().chain(pages) {
        let is_trouble = page.ends_with("troubleshooting.md");
        for command in commands(&fs::read_to_string(&page).unwrap()) {
            let Some(rule) = RULES.iter().position(|(begin, _)| command.starts_with(begin)) else {
                wrong += &format!("{page}: {command}: no rule in tests/whole/documented.rs\n");
                continue;
            };
            used[rule] = true;
            let outcome = match &RULES[rule].1 {
                Not(reason) => {
                    println!("{page}: {command}: not run: {reason}");
                    continue;
                }
                Serves => machine.serve(&command),
                Prints(text) => {
                    if is_trouble {
                        machine.be_what_is_asked_about(command.contains("secret.curl"));
                    }
                    machine.prints(&command, text)
                }
            };
            if let Err(err) = outcome {
                wrong += &format!("{page}: {command}: {err}\n");
            }
        }
    }
    for ((begin, _), used) in RULES.iter().zip(used) {
        if !used {
            wrong += &format!("no command begins with {begin}: take its rule away\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// The functions in examples that belong to no particular program.
const ANY: &str = "void conn_accepted(void) { __asm__ volatile (\"\"); }\n\
                   void conn_closed(void) { __asm__ volatile (\"\"); }\n\
                   void handle_request(void) { __asm__ volatile (\"\"); }\n\
                   int main(void) { conn_accepted(); handle_request(); conn_closed(); return 0; }\n";

/// Returns the program with the probes of an example that names no program.
fn program_of(block: &str) -> Option<&'static Path> {
    let known = [("SSL_", "/usr/lib/x86_64-linux-gnu/libssl.so.3"), ("usdt:", "/usr/local/bin/bitcoind")];
    known.iter().find(|(word, _)| block.contains(word)).map(|(_, path)| Path::new(*path))
}

#[test]
fn every_documented_config_matches_its_programs() {
    let machine = Machine::new();
    let any = compile("cc", "any.c", ANY, &["-fno-inline"], &machine.place.path("work"));
    // Certificates and passwords are where the examples expect them.
    let files = "umask 077; ./generate-certs.sh 127.0.0.1 && mkdir -p /etc/fibre-exporter /etc/exporter && \
                 echo secret | tee /etc/fibre-exporter/password > /etc/fibre-exporter/webhook-secret && \
                 cp certs/127.0.0.1/node.* /etc/fibre-exporter && \
                 cp certs/127.0.0.1/node.* /etc/exporter && cp certs/ca.crt /etc/exporter/clients.crt && \
                 ./generate-certs.sh --client prometheus.example.org && mkdir -p /etc/prometheus && \
                 cp certs/ca.crt certs/prometheus.example.org/client.* /etc/prometheus";
    let made = machine.run(files);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let (mut checked, mut wrong) = (0, String::new());
    for (page, text) in pages() {
        let web = page.ends_with("web.md");
        for (line, block) in fenced(&text, "yaml").into_iter().chain(fenced(&text, "yml")) {
            let is_of_job =
                |block: &str| ["metric_relabel_configs", "scheme:"].iter().any(|key| block.starts_with(key));
            let (config, command) = if is_of_job(&block) {
                // A part of Prometheus's own configuration.
                let block = block.replace('\n', "\n    ");
                (format!("scrape_configs:\n  - job_name: exporter\n    {block}\n"), "promtool check config")
            } else if block.starts_with("alerting:") {
                (block, "promtool check config")
            } else if web && block.starts_with("tls_server_config") {
                machine.place.write("work/web.yml", &block);
                let rest = "bitcoind_path: /usr/local/bin/bitcoind\nweb_config_file: web.yml\n";
                (rest.to_owned(), "target/release/exporter check")
            } else {
                (whole(&block, program_of(&block).unwrap_or(&any)), "target/release/exporter check")
            };
            machine.place.write("work/page.yaml", &config);
            checked += 1;
            if let Err(err) = machine.prints(&format!("{command} page.yaml"), "") {
                wrong += &format!("{}:{line}:\n{config}\n{err}\n", page.display());
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(checked >= 10, "{checked} configurations");
}

/// Private namespaces, with an interface `eth0` and the demo program as bitcoind. `sudo` and `scp` are replaced by
/// scripts.
struct Machine {
    place: Place,
    /// The process that keeps the namespaces alive.
    holder: Child,
    serving: Option<(String, Child)>,
}

const SUDO: &str = "#!/bin/sh\nexec \"$@\"\n";
const SCP: &str = "#!/bin/bash\nto=${!#}\nexec cp \"${@:1:$#-1}\" \"${to#*:}\"\n";

/// What the Bitcoin page adds to the example: TLS, a password, and, for the troubleshooting page, an interface.
const SECURE: &str = "\nmetrics_auth_username: prometheus\nmetrics_auth_password_file: /etc/fibre-exporter/password\n\
                      tls_cert: /etc/fibre-exporter/node.crt\ntls_key: /etc/fibre-exporter/node.key\n\
                      network:\n  interfaces: [eth0]\n";

impl Machine {
    fn new() -> Self {
        let place = Place::new();
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        for directory in ["work/target/release", "tools", "etc", "etc-work", "local", "local-work"] {
            fs::create_dir_all(place.path(directory)).unwrap();
        }
        for file in ["config.example.yaml", "generate-certs.sh"] {
            symlink(repository.join(file), place.path("work").join(file)).unwrap();
        }
        symlink(env!("CARGO_BIN_EXE_exporter"), place.path("work/target/release/exporter")).unwrap();
        place.write("work/secret.curl", "user = \"prometheus:secret\"\ncacert = \"certs/ca.crt\"\n");
        for (name, text) in [("tools/sudo", SUDO), ("tools/scp", SCP)] {
            let tool = place.write(name, text);
            fs::set_permissions(tool, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let at = |name: &str| place.path(name).display().to_string();
        let over = |directory: &str, name: &str| {
            let (upper, work) = (at(name), at(&format!("{name}-work")));
            format!(
                "mount -t overlay overlay -o lowerdir={directory},upperdir={upper},workdir={work} {directory}"
            )
        };
        let script = format!(
            "set -e\n{}\n{}\nip link set lo up\nip link add eth0 type veth peer name peer\nip link set eth0 up\n\
             mkdir -p /usr/local/bin\ncp {} /usr/local/bin/bitcoind\ntouch {}\nexec sleep infinity\n",
            over("/etc", "etc"),
            over("/usr/local", "local"),
            program("fibre-demo").display(),
            at("ready"),
        );
        let mut holder = Command::new("unshare")
            .args(["--mount", "--net", "bash", "-c", &script])
            .stdin(Stdio::null())
            .spawn()
            .expect("run unshare");
        wait_for("a machine of its own", || {
            assert!(holder.try_wait().unwrap().is_none(), "the namespaces could not be made");
            place.path("ready").exists()
        });
        Self { place, holder, serving: None }
    }

    /// Returns a command that runs this line with bash on the machine.
    fn shell(&self, line: &str) -> Command {
        let mut line = line.to_owned();
        for (placeholder, meant) in PLACEHOLDERS {
            line = line.replace(placeholder, meant);
        }
        let work = self.work();
        let tools = self.place.path("tools");
        let path = format!("/usr/local/bin:{}:/usr/sbin:/usr/bin:/sbin:/bin", tools.display());
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--net", "--target", &self.holder.id().to_string(), "bash", "-c"]);
        command
            .arg(format!("set -o pipefail; cd {} && {line}", work.display()))
            .env_clear()
            .env("PATH", path);
        command
    }

    fn work(&self) -> PathBuf {
        self.place.path("work")
    }

    fn run(&self, line: &str) -> Output {
        // For commands that ask for a password.
        let input = self.place.write("input", "secret\n");
        self.shell(line).stdin(fs::File::open(input).unwrap()).output().expect("run nsenter")
    }

    /// Runs it until it ends; its output must contain `text`.
    fn prints(&self, line: &str, text: &str) -> Result<(), String> {
        let output = self.run(line);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        match output.status.success() && out.contains(text) {
            true => Ok(()),
            false => Err(format!("{}: not {text:?}:\n{out}{err}", output.status)),
        }
    }

    /// Starts it and waits until it is ready, according to the example's health port.
    fn serve(&mut self, line: &str) -> Result<(), String> {
        self.end();
        let log = self.place.path("log");
        let file = fs::File::create(&log).unwrap();
        let mut command = self.shell(&format!("exec {line}"));
        let child =
            command.stdin(Stdio::null()).stderr(file.try_clone().unwrap()).stdout(file).spawn().unwrap();
        self.serving = Some((line.to_owned(), child));
        let told = || String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
        let mut ended = None;
        wait_for("the exporter to be ready", || {
            ended = self.serving.as_mut().and_then(|(_, child)| child.try_wait().unwrap());
            let ready = |scheme: &str| {
                let line = format!("curl -sk --max-time 30 --fail {scheme}://127.0.0.1:9436/ready");
                self.run(&line).status.success()
            };
            ended.is_some() || ready("http") || ready("https")
        });
        ended.map_or(Ok(()), |status| Err(format!("it ended, {status}:\n{}", told())))
    }

    /// Makes sure that the exporter that the troubleshooting page queries is running: with the example's configuration,
    /// either with TLS, a password and an interface, or without.
    fn be_what_is_asked_about(&mut self, secure: bool) {
        let config = if secure { "secure.yaml" } else { "config.yaml" };
        let example = fs::read_to_string("config.example.yaml").unwrap();
        fs::write(self.work().join("config.yaml"), &example).unwrap();
        fs::write(self.work().join("secure.yaml"), example + SECURE).unwrap();
        let password = "umask 077 && echo secret > /etc/fibre-exporter/password";
        assert!(self.run(password).status.success());
        let line = format!("exporter --config {config}");
        if self.serving.as_ref().is_none_or(|(serving, _)| *serving != line) {
            self.serve(&line).unwrap_or_else(|err| panic!("{err}"));
        }
    }

    fn end(&mut self) {
        if let Some((_, mut child)) = self.serving.take() {
            send_signal(child.id(), "TERM");
            wait_for_end(&mut child);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some((_, child)) = &mut self.serving {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

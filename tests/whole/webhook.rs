//! Slow events that are forwarded, to a receiver that is initially down.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use crate::slow::events;
use crate::support::demo::{Forms, program};
use crate::support::exporter::{Place, Setup, exporter, finish, wait_for};
use crate::support::exposition::Metrics;

/// Prints its port, listens once its input says so, and prints its response to each request, with the request's body.
/// It rejects a body whose signature does not match the secret, as computed by Python's library.
const RECEIVER: &str = r#"
import hashlib, hmac, http.server, json, socketserver, sys

answers = [500]

class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        secret = open(sys.argv[1], "rb").read().strip()
        signed = hmac.new(secret, self.headers["X-Exporter-Timestamp"].encode() + b"." + body, hashlib.sha256)
        is_right = hmac.compare_digest("sha256=" + signed.hexdigest(), self.headers["X-Exporter-Signature"])
        status = (answers.pop() if answers else 204) if is_right else 403
        self.send_response(status)
        self.end_headers()
        print(json.dumps([status, self.path, json.loads(body)]), flush=True)

    def log_message(self, *_):
        pass

server = http.server.HTTPServer(("127.0.0.1", 0), Hook, bind_and_activate=False)
# That of HTTPServer looks for a name, too.
socketserver.TCPServer.server_bind(server)
print(server.server_address[1], flush=True)
sys.stdin.readline()
server.server_activate()
server.serve_forever()
"#;

struct Receiver {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    port: u16,
}

impl Receiver {
    fn start(secret: &std::path::Path) -> Receiver {
        let mut python = Command::new("/usr/bin/python3");
        python.args(["-c", RECEIVER]).arg(secret).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = python.spawn().expect("run python3");
        let input = process.stdin.take().expect("its input");
        let output = BufReader::new(process.stdout.take().expect("its output"));
        let mut receiver = Receiver { process, input, output, port: 0 };
        receiver.port = receiver.line().trim().parse().expect("a port");
        receiver
    }

    fn listen(&mut self) {
        self.input.write_all(b"\n").expect("tell it");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        line
    }

    /// Returns the status and events of the next request.
    fn request(&mut self) -> (u64, Vec<Value>) {
        let line = self.line();
        let request: Value = serde_json::from_str(&line).unwrap_or_else(|err| panic!("{err}: {line}"));
        assert_eq!((&request[1], &request[2]["version"]), (&"/hook".into(), &1.into()), "{line}");
        (request[0].as_u64().expect("a status"), request[2]["events"].as_array().expect("events").clone())
    }

    /// Receives requests until `count` events were accepted, and returns these events.
    fn taken(&mut self, count: usize) -> Vec<Value> {
        let mut taken = Vec::new();
        while taken.len() < count {
            let (status, events) = self.request();
            assert_ne!(status, 403, "the signature is wrong");
            taken.extend(if status == 204 { events } else { Vec::new() });
        }
        taken
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn slow_events_reach_a_receiver_that_was_down() {
    let place = Place::new();
    let binary = place.copy_of(&program("forms"), "forms");
    let (file, secret) = (place.path("events.db"), place.write("secret", "first secret\n"));
    let mut receiver = Receiver::start(&secret);
    let yaml = format!(
        "node_name: test\nslow_events:\n  file: {}\n  webhook: {{ url: 'http://127.0.0.1:{}/hook', secret_file: {} }}\ntargets:\n- name: forms\n  binary: {}\n  probes:\n  - on: usdt:forms:i32\n    args: {{ n: 0 }}\n    metrics:\n    - {{ histogram: forms_n, value: n, buckets: [0], slow: -3000000000 }}\n",
        file.display(),
        receiver.port,
        secret.display(),
        binary.display()
    );
    let running = Setup::new(&place, yaml).start();
    running.wait_until_ready();
    let mut program = Forms::start(&binary);
    program.fire("i32", 100);
    let of = |scrape: &Metrics, what: &str| scrape.sum(&format!("fibre_exporter_webhook_{what}"), &[]);
    running.scrape_until("a request to fail", |scrape| of(scrape, "requests_failed_total") > 0.0);
    running.wait_for_log("Slow events were not sent to the webhook http://127.0.0.1:");
    let scrape = running.scrape_until("every event to wait", |scrape| {
        of(scrape, "events_waiting") == scrape.value("fibre_exporter_slow_events_total", &[])
    });
    let count = of(&scrape, "events_waiting") as usize;
    assert_eq!((count > 0, of(&scrape, "events_sent_total")), (true, 0.0));
    receiver.listen();
    let taken = receiver.taken(count);
    let kept = events(&["--file", &file.display().to_string(), "--limit", "10000"]);
    assert_eq!(taken, kept, "each once, in its order, as it is kept");
    let scrape = running.scrape_until("every event to be sent", |scrape| of(scrape, "events_waiting") == 0.0);
    assert_eq!((of(&scrape, "events_sent_total"), of(&scrape, "events_total")), (count as f64, count as f64));
    assert_eq!(of(&scrape, "events_dropped_total"), 0.0);
    // A reload applies a new secret.
    place.write("secret", "another secret\n");
    let reloaded = running.fetch("/-/reload", &["--request", "POST"]);
    assert!(String::from_utf8_lossy(&reloaded.stdout).contains("1 probes unchanged"), "{reloaded:?}");
    program.fire("i32", 1);
    let more = receiver.taken(1);
    assert!(more[0]["id"].as_u64() > kept[count - 1]["id"].as_u64(), "{more:?}");
    wait_for("it to be counted", || of(&running.scrape(), "events_sent_total") > count as f64);
    let config = place.path("config.yaml").display().to_string();
    let (code, shown, told) = finish(exporter().args(["check", &config]));
    assert_eq!(code, Some(0), "{told}");
    let sent = format!(", and sent to http://127.0.0.1:{}\n", receiver.port);
    assert!(shown.contains(&sent), "{shown}");
    let log = running.log();
    running.stop();
    assert!(!log.contains("first secret") && !log.contains("another secret"), "no secret is logged");
}

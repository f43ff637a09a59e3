use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use socket2::{Domain, Socket, Type};

use super::*;
use crate::http_client::Url;

/// Longer than any operation should take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What the receiver does with each connection; afterwards it accepts everything.
#[derive(Clone, Copy)]
enum Does {
    Closes,
    SaysNothing,
    Answers(&'static str),
}

const TAKES: Does = Does::Answers("204 No Content");

/// A receiver on this machine. It refuses connections until `serve` is called.
struct Fake {
    socket: Socket,
    address: SocketAddr,
}

impl Fake {
    fn new() -> Fake {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        Fake { socket, address }
    }

    fn url(&self) -> String {
        format!("http://{}/hook?key=1", self.address)
    }

    /// Follows the script. The channel yields head and body of each request.
    fn serve(self, script: &'static [Does]) -> mpsc::Receiver<(String, String)> {
        self.socket.listen(16).unwrap();
        let listener: std::net::TcpListener = self.socket.into();
        let (requests, received) = mpsc::channel();
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for number in 0.. {
                let Ok((stream, _)) = listener.accept() else { return };
                match script.get(number).copied().unwrap_or(TAKES) {
                    Does::Closes => {}
                    Does::SaysNothing => held.push(stream),
                    Does::Answers(status) => {
                        let request = answer(stream, status);
                        if requests.send(request).is_err() {
                            return;
                        }
                    }
                }
            }
        });
        received
    }
}

fn answer(mut stream: impl Read + Write, status: &str) -> (String, String) {
    let mut request = Vec::new();
    let (head, length) = loop {
        let mut some = [0; 4096];
        let n = stream.read(&mut some).unwrap_or(0);
        if n == 0 {
            return Default::default();
        }
        request.extend_from_slice(&some[..n]);
        if let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(request[..end].to_vec()).unwrap().to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.expect("a length").parse().unwrap();
            request.drain(..end + 4);
            break (head, length);
        }
    };
    let rest = length.saturating_sub(request.len());
    let mut more = vec![0; rest];
    if stream.read_exact(&mut more).is_ok() {
        request.extend(more);
        let _ =
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").and_then(|()| stream.flush());
    }
    (head, String::from_utf8(request).unwrap())
}

fn pace() -> Pace {
    let short = Duration::from_millis(1);
    Pace { attempt: Duration::from_secs(2), first: short, longest: short, asked: short, ..Pace::default() }
}

fn sends_to(url: &str, pace: Pace) -> Webhook {
    let webhook = Webhook::default();
    webhook.set(Some(Receiver::new(Url::parse(url).unwrap(), "secret", None).unwrap()));
    webhook.start_with(pace).unwrap();
    webhook
}

fn offer(webhook: &Webhook, numbers: std::ops::Range<usize>) {
    numbers.for_each(|number| webhook.outbox().offer(|| format!("{{\"id\":{number}}}")));
}

fn wait_for(what: &str, outbox: &Outbox, condition: impl Fn(&WebhookNumbers) -> bool) -> WebhookNumbers {
    let begun = Instant::now();
    loop {
        let numbers = outbox.numbers().unwrap();
        assert_eq!(numbers.events, numbers.sent + numbers.dropped.iter().sum::<u64>() + numbers.waiting);
        if condition(&numbers) {
            return numbers;
        }
        assert!(begun.elapsed() < TIMEOUT, "waited in vain for {what}: {numbers:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Parses the event numbers in a body.
fn ids(body: &str) -> Vec<u64> {
    let body: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|err| panic!("{err}: {body}"));
    assert_eq!(body["version"], 1);
    body["events"].as_array().unwrap().iter().map(|event| event["id"].as_u64().unwrap()).collect()
}

#[test]
fn delivers_everything_despite_receiver_failures() {
    let fake = Fake::new();
    let webhook = sends_to(&fake.url(), pace());
    offer(&webhook, 0..3);
    wait_for("a connection to be refused", webhook.outbox(), |numbers| numbers.failed_requests > 0);
    let received = fake.serve(&[
        Does::Closes,
        Does::SaysNothing,
        Does::Answers("500 Internal Server Error"),
        Does::Answers("503 Service Unavailable\r\nRetry-After: 0"),
        Does::Answers("429 Too Many Requests\r\nRetry-After: soon"),
    ]);
    let numbers = wait_for("all to be sent", webhook.outbox(), |numbers| numbers.sent == 3);
    assert!(numbers.failed_requests > 5 && numbers.dropped == [0; 4], "{numbers:?}");
    let requests: Vec<_> = received.try_iter().collect();
    let (head, body) = requests.last().unwrap();
    assert_eq!(ids(body), [0, 1, 2]);
    for line in ["post /hook?key=1 http/1.1", "content-type: application/json"] {
        assert!(head.lines().any(|found| found == line), "{head}");
    }
    let value = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
    let receiver = Receiver::new(Url::parse("http://localhost").unwrap(), "secret", None).unwrap();
    let expected = receiver.signature(&value("x-exporter-timestamp: "), body.as_bytes());
    assert_eq!(value("x-exporter-signature: "), expected);
}

#[test]
fn signature_covers_time_and_body() {
    let receiver = Receiver::new(Url::parse("http://localhost").unwrap(), "secret", None).unwrap();
    // Computed by Python's hmac for "1795703781.{}".
    let expected = "sha256=f06a03bb99184bd3193e1b54f95aa812880e5a86e1760d3a03b6e1f2f8781bdb";
    assert_eq!(receiver.signature("1795703781", b"{}"), expected);
    assert!(!format!("{receiver:?} {receiver}").contains("secret"));
}

#[test]
fn events_are_batched_in_order() {
    let fake = Fake::new();
    let webhook = sends_to(&fake.url(), pace());
    offer(&webhook, 0..500);
    let received = fake.serve(&[]);
    wait_for("all to be sent", webhook.outbox(), |numbers| numbers.sent == 500);
    let requests: Vec<_> = received.try_iter().map(|(_, body)| ids(&body)).collect();
    assert!(requests.iter().all(|ids| ids.len() <= 64), "{requests:?}");
    assert_eq!(requests.concat(), (0..500).collect::<Vec<_>>());
}

#[test]
fn overflowing_events_are_dropped_and_counted() {
    let fake = Fake::new();
    let webhook = sends_to(&fake.url(), pace());
    offer(&webhook, 0..2000);
    let numbers = webhook.outbox().numbers().unwrap();
    assert_eq!((numbers.waiting, numbers.dropped), (1024, [976, 0, 0, 0]));
    // The limit in bytes applies too.
    let webhook = sends_to(&fake.url(), pace());
    (0..10).for_each(|_| webhook.outbox().offer(|| "x".repeat(1 << 20)));
    let numbers = webhook.outbox().numbers().unwrap();
    assert_eq!((numbers.waiting, numbers.dropped), (4, [6, 0, 0, 0]));
}

#[test]
fn rejected_events_are_not_retried() {
    let fake = Fake::new();
    let webhook = sends_to(&fake.url(), pace());
    offer(&webhook, 0..1);
    let received = fake
        .serve(&[Does::Answers("400 Bad Request"), Does::Answers("308 Permanent Redirect\r\nLocation: /x")]);
    wait_for("it to be rejected", webhook.outbox(), |numbers| numbers.dropped == [0, 1, 0, 0]);
    offer(&webhook, 1..2);
    wait_for("it to be redirected", webhook.outbox(), |numbers| numbers.dropped == [0, 2, 0, 0]);
    offer(&webhook, 2..3);
    wait_for("one to be sent", webhook.outbox(), |numbers| numbers.sent == 1);
    let requests: Vec<_> = received.try_iter().map(|(_, body)| ids(&body)).collect();
    assert_eq!(requests.concat(), [0, 1, 2]);
}

#[test]
fn expired_events_are_dropped() {
    let fake = Fake::new();
    let webhook = sends_to(&fake.url(), Pace { max_age: Duration::ZERO, ..pace() });
    offer(&webhook, 0..3);
    wait_for("all to be dropped", webhook.outbox(), |numbers| numbers.dropped == [0, 0, 3, 0]);
}

#[test]
fn shutdown_makes_one_last_attempt() {
    let fake = Fake::new();
    // Leaves no time for a second attempt.
    let slow = Pace { first: 10 * TIMEOUT, longest: 10 * TIMEOUT, last: TIMEOUT, ..pace() };
    let webhook = sends_to(&fake.url(), slow);
    offer(&webhook, 0..3);
    let outbox = webhook.outbox().clone();
    wait_for("a connection to be refused", &outbox, |numbers| numbers.failed_requests == 1);
    let received = fake.serve(&[]);
    drop(webhook);
    assert_eq!(outbox.numbers().unwrap().sent, 3);
    assert_eq!(received.try_iter().count(), 1);

    let fake = Fake::new();
    let webhook =
        sends_to(&fake.url(), Pace { attempt: 10 * TIMEOUT, last: Duration::from_millis(50), ..pace() });
    let outbox = webhook.outbox().clone();
    let _received = fake.serve(&[Does::SaysNothing]);
    offer(&webhook, 0..3);
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || {
        drop(webhook);
        ended.send(())
    });
    assert_ne!(end.recv_timeout(TIMEOUT), Err(RecvTimeoutError::Timeout), "it waits for the receiver");
    assert_eq!(outbox.numbers().unwrap().dropped, [0, 0, 0, 3]);
}

#[test]
fn no_receiver_means_no_queue() {
    let webhook = Webhook::default();
    webhook.start().unwrap();
    webhook.outbox().offer(|| panic!("nobody wants it"));
    assert!(webhook.outbox().numbers().is_none());
    let fake = Fake::new();
    let webhook = sends_to(&fake.url(), pace());
    offer(&webhook, 0..3);
    webhook.set(None);
    assert!(webhook.outbox().next().is_none());
}

#[test]
fn retry_delays_grow_to_the_maximum() {
    let pace = Pace::default();
    for (failures, seconds) in [(1, 1.0), (2, 2.0), (5, 16.0), (7, 60.0), (1000, 60.0)] {
        let pause = pace.pause(failures).as_secs_f64();
        assert!((0.75 * seconds..=1.25 * seconds).contains(&pause), "{failures}: {pause}");
    }
}

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Starts a receiver with a certificate for this name.
fn secure(issuer: &Authority, name: &str) -> SocketAddr {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, issuer).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.serialize_der().try_into().unwrap())
        .unwrap();
    let config = Arc::new(config);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let tls = ServerConnection::new(config.clone()).unwrap();
            answer(StreamOwned::<_, TcpStream>::new(tls, stream), "200 OK");
        }
    });
    address
}

#[test]
fn sends_only_to_a_receiver_with_a_trusted_certificate() {
    let (ours, theirs) = (authority(), authority());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.crt");
    std::fs::write(&file, ours.pem()).unwrap();
    let sends = |address: SocketAddr| {
        let webhook = Webhook::default();
        let address = Url::parse(&format!("https://localhost:{}/", address.port())).unwrap();
        webhook.set(Some(Receiver::new(address, "secret", Some(file.clone())).unwrap()));
        webhook.start_with(pace()).unwrap();
        offer(&webhook, 0..1);
        webhook
    };
    let good = sends(secure(&ours, "localhost"));
    wait_for("the event to be sent", good.outbox(), |numbers| numbers.sent == 1);
    for (issuer, name) in [(&theirs, "localhost"), (&ours, "elsewhere.example")] {
        let bad = sends(secure(issuer, name));
        let numbers = wait_for("a failure", bad.outbox(), |numbers| numbers.failed_requests > 1);
        assert_eq!((numbers.sent, numbers.waiting), (0, 1), "{name}");
    }
}

#[test]
fn url_path_is_not_shown() {
    for (url, expected) in [
        ("https://hooks.example.org/services/T0/B1/secret?x=y", "https://hooks.example.org"),
        ("http://[::1]:9000", "http://[::1]:9000"),
    ] {
        assert_eq!(shown(&Url::parse(url).unwrap()), expected);
    }
}

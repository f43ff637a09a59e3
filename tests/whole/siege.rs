//! A scraper keeps getting its answers while strangers do what they can, from its own address and from others.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use socket2::{Domain, Socket, Type};

use crate::support::demo::program;
use crate::support::exporter::{Exporter, PASSWORD, PATIENCE, Place, Setup, USER};

/// Scrapes that are asked for under each siege.
const SCRAPES: usize = 30;
/// Connections that one besieger makes at most, so that it ends whatever happens.
const MOST_CONNECTIONS: usize = 20_000;
const SCRAPER: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn besieged(place: &Place) -> Exporter {
    // The cost is low because this is often a build without optimisation.
    let hash = bcrypt::hash(PASSWORD, 7).expect("hash the password");
    let auth = format!("metrics_auth_username: {USER}\nmetrics_auth_password: '{hash}'\n");
    let binary = place.copy_of(&program("fibre-demo"), "bitcoind");
    Setup::fibre(place, &binary).yaml(&auth).start()
}

fn connect(from: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

fn authorization(password: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(format!("{USER}:{password}")))
}

/// Asks for the metrics; the answer's status, once all of it is there.
fn ask(stream: &mut TcpStream, password: &str) -> std::io::Result<u16> {
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\n{}\r\n", authorization(password))?;
    let mut answer = Vec::new();
    let head = loop {
        let mut some = [0; 8192];
        let n = stream.read(&mut some)?;
        if n == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&some[..n]);
        if let Some(at) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
    };
    let text = String::from_utf8_lossy(&answer[..head]).to_lowercase();
    let length: usize = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .and_then(|length| length.parse().ok())
        .expect("a length");
    let mut rest = vec![0; (head + length).saturating_sub(answer.len())];
    stream.read_exact(&mut rest)?;
    Ok(text[9..12].parse().expect("a status"))
}

/// One of each besieger's connections, over and over.
type Besieger = fn(Ipv4Addr, u16, u32) -> std::io::Result<()>;

fn guess(from: Ipv4Addr, port: u16, number: u32) -> std::io::Result<()> {
    // No two guesses are alike, so no answer is known already.
    ask(&mut connect(from, port)?, &format!("guess {number}")).map(|_| ())
}

fn connect_and_say_nothing(from: Ipv4Addr, port: u16, _: u32) -> std::io::Result<()> {
    let stream = connect(from, port)?;
    stream.set_read_timeout(Some(Duration::from_millis(50)))?;
    let _ = (&stream).read(&mut [0; 1]);
    Ok(())
}

/// Scrapes by one connection that is kept, and by one that is new each time, while besiegers do their work from these
/// addresses. Each scrape is asked for once.
fn scrapes_under(exporter: &Exporter, addresses: &[Ipv4Addr], each: usize, besieger: Besieger) {
    let port = exporter.port;
    let mut kept = connect(SCRAPER, port).expect("connect");
    assert_eq!(ask(&mut kept, PASSWORD).expect("the first scrape"), 200);
    let (stop, number) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for address in addresses.iter().flat_map(|address| std::iter::repeat_n(*address, each)) {
            let (stop, number) = (&stop, &number);
            scope.spawn(move || {
                for _ in 0..MOST_CONNECTIONS {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // What becomes of it is its own affair.
                    let _ = besieger(address, port, number.fetch_add(1, Ordering::Relaxed));
                }
            });
        }
        let scraped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while number.load(Ordering::Relaxed) < 100 {
                std::thread::sleep(Duration::from_millis(5));
            }
            for n in 0..SCRAPES {
                let status = ask(&mut kept, PASSWORD);
                assert!(matches!(status, Ok(200)), "scrape {n} by the kept connection: {status:?}");
                let status = connect(SCRAPER, port).and_then(|mut new| ask(&mut new, PASSWORD));
                assert!(matches!(status, Ok(200)), "scrape {n} by a new connection: {status:?}");
            }
        }));
        stop.store(true, Ordering::Relaxed);
        scraped.unwrap();
    });
}

fn others(n: u8) -> Vec<Ipv4Addr> {
    (1..=n).map(|n| Ipv4Addr::new(127, 0, 1, n)).collect()
}

#[test]
fn guesses_from_the_scrapers_own_address_keep_nobody_out() {
    let place = Place::new();
    scrapes_under(&besieged(&place), &[SCRAPER], 16, guess);
}

#[test]
fn guesses_from_other_addresses_keep_nobody_out() {
    let place = Place::new();
    scrapes_under(&besieged(&place), &others(4), 16, guess);
}

#[test]
fn a_flood_of_connections_keeps_nobody_out() {
    let place = Place::new();
    let exporter = besieged(&place);
    scrapes_under(&exporter, &others(200), 1, connect_and_say_nothing);
    scrapes_under(&exporter, &[SCRAPER], 32, connect_and_say_nothing);
}

#[test]
fn what_clients_do_wrong_is_counted() {
    let place = Place::new();
    let exporter = besieged(&place);
    let first_line = |request: &str| {
        let mut stream = connect(SCRAPER, exporter.port).expect("connect");
        stream.write_all(request.as_bytes()).expect("write");
        let mut answer = String::new();
        // It may be closed with bytes unread.
        let _ = stream.read_to_string(&mut answer);
        answer.lines().next().unwrap_or_default().to_owned()
    };
    assert!(first_line("GET / HTTP/1.1\r\n\r\n").contains(" 400 "), "without Host");
    let old = format!("GET / HTTP/1.0\r\n{}\r\n", authorization(PASSWORD));
    assert!(first_line(&old).contains(" 200 "), "HTTP/1.0 has none");
    assert!(first_line("\x01\x02\x03\r\n\r\n").contains(" 400 "));
    let large = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    assert!(first_line(&large).contains(" 431 "));
    let mut stream = connect(SCRAPER, exporter.port).expect("connect");
    assert_eq!(ask(&mut stream, "wrong").expect("an answer"), 401);
    assert_eq!(stream.read(&mut [0; 1]).expect("its end"), 0, "closed after a wrong password");
    let config = place.write("curl", &format!("user = \"{USER}:{PASSWORD}\"\n"));
    let output = exporter.fetch("/metrics", &["--config", config.to_str().expect("a path"), "--fail"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let counted = |name: &str| {
        let line = format!("fibre_exporter_http_{name}{{endpoint=\"metrics\"}} 1");
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    };
    counted("malformed_requests_total");
    counted("oversized_headers_total");
    counted("unauthorized_requests_total");
}

//! A scraper keeps getting responses while strangers attack the server, from the scraper's own address and from others.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::support::demo::program;
use crate::support::exporter::{Exporter, PASSWORD, Place, Setup, TIMEOUT, USER, wait_for};
use crate::support::siege::{Besieged, Besieger, connect_and_say_nothing, guess, others, send_noise};

/// The number of scrapes during each attack.
const SCRAPES: usize = 30;
/// The maximum number of connections of an attacker, so that it ends in any case.
const MOST_CONNECTIONS: usize = 20_000;
const SCRAPER: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn besieged(place: &Place) -> Exporter {
    // The cost is low because this is often an unoptimized build.
    besieged_at_cost(place, 7)
}

fn besieged_at_cost(place: &Place, cost: u32) -> Exporter {
    let hash = bcrypt::hash(PASSWORD, cost).expect("hash the password");
    let auth = format!("metrics_auth_username: {USER}\nmetrics_auth_password: '{hash}'\n");
    let binary = place.copy_of(&program("fibre-demo"), "bitcoind");
    Setup::fibre(place, &binary).yaml(&auth).start()
}

/// Returns the server as its clients know it.
fn known(exporter: &Exporter) -> Besieged<'static> {
    Besieged { port: exporter.port, user: USER, password: PASSWORD, patience: TIMEOUT }
}

/// Scrapes over a persistent connection and over new ones, while attackers run from these addresses. No scrape is
/// retried.
fn scrapes_under(exporter: &Exporter, addresses: &[Ipv4Addr], each: usize, besieger: Besieger) {
    let server = known(exporter);
    let mut kept = server.connect(SCRAPER).expect("connect");
    assert_eq!(server.ask(&mut kept, PASSWORD).expect("the first scrape"), 200);
    let (stop, number) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for address in addresses.iter().flat_map(|address| std::iter::repeat_n(*address, each)) {
            let (stop, number) = (&stop, &number);
            scope.spawn(move || {
                for _ in 0..MOST_CONNECTIONS {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // Its result does not matter.
                    let _ = besieger(server, address, number.fetch_add(1, Ordering::Relaxed));
                }
            });
        }
        let scraped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // Guesses are answered one after the other: a hundred of them may take longer than a connection may be idle.
            let begun = (addresses.len() * each).min(100) as u32;
            while number.load(Ordering::Relaxed) < begun {
                std::thread::sleep(Duration::from_millis(5));
            }
            for n in 0..SCRAPES {
                let status = server.ask(&mut kept, PASSWORD);
                assert!(matches!(status, Ok(200)), "scrape {n} by the kept connection: {status:?}");
                let status = server.connect(SCRAPER).and_then(|mut new| server.ask(&mut new, PASSWORD));
                assert!(matches!(status, Ok(200)), "scrape {n} by a new connection: {status:?}");
            }
        }));
        stop.store(true, Ordering::Relaxed);
        scraped.unwrap();
    });
}

#[test]
fn guesses_from_the_scraper_address_do_not_block_scrapes() {
    let place = Place::new();
    scrapes_under(&besieged(&place), &[SCRAPER], 16, guess);
}

/// With password checks that take longer than a stranger's connection may last.
#[test]
fn expensive_guesses_do_not_block_scrapes() {
    let place = Place::new();
    scrapes_under(&besieged_at_cost(&place, 10), &[SCRAPER], 16, guess);
}

#[test]
fn guesses_from_other_addresses_do_not_block_scrapes() {
    let place = Place::new();
    scrapes_under(&besieged(&place), &others(4), 16, guess);
}

#[test]
fn connection_flood_does_not_block_scrapes() {
    let place = Place::new();
    let exporter = besieged(&place);
    scrapes_under(&exporter, &others(200), 1, connect_and_say_nothing);
    scrapes_under(&exporter, &[SCRAPER], 32, connect_and_say_nothing);
}

/// The kernel keeps them; only who has sent something is accepted.
#[test]
fn silent_clients_hold_no_place() {
    let place = Place::new();
    let exporter = besieged(&place);
    let server = known(&exporter);
    let config = place.write("curl", &format!("user = \"{USER}:{PASSWORD}\"\n"));
    let accepted = || {
        let output = exporter.fetch("/metrics", &["--config", config.to_str().expect("a path"), "--fail"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let name = "fibre_exporter_http_connections_total{endpoint=\"metrics\"} ";
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect(&text);
        line.parse::<u64>().expect("a number")
    };
    // In case the machine stalls for seconds: then they are accepted.
    wait_for("200 connections that nobody accepts", || {
        let before = accepted();
        let silent: Vec<_> =
            others(200).into_iter().map(|from| server.connect(from).expect("connect")).collect();
        let after = accepted();
        // What was kept is served as soon as it speaks.
        let mut one = silent.into_iter().next().expect("a connection");
        let is_served = matches!(server.ask(&mut one, PASSWORD), Ok(200));
        is_served && after == before + 1
    });
}

#[test]
fn noise_does_not_block_scrapes() {
    let place = Place::new();
    scrapes_under(&besieged(&place), &others(4), 16, send_noise);
}

#[test]
fn client_errors_are_counted() {
    let place = Place::new();
    let exporter = besieged(&place);
    let server = known(&exporter);
    let first_line = |request: &str| {
        let mut stream = server.connect(SCRAPER).expect("connect");
        let mut answer = String::new();
        // The server may close the connection with bytes unread, which makes either fail.
        let _ = stream.write_all(request.as_bytes());
        let _ = stream.read_to_string(&mut answer);
        answer.lines().next().unwrap_or_default().to_owned()
    };
    assert!(first_line("GET / HTTP/1.1\r\n\r\n").contains(" 400 "), "without Host");
    for host in ["a\r\nHost: a", "a b", "a,b", "http://a", "u@a"] {
        assert!(first_line(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).contains(" 400 "), "{host}");
    }
    for host in ["", "[fe80::1%25eth0]:9435", "a.example:80", "_x"] {
        assert!(first_line(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).contains(" 401 "), "{host}");
    }
    let old = format!("GET / HTTP/1.0\r\n{}\r\n", server.authorization(PASSWORD));
    assert!(first_line(&old).contains(" 200 "), "HTTP/1.0 has none");
    assert!(first_line("\x01\x02\x03\r\n\r\n").contains(" 400 "));
    let large = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    assert!(first_line(&large).contains(" 431 "));
    let mut stream = server.connect(SCRAPER).expect("connect");
    assert_eq!(server.ask(&mut stream, "wrong").expect("an answer"), 401);
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
    assert!(
        text.contains("fibre_exporter_http_unauthorized_requests_total{endpoint=\"metrics\"} 5\n"),
        "{text}"
    );
}

/// As `nc -N` and old health checks do it.
#[test]
fn half_closed_client_still_gets_a_response() {
    let place = Place::new();
    let exporter = besieged(&place);
    let server = known(&exporter);
    for _ in 0..20 {
        let mut stream = server.connect(SCRAPER).expect("connect");
        let request = format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{}\r\n", server.authorization(PASSWORD));
        stream.write_all(request.as_bytes()).expect("write");
        stream.shutdown(std::net::Shutdown::Write).expect("shut down");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the answer, and its end");
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("fibre_exporter_up"), "{answer}");
    }
    // Without a complete request, there is no response.
    let mut stream = server.connect(SCRAPER).expect("connect");
    stream.write_all(b"GET /metrics HTTP/1.1\r\n").expect("write");
    stream.shutdown(std::net::Shutdown::Write).expect("shut down");
    assert_eq!(stream.read(&mut [0; 1]).expect("its end"), 0);
}

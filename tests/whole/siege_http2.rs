//! A scraper that uses HTTP/2 keeps getting responses while strangers attack the server by means that only HTTP/2
//! offers.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::support::demo::program;
use crate::support::exporter::{Exporter, PASSWORD, Place, Setup, TIMEOUT, USER};
use crate::support::http2::{
    CONTINUATION, END_HEADERS, END_STREAM, HEADERS, Http2, PING, RST_STREAM, SETTINGS, Trust, frame, request,
};
use crate::support::siege::{Besieged, others};

const SCRAPES: usize = 15;
const MOST_CONNECTIONS: usize = 5_000;
const SCRAPER: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// The identifier of the setting INITIAL_WINDOW_SIZE.
const WINDOW: u16 = 4;

/// Makes one connection of an attacker; the number differs for each connection.
type Besieger = fn(&mut Http2, u32) -> std::io::Result<()>;

fn authorization(password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{USER}:{password}")))
}

fn besieged(place: &Place) -> Exporter {
    let hash = bcrypt::hash(PASSWORD, 6).expect("hash the password");
    let certificates = place.certificates("certs");
    let web = format!(
        "tls_server_config: {{ cert_file: {}, key_file: {} }}\nhttp_server_config: {{ http2: true }}\nbasic_auth_users: {{ {USER}: '{hash}' }}\n",
        certificates.certificate.display(),
        certificates.key.display()
    );
    let web = place.write("web.yml", &web).display().to_string();
    let binary = place.copy_of(&program("fibre-demo"), "bitcoind");
    Setup::fibre(place, &binary).arguments(&["--web.config.file", &web]).start()
}

fn scrapes_under(besieger: Besieger, settings: &'static [(u16, u32)]) {
    let place = Place::new();
    let exporter = besieged(&place);
    let trust = Trust::in_authority(&place.path("certs/ca.crt"));
    let server = Besieged { port: exporter.port, user: USER, password: PASSWORD, patience: TIMEOUT };
    let connect = || Http2::begin(server.connect(SCRAPER)?, &trust, &[]);
    let right = authorization(PASSWORD);
    let mut kept = connect().expect("connect");
    assert_eq!(kept.ask(&right).expect("the first scrape"), 200);
    let (stop, number) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        // Some from the scraper's own address.
        for address in others(6).into_iter().chain([SCRAPER, SCRAPER]) {
            let (stop, number, trust) = (&stop, &number, &trust);
            scope.spawn(move || {
                for _ in 0..MOST_CONNECTIONS {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let number = number.fetch_add(1, Ordering::Relaxed);
                    // Its result does not matter.
                    let patient = Besieged { patience: Duration::from_millis(100), ..server };
                    let begun =
                        patient.connect(address).and_then(|socket| Http2::begin(socket, trust, settings));
                    let _ = begun.and_then(|mut connection| besieger(&mut connection, number));
                }
            });
        }
        let scraped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while number.load(Ordering::Relaxed) < 40 {
                std::thread::sleep(Duration::from_millis(5));
            }
            for n in 0..SCRAPES {
                let status = kept.ask(&right);
                assert!(matches!(status, Ok(200)), "scrape {n} by the kept connection: {status:?}");
                let status = connect().and_then(|mut new| new.ask(&right));
                assert!(matches!(status, Ok(200)), "scrape {n} by a new connection: {status:?}");
            }
        }));
        stop.store(true, Ordering::Relaxed);
        scraped.unwrap();
    });
    // Its memory has not grown permanently.
    let memory =
        kept.ask(&right).and_then(|_| std::fs::read_to_string(format!("/proc/{}/statm", exporter.pid())));
    let pages: usize =
        memory.expect("its memory").split(' ').nth(1).expect("resident").parse().expect("pages");
    assert!(pages * 4096 < 256 << 20, "{} MB", (pages * 4096) >> 20);
}

#[test]
fn rapid_resets_do_not_block_scrapes() {
    scrapes_under(
        |connection, number| {
            let guess = request(&authorization(&format!("guess {number}")));
            for _ in 0..200 {
                let stream = connection.stream();
                let both = [
                    frame(HEADERS, END_STREAM | END_HEADERS, stream, &guess),
                    frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]),
                ];
                connection.send(&both.concat())?;
            }
            connection.wait();
            Ok(())
        },
        &[],
    );
}

#[test]
fn endless_headers_do_not_block_scrapes() {
    scrapes_under(
        |connection, _| {
            let stream = connection.stream();
            connection.send(&frame(HEADERS, 0, stream, &request("x")))?;
            // A literal field without indexing, over and over.
            let field = [&[0x00, 1, b'x', 100][..], &[b'y'; 100]].concat().repeat(100);
            for _ in 0..500 {
                connection.send(&frame(CONTINUATION, 0, stream, &field))?;
            }
            connection.wait();
            Ok(())
        },
        &[],
    );
}

#[test]
fn ping_and_settings_floods_do_not_block_scrapes() {
    scrapes_under(
        |connection, _| {
            let both = [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[])].concat();
            for _ in 0..300 {
                connection.send(&both.repeat(10))?;
            }
            Ok(())
        },
        &[],
    );
}

#[test]
fn unread_responses_do_not_block_scrapes() {
    scrapes_under(
        |connection, number| {
            for n in 0..5 {
                let stream = connection.stream();
                let guess = request(&authorization(&format!("guess {number} {n}")));
                connection.send(&frame(HEADERS, END_STREAM | END_HEADERS, stream, &guess))?;
            }
            connection.wait();
            Ok(())
        },
        // The server may not send any data.
        &[(WINDOW, 0)],
    );
}

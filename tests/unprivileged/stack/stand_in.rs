//! A stand-in for the exporter: serves every metric that the exporter promises, without TLS, with basic authentication,
//! and with numbers that grow from scrape to scrape. It is also the list that the dashboard and alerts are checked
//! against.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::support::prometheus::free_port;
use Kind::{Counter, Gauge, Histogram};

/// The password for the user `prometheus`, and both as encoded in the header.
pub const PASSWORD: &str = "secret";
const CREDENTIALS: &str = "Basic cHJvbWV0aGV1czpzZWNyZXQ=";

pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric: its name, its kind, and the labels of each of its series.
pub type Family = (&'static str, Kind, &'static [&'static str]);

const NODE: &str = r#"node="demo""#;
const PROBE: &str = r#"target="bitcoind",probe="validation:block_connected""#;
const PROBE_STATE: &str =
    r#"target="bitcoind",probe="udp:block_race_time",state="absent",reason="no such probe in the file""#;
const PROBE_LOST: &str = r#"target="bitcoind",probe="validation:block_connected",reason="ring_full""#;
const FIBRE_UDP: &str = r#"node="demo",mechanism="fibre_udp""#;
const BIP152: &str = r#"node="demo",mechanism="bip152_cmpct""#;
const FIBRE_PEER: &str = r#"node="demo",mechanism="fibre_udp",peer="192.0.2.1:8333""#;
const BIP152_PEER: &str = r#"node="demo",mechanism="bip152_cmpct",peer="192.0.2.2:8333""#;

pub const FAMILIES: &[Family] = &[
    ("fibre_blocks_reconstructed_total", Counter, &[NODE]),
    ("fibre_chunks_received_total", Counter, &[NODE]),
    ("fibre_chunks_used_total", Counter, &[NODE]),
    ("fibre_blocks_sent_total", Counter, &[NODE]),
    ("fibre_block_deliveries_total", Counter, &[FIBRE_PEER, BIP152_PEER]),
    ("fibre_block_all_tx_from_mempool_total", Counter, &[NODE]),
    ("fibre_last_block_height", Gauge, &[NODE]),
    ("fibre_block_reconstruction_duration_seconds", Histogram, &[NODE]),
    ("fibre_block_race_duration_seconds", Histogram, &[FIBRE_UDP, BIP152]),
    ("fibre_block_chunks_used", Histogram, &[NODE]),
    ("fibre_block_missing_tx_count", Histogram, &[NODE]),
    ("fibre_block_missing_tx_bytes", Histogram, &[NODE]),
    ("fibre_block_mempool_tx_count", Histogram, &[NODE]),
    ("bitcoin_blocks_connected_total", Counter, &[NODE]),
    ("bitcoin_block_connection_duration_seconds", Histogram, &[NODE]),
    ("bitcoin_block_tx_count", Histogram, &[NODE]),
    ("fibre_exporter_up", Gauge, &[""]),
    ("fibre_exporter_start_time_seconds", Gauge, &[""]),
    ("fibre_exporter_info", Gauge, &[r#"version="2.0.0""#]),
    ("fibre_exporter_probes_attached", Gauge, &[""]),
    ("fibre_exporter_probes_configured", Gauge, &[""]),
    ("fibre_exporter_events_processed_total", Counter, &[r#"event_type="block_connected""#]),
    ("fibre_exporter_reattach_total", Counter, &[r#"target="bitcoind",reason="replaced""#]),
    ("fibre_exporter_errors_total", Counter, &[r#"error_type="decode""#]),
    ("fibre_exporter_probe_attached", Gauge, &[PROBE]),
    ("fibre_exporter_probe_state", Gauge, &[PROBE_STATE]),
    ("fibre_exporter_probe_sites", Gauge, &[PROBE]),
    ("fibre_exporter_probe_hits_total", Counter, &[PROBE]),
    ("fibre_exporter_probe_aggregated_total", Counter, &[PROBE]),
    ("fibre_exporter_probe_delivered_total", Counter, &[PROBE]),
    ("fibre_exporter_probe_filtered_total", Counter, &[PROBE]),
    ("fibre_exporter_probe_lost_total", Counter, &[PROBE_LOST]),
    ("fibre_exporter_probe_read_faults_total", Counter, &[PROBE]),
    ("fibre_exporter_probe_last_hit_timestamp_seconds", Gauge, &[PROBE]),
    ("fibre_exporter_label_overflow_total", Counter, &[r#"metric="fibre_block_deliveries_total""#]),
    ("fibre_exporter_tls_certificate_not_after_seconds", Gauge, &[""]),
    ("fibre_exporter_tls_certificate_last_reload_successful", Gauge, &[""]),
    ("fibre_exporter_config_last_reload_successful", Gauge, &[""]),
    ("fibre_exporter_http_requests_total", Counter, &[""]),
    ("process_cpu_seconds_total", Counter, &[""]),
    ("process_resident_memory_bytes", Gauge, &[""]),
    ("process_open_fds", Gauge, &[""]),
    ("process_start_time_seconds", Gauge, &[""]),
];

/// A server in its own thread, which ends on drop.
pub struct StandIn {
    /// `127.0.0.1:port`.
    pub address: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl StandIn {
    /// Serves all families except the one named `without` (an empty name: all).
    pub fn start(without: &'static str) -> StandIn {
        StandIn::named("demo", without)
    }

    /// Like [`StandIn::start`], for a node of this name.
    pub fn named(node: &str, without: &'static str) -> StandIn {
        let label = format!("node=\"{}\"", node.replace('\\', "\\\\").replace('"', "\\\""));
        let address = format!("127.0.0.1:{}", free_port());
        let listener = TcpListener::bind(&address).expect("cannot listen");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            for (scrape, stream) in listener.incoming().enumerate() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let text = exposition(scrape + 1, without).replace(NODE, &label);
                // A client that disconnects is not the server's concern.
                let _ = stream.and_then(|s| answer(s, &text));
            }
        });
        StandIn { address, stop, thread: Some(thread) }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The thread waits in accept(); this makes it check `stop`.
        let _ = TcpStream::connect(&self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn answer(stream: TcpStream, body: &str) -> std::io::Result<()> {
    let mut authorized = false;
    for line in BufReader::new(&stream).lines() {
        let line = line?;
        authorized |= line.strip_prefix("Authorization: ") == Some(CREDENTIALS);
        if line.is_empty() {
            break;
        }
    }
    let (status, body) = if authorized { ("200 OK", body) } else { ("401 Unauthorized", "") };
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close");
    (&stream).write_all(format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes())
}

/// Returns the text of a scrape. Times are in the past and gauges are 1, so that ages and ratios are finite numbers.
pub fn exposition(scrape: usize, without: &str) -> String {
    let mut text = String::new();
    for (name, kind, series) in FAMILIES.iter().filter(|(name, ..)| *name != without) {
        let told = match kind {
            Counter => "counter",
            Gauge => "gauge",
            Histogram => "histogram",
        };
        let _ = writeln!(text, "# HELP {name} Stands in.\n# TYPE {name} {told}");
        for labels in *series {
            let _ = match kind {
                Counter => writeln!(text, "{name}{{{labels}}} {}", scrape * 10),
                Gauge => writeln!(text, "{name}{{{labels}}} 1"),
                Histogram => writeln!(
                    text,
                    "{name}_bucket{{{labels},le=\"0.5\"}} {}\n{name}_bucket{{{labels},le=\"+Inf\"}} {scrape}\n\
                     {name}_sum{{{labels}}} {scrape}\n{name}_count{{{labels}}} {scrape}",
                    scrape / 2
                ),
            };
        }
    }
    text
}

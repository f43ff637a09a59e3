//! Every query of the network dashboard in a real Prometheus that scrapes real counters of a veth pair.
//!
//! Needs root, `ip`, `ping` and Prometheus.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use exporter::exposition::Format;
use exporter::net::{Count, Mode, Network, NetworkConfig};

use crate::namespace::{HERE, pair, up};
use crate::support::dashboard::{Dashboard, Variable};
use crate::support::prometheus::{Prometheus, Scrape};

const PATIENCE: Duration = Duration::from_secs(60);

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Answers every request with the metrics of now, until the flag is set and one more request came.
fn serve(listener: &TcpListener, network: &Network, stop: &AtomicBool) {
    for stream in listener.incoming() {
        let mut stream = stream.expect("a connection");
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let lines = BufReader::new(&stream).lines();
        let _request: Vec<_> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let mut text = Vec::new();
        network.collect().iter().for_each(|family| family.write(Format::Text, &mut text));
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n";
        // A scraper that has gone away is not our concern.
        let _ = write!(stream, "{head}Content-Length: {}\r\n\r\n", text.len())
            .and_then(|()| stream.write_all(&text));
    }
}

#[test]
fn every_query_has_data() {
    let (here, there) = pair();
    let config = NetworkConfig {
        interfaces: vec!["exn0".to_string()],
        mode: Mode::Auto,
        count: Count { talkers: 512, flows: 512, top_sources: 5, tcp_connections: true, ..Count::default() },
        ..NetworkConfig::default()
    };
    let network = Arc::new(here.run(move || Network::start(config, |_| {})).expect("counting starts"));
    up(&here, &there);

    let port = crate::support::prometheus::free_port();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a port");
    let address = format!("127.0.0.1:{port}");
    let stop = Arc::new(AtomicBool::new(false));
    let server = std::thread::spawn({
        let (network, stop) = (Arc::clone(&network), Arc::clone(&stop));
        move || serve(&listener, &network, &stop)
    });
    let password = tempfile::NamedTempFile::new().expect("a file");
    let scrape = Scrape {
        target: address.clone(),
        ca_file: None,
        password_file: password.path().to_owned(),
        node: None,
    };
    let prometheus = Prometheus::start(&scrape).unwrap();
    prometheus.wait_until_up(PATIENCE).unwrap();
    // Between scrapes, so that rates are not zero.
    for _ in 0..4 {
        there.command(&format!("ping -c 20 -i 0.01 -q {HERE}"));
        prometheus.wait_for_scrapes(1, PATIENCE).unwrap();
    }
    prometheus.wait_for_scrapes(4, PATIENCE).unwrap();
    let dashboard = Dashboard::load(&repository("grafana/network.json")).unwrap();
    let variables: &[Variable] = &[("job", "fibre"), ("instance", &address), ("interface", "exn0")];
    assert_eq!(prometheus.queries_without_data(&dashboard, variables).unwrap(), Vec::<String>::new());
    let echoes = "sum(xdp_packets_total{protocol=\"icmp\"})";
    assert_eq!(prometheus.query(echoes).unwrap()[0].value, 80.0);

    stop.store(true, Ordering::Relaxed);
    drop(std::net::TcpStream::connect(&address));
    server.join().unwrap();
}

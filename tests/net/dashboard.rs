//! Every query of the network dashboard in a real Prometheus that scrapes real counters of a veth pair.
//!
//! Needs root, `ip`, `ping` and Prometheus.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use exporter::exposition::Format;
use exporter::net::{
    BlockConfig, BlockEntry, BlockRule, CidrGroup, Count, DetectConfig, Detections, Mode, Network,
    NetworkConfig, Prefix,
};

use crate::counting::until;
use crate::detect::{anomalies, flood};
use crate::namespace::{HERE, Namespace, THERE, pair, up};
use crate::support::dashboard::{Dashboard, Variable};
use crate::support::exporter::TIMEOUT;
use crate::support::prometheus::{Prometheus, Scrape};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Answers every request with the current metrics, until the flag is set and one more request has arrived.
fn serve(listener: &TcpListener, network: &Network, detections: &Detections, stop: &AtomicBool) {
    for stream in listener.incoming() {
        let mut stream = stream.expect("a connection");
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let lines = BufReader::new(&stream).lines();
        let _request: Vec<_> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let mut text = Vec::new();
        let families = network.collect().into_iter().chain(detections.families());
        families.for_each(|family| family.write(Format::Text, &mut text));
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n";
        // A scraper that has disconnected does not matter.
        let _ = write!(stream, "{head}Content-Length: {}\r\n\r\n", text.len())
            .and_then(|()| stream.write_all(&text));
    }
}

/// Returns a configuration that counts everything, with the pinging host listed.
fn config() -> NetworkConfig {
    let mut count = Count {
        talkers: 512,
        flows: 512,
        top_sources: 5,
        cidrs: vec![CidrGroup {
            name: "there".to_string(),
            prefixes: vec![Prefix::parse("10.99.0.0/24").unwrap()],
        }],
        tcp_connections: true,
        drop_reasons: true,
        tcp: true,
        cgroups: true,
        processes: true,
        dns: true,
        ..Count::default()
    };
    count.statistics.insert("tcp_trouble");
    let entry = BlockEntry { prefix: Prefix::parse(&THERE.to_string()).unwrap(), rule: BlockRule::default() };
    let block = BlockConfig { entries: vec![entry], ..BlockConfig::default() };
    NetworkConfig {
        interfaces: vec!["exn0".to_string()],
        mode: Mode::Auto,
        count,
        block: Some(block),
        detect: DetectConfig {
            syn_flood: flood(false),
            tcp_anomalies: anomalies(false),
            ..DetectConfig::default()
        },
        ..NetworkConfig::default()
    }
}

/// Makes connections in both directions, one that is refused, and a DNS query with its response.
fn exchange(here: &Namespace, there: &Namespace) {
    let ends = [(here, there, HERE), (there, here, THERE)];
    for (server, client, address) in ends {
        let listener = server.run(move || TcpListener::bind((address, 7100)).unwrap());
        let mut stream = client.run(move || TcpStream::connect((address, 7100)).unwrap());
        let (mut accepted, _) = listener.accept().unwrap();
        accepted.write_all(&[7; 5000]).unwrap();
        stream.read_exact(&mut [0; 5000]).unwrap();
        drop(accepted);
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
    here.run(|| TcpStream::connect((THERE, 7101)).expect_err("nobody listens"));
    let server = there.run(|| UdpSocket::bind((THERE, 53)).unwrap());
    let client = here.run(|| UdpSocket::bind((HERE, 0)).unwrap());
    let mut message = [0; 30];
    client.send_to(&message, (THERE, 53)).unwrap();
    let (_, from) = server.recv_from(&mut message).unwrap();
    message[2..4].copy_from_slice(&[0x81, 0x80]);
    server.send_to(&message, from).unwrap();
    client.recv_from(&mut message).unwrap();
}

/// Titles of panels whose queries have no data here: there is no driver with a speed and no file, and nothing fails.
const EMPTY: [&str; 5] =
    ["Link utilisation", "Blocklist files", "Changes that failed", "Not counted", "Attackers not banned"];

/// Prefixes of metrics that are not about packets, none of which are served here.
const OTHERS: [&str; 2] = ["fibre_exporter_", "process_"];

#[test]
fn every_query_has_data() {
    let (here, there) = pair();
    let config = config();
    let detections = Arc::new(Detections::default());
    detections.configure(std::iter::empty(), Some(&config.detect));
    let network = Arc::new(here.run(move || Network::start(config, |_| {})).expect("counting starts"));
    let (of, by) = (network.clone(), detections.clone());
    here.run(move || of.detect(&by, |_| {}));
    up(&here, &there);

    let port = crate::support::prometheus::free_port();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a port");
    let address = format!("127.0.0.1:{port}");
    let stop = Arc::new(AtomicBool::new(false));
    let server = std::thread::spawn({
        let (network, detections, stop) = (Arc::clone(&network), Arc::clone(&detections), Arc::clone(&stop));
        move || serve(&listener, &network, &detections, &stop)
    });
    let password = tempfile::NamedTempFile::new().expect("a file");
    let scrape = Scrape {
        target: address.clone(),
        ca_file: None,
        password_file: password.path().to_owned(),
        node: None,
    };
    let prometheus = Prometheus::start(&scrape).unwrap();
    prometheus.wait_until_up(TIMEOUT).unwrap();
    // Traffic between scrapes, so that rates are not zero.
    let echoes = "sum(xdp_packets_total{protocol=\"icmp\"})";
    for round in 1..=4 {
        there.command(&format!("ping -c 20 -i 0.01 -q {HERE}"));
        exchange(&here, &there);
        let all = 20.0 * f64::from(round);
        until("this traffic to be scraped", || {
            prometheus.query(echoes).is_ok_and(|found| found.iter().any(|echoes| echoes.value == all))
        });
    }
    let dashboard = Dashboard::load(&repository("grafana/network.json")).unwrap();
    let variables: &[Variable] =
        &[("job", "fibre"), ("instance", &address), ("interface", "exn0"), ("window", "1m"), ("top", "10")];
    let empty = prometheus.queries_without_data(&dashboard, variables).unwrap();
    let is_expected = |query: &&String| {
        EMPTY.iter().any(|title| query.starts_with(title))
            || OTHERS.iter().any(|prefix| query.contains(prefix))
            // The number of directions that are not counted.
            || query.contains("count by (instance) (network_attach_failed{")
    };
    let unexpected: Vec<_> = empty.iter().filter(|query| !is_expected(query)).collect();
    assert!(unexpected.is_empty(), "{unexpected:#?}");

    stop.store(true, Ordering::Relaxed);
    drop(TcpStream::connect(&address));
    server.join().unwrap();
}

//! Delivery of alerts: the stack's Prometheus and rules, Alertmanager with the shipped configuration, and a server in
//! place of Slack's and Discord's.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use super::repository;
use super::stand_in::{PASSWORD, StandIn};
use crate::support::exporter::TIMEOUT;
use crate::support::prometheus::{Prometheus, Scrape, adapt, free_port, stack_directory};

struct Alertmanager(Child);

impl Drop for Alertmanager {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn alertmanager(config: &str, port: u16, directory: &Path) -> Alertmanager {
    let file = directory.join("alertmanager.yml");
    std::fs::write(&file, config).unwrap();
    let checked = Command::new("amtool").arg("check-config").arg(&file).output();
    let checked = checked.expect("cannot run amtool (install Debian's package prometheus-alertmanager)");
    assert!(checked.status.success(), "{checked:?}");
    let child = Command::new("prometheus-alertmanager")
        .arg(format!("--config.file={}", file.display()))
        .arg(format!("--storage.path={}", directory.join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg("--cluster.listen-address=")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(directory.join("log")).unwrap())
        .spawn()
        .expect("cannot run prometheus-alertmanager");
    Alertmanager(child)
}

/// Returns an address, and the path and body of each request to it. The thread ends with the process.
fn receiver() -> (SocketAddr, Receiver<(String, String)>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (address, (sender, requests)) = (listener.local_addr().unwrap(), channel());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let Ok(request) = received(&stream) else { continue };
            if sender.send(request).is_err() {
                return;
            }
        }
    });
    (address, requests)
}

fn received(mut stream: &TcpStream) -> std::io::Result<(String, String)> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut reader = BufReader::new(stream);
    let (mut path, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(' ') {
            Some(("POST", rest)) => path = rest.split(' ').next().unwrap_or_default().to_owned(),
            Some((name, value)) if name.eq_ignore_ascii_case("content-length:") => {
                length = value.parse().unwrap_or(0);
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")?;
    Ok((path, String::from_utf8_lossy(&body).into_owned()))
}

#[test]
fn alert_reaches_slack_and_discord_with_instructions() {
    let directory = tempfile::tempdir().unwrap();
    let (address, requests) = receiver();
    let slack = directory.path().join("slack_url");
    std::fs::write(&slack, format!("http://{address}/slack")).unwrap();
    let shipped = std::fs::read_to_string(repository("docker/alertmanager.yml")).unwrap();
    let mut config = shipped;
    for (from, to) in [
        ("/etc/alertmanager/slack_url", slack.display().to_string()),
        ("https://discord.com/api/webhooks/NUMBER/TOKEN", format!("http://{address}/discord")),
        ("group_wait: 30s", "group_wait: 1s".to_owned()),
    ] {
        assert_eq!(config.matches(from).count(), 1, "{from}: {config}");
        config = config.replace(from, &to);
    }
    let port = free_port();
    let _alertmanager = alertmanager(&config, port, directory.path());

    // The number of lost events that it reports grows with each scrape.
    let exporter = StandIn::start("");
    let password = directory.path().join("password");
    std::fs::write(&password, PASSWORD).unwrap();
    let scrape =
        Scrape { target: exporter.address.clone(), ca_file: None, password_file: password, node: None };
    let stack = stack_directory();
    let text = std::fs::read_to_string(stack.join("prometheus.yml")).unwrap();
    let text = format!(
        "{}alerting: {{ alertmanagers: [{{ static_configs: [{{ targets: ['127.0.0.1:{port}'] }}] }}] }}\n",
        adapt(&text, &stack, &scrape).unwrap()
    );
    let _prometheus = Prometheus::start_configured(&text, &[]).unwrap();

    let summary =
        format!("Events of validation:block_connected on {} were lost (ring_full).", exporter.address);
    let runbook = format!("https://{}/alerts#fibreeventslost", exporter.address);
    let mut missing = vec!["/slack", "/discord"];
    let deadline = Instant::now() + TIMEOUT;
    while !missing.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        let (path, body) = requests.recv_timeout(left).unwrap_or_else(|_| {
            let log = std::fs::read_to_string(directory.path().join("log")).unwrap_or_default();
            panic!("nothing at {missing:?}: {log}")
        });
        let message: serde_json::Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body}"));
        let text = message.to_string();
        if text.contains("FIRING: FibreEventsLost") {
            for part in
                ["warning", summary.as_str(), "The metrics of this probe are too low.", runbook.as_str()]
            {
                assert!(text.contains(part), "{path}: no {part} in {text}");
            }
            missing.retain(|one| *one != path);
        }
    }
}

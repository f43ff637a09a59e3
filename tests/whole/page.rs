//! The page at `/` and `/api/v1/status`, as a browser and curl see them.

use std::process::Command;

use serde_json::Value;

use crate::support::demo::{Demo, program};
use crate::support::exporter::{Exporter, PASSWORD, Place, Setup, USER, finish, wait_for};
use crate::support::http;

/// Returns the status line and headers in lower case, and the body.
#[track_caller]
fn response(exporter: &Exporter, path: &str, more: &[&str]) -> (String, String) {
    let output = exporter.fetch(path, &[&["--include"], more].concat());
    assert!(output.status.success(), "{path}: {output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    (head.to_lowercase(), body.to_owned())
}

#[track_caller]
fn status(exporter: &Exporter) -> Value {
    let (head, body) = response(exporter, "/api/v1/status", &[]);
    assert!(head.contains("\ncontent-type: application/json"), "{head}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"))
}

#[track_caller]
fn status_until(exporter: &Exporter, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
    let mut now = status(exporter);
    wait_for(what, || {
        now = status(exporter);
        condition(&now)
    });
    now
}

#[test]
fn page_requires_the_password_and_is_self_contained() {
    let place = Place::new();
    let exporter = Setup::fibre(&place, &place.copy_of(&program("fibre-demo"), "bitcoind")).secure().start();
    let authority = place.path("certs/ca.crt");
    // The page that alerts link to is accessible without the password, for whoever is paged.
    for path in ["/alerts", "/page.css", "/page.svg"] {
        let mut stranger = exporter.curl(exporter.port, path);
        let (status, body) = http::answer(stranger.arg("--cacert").arg(&authority)).expect("an answer");
        assert_eq!(
            (status, ["ExporterDown", ":root", "<svg"].iter().any(|part| body.contains(part))),
            (200, true),
            "{path}"
        );
    }
    for path in ["/", "/api/v1/status", "/page.js"] {
        let mut stranger = exporter.curl(exporter.port, path);
        let (status, body) = http::answer(stranger.arg("--cacert").arg(&authority)).expect("an answer");
        assert_eq!((status, body.as_str()), (401, "authentication required\n"), "{path}");
        let (head, body) = response(&exporter, path, &[]);
        assert!(head.starts_with("http/1.1 200 ") && !body.is_empty(), "{path}: {head}");
        let (head, body) = response(&exporter, path, &["--head"]);
        assert!(head.starts_with("http/1.1 200 ") && body.is_empty(), "{path}: {head}");
        let (head, _) = response(&exporter, path, &["--request", "POST"]);
        assert!(head.starts_with("http/1.1 405 "), "{path}: {head}");
    }
    let (head, page) = response(&exporter, "/", &[]);
    let policy = "\ncontent-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; ";
    assert!(head.contains(policy) && head.contains("frame-ancestors 'none'"), "{head}");
    assert!(head.contains("\ncontent-type: text/html; charset=utf-8"), "{head}");
    assert!(!head.contains("unsafe"), "{head}");
    // What the policy would block: inline scripts, styles and handlers.
    for inline in ["<style", "style=", "onclick=", "onload=", "javascript:", "http://", "https://", "//"] {
        let found = page.replace("http-equiv", "").contains(inline);
        assert!(!found, "{inline} in {page}");
    }
    assert_eq!(page.matches("<script").count(), 1, "{page}");
    let (head, _) = response(&exporter, "/metrics", &[]);
    assert!(!head.contains("content-security-policy"), "of pages only: {head}");
    // The other port still serves the list of its routes.
    assert!(exporter.health("/").1.contains("/ready  "));
}

#[test]
fn status_matches_metrics_and_page() {
    let place = Place::new();
    let binary = place.copy_of(&program("fibre-demo"), "bitcoind");
    let hostile = "<script>alert('gone')</script>";
    let targets = format!(
        "targets:\n  - name: bitcoind\n    binary: {}\n    profile: fibre\n  - name: \"dead{hostile}\"\n    binary: \
         /opt/none/nothing\n    labels: {{ text: \"{hostile}\" }}\n    probes:\n      - function: charge\n        metrics: \
         [{{ counter: charges_total, help: \"{hostile}\" }}]\n",
        binary.display()
    );
    let exporter = Setup::new(&place, format!("node_name: demo\n{targets}")).start();
    let waiting = status(&exporter);
    assert_eq!((&waiting["version"], &waiting["state"]), (&1.into(), &"not_ready".into()));
    assert_eq!(waiting["scrapes"]["total"], 0.0, "nobody has scraped: {waiting}");
    let totals = Demo::start(&binary, &["--rate", "0", "--blocks", "200", "--wait-attached"]).end();
    let fired = totals.fired("validation:block_connected") as f64;
    let hits = |status: &Value, name: &str| {
        let probes = status["targets"][0]["probes"].as_array().expect("probes");
        let probe = probes.iter().find(|probe| probe["name"] == name).expect(name);
        (probe["state"].as_str().expect("a state").to_owned(), probe["hits"].as_f64().expect("hits"))
    };
    let seen =
        status_until(&exporter, "all hits", |status| hits(status, "validation:block_connected").1 == fired);
    let metrics = exporter.scrape();
    for probe in ["udp:block_reconstructed", "udp:block_race_time", "validation:block_connected"] {
        let labels = [("target", "bitcoind"), ("probe", probe)];
        let scraped = metrics.value("fibre_exporter_probe_hits_total", &labels);
        assert_eq!(hits(&seen, probe), ("attached".to_owned(), scraped), "{probe}");
    }
    let of = |name: &str| {
        let metrics = seen["metrics"].as_array().expect("metrics");
        metrics.iter().find(|metric| metric["name"] == name).unwrap_or_else(|| panic!("no {name}"))
    };
    let tx = &of("bitcoin_block_tx_count")["series"][0]["distribution"];
    assert_eq!(tx["count"], fired);
    let in_buckets: u64 = tx["counts"].as_array().expect("counts").iter().filter_map(Value::as_u64).sum();
    assert_eq!(in_buckets as f64, fired);
    assert_eq!(tx["quantiles"].as_array().map(Vec::len), Some(3));
    let deliveries = of("fibre_block_deliveries_total");
    assert_eq!(deliveries["total"], metrics.sum("fibre_block_deliveries_total", &[]));
    // A dead target is reported, with the reason and what to do.
    let first = &seen["attention"][0];
    assert_eq!(first["severity"], "error");
    assert!(first["subject"].as_str().is_some_and(|text| text.starts_with("dead")), "{first}");
    assert!(first["reason"].as_str().is_some_and(|text| text.contains("No such file")), "{first}");
    assert!(first["action"].as_str().is_some_and(|text| text.contains("binary")), "{first}");
    let (_, page) = response(&exporter, "/", &[]);
    assert!(page.contains("bitcoin_block_tx_count") && page.contains("No such file"), "{page}");
    assert!(page.contains("&lt;script&gt;alert(&#39;gone&#39;)&lt;/script&gt;"), "{page}");
    assert!(!page.contains("<script>alert"), "{page}");
    // The scrape above is listed, with the client that made it.
    let seen = status_until(&exporter, "the scrape", |status| status["scrapes"]["recent"][0].is_object());
    let scrape = &seen["scrapes"]["recent"][0];
    assert_eq!((&scrape["peer"], &scrape["status"]), (&"127.0.0.1".into(), &200.into()), "{scrape}");
    assert!(scrape["agent"].as_str().is_some_and(|agent| agent.starts_with("curl/")), "{scrape}");
    assert!(scrape["bytes"].as_u64() > Some(1000) && scrape["user"].is_null(), "{scrape}");
}

#[test]
fn viewing_the_page_does_not_affect_scrapes() {
    let place = Place::new();
    let binary = place.copy_of(&program("fibre-demo"), "bitcoind");
    // A scrape frees the entries of ended processes in a full label, and minima and maxima are those of a window.
    let yaml = format!(
        "targets:\n  - name: t\n    binary: {}\n    probes:\n      - on: usdt:validation:block_connected\n        args: {{ \
         height: {{ index: 1 }} }}
        metrics:
          - counter: a_total
            labels: {{ pid: {{ value: pid, \
         limit: 2 }} }}
          - {{ gauge: highest, mode: max, value: height }}
",
        binary.display()
    );
    let exporter = Setup::new(&place, yaml).start();
    exporter.wait_until_ready();
    for _ in 0..2 {
        Demo::start(&binary, &["--rate", "0", "--blocks", "5", "--wait-attached"]).end();
    }
    let count = |status: &Value, name: &str| -> f64 {
        let metrics = status["metrics"].as_array().expect("metrics").iter();
        metrics
            .filter(|metric| metric["name"] == name)
            .map(|metric| metric["total"].as_f64().unwrap_or(0.0))
            .sum()
    };
    status_until(&exporter, "all blocks", |status| count(status, "a_total") == 10.0);
    // Makes sure that the status was evaluated more than once: the time of each evaluation differs.
    let first = status(&exporter)["time"].as_f64();
    status_until(&exporter, "another look", |status| status["time"].as_f64() != first);
    let metrics = exporter.scrape();
    let by_process: Vec<f64> = metrics.by("a_total", "pid").into_values().collect();
    assert_eq!(by_process, [5.0, 5.0], "the first scrape has both processes");
    assert_eq!(metrics.select("highest", &[]).len(), 1);
}

#[test]
fn page_assets_are_compressed_and_need_exact_paths() {
    let place = Place::new();
    let exporter = Setup::fibre(&place, &place.copy_of(&program("fibre-demo"), "bitcoind")).start();
    for coding in ["gzip", "zstd"] {
        for path in ["/", "/page.js", "/page.css"] {
            let (head, _) = response_of_bytes(&exporter, path, coding);
            assert!(head.contains(&format!("\ncontent-encoding: {coding}")), "{path}: {head}");
        }
    }
    let (head, body) = response(&exporter, "/page", &[]);
    assert!(head.starts_with("http/1.1 404 "), "{head}");
    assert!(body.contains(" /api/v1/status") && !body.contains("page.css"), "{body}");
}

fn response_of_bytes(exporter: &Exporter, path: &str, coding: &str) -> (String, usize) {
    let accept = format!("Accept-Encoding: {coding}");
    let output = exporter.fetch(path, &["--include", "--header", &accept]);
    let end = output.stdout.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    (String::from_utf8_lossy(&output.stdout[..end]).to_lowercase(), output.stdout.len() - end - 4)
}

#[test]
fn prometheus_accepts_the_scrape_config() {
    let place = Place::new();
    let exporter = Setup::fibre(&place, &place.copy_of(&program("fibre-demo"), "bitcoind")).secure().start();
    let config = status(&exporter)["connect"]["scrape_config"].as_str().expect("text").to_owned();
    assert!(
        config.contains("scheme: https") && config.contains(USER) && !config.contains(PASSWORD),
        "{config}"
    );
    for file in ["exporter-ca.crt", "exporter-password"] {
        place.write(file, "");
    }
    let here = config.replace("/etc/prometheus", &place.path("").display().to_string());
    let file = place.write("prometheus.yml", &here);
    let (code, out, err) =
        finish(Command::new("promtool").args(["check", "config", "--syntax-only"]).arg(&file));
    assert_eq!(code, Some(0), "{config}\n{out}{err}");
}

//! Third-party Go programs without symbols: what the exporter counts, compared with the programs' own accounting.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::exporter::{Exporter, Port, wait_for};
use crate::support::http;
use crate::support::program::{directory, first_of, private};

const API: &str = "github.com/prometheus/prometheus/web/api/v1.(*API)";
const ENGINE: &str = "github.com/prometheus/prometheus/promql.(*Engine)";

/// A running Prometheus, killed on drop.
struct Server {
    process: Child,
    port: Port,
}

impl Server {
    fn start(binary: &Path, directory: &Path) -> Server {
        let config = directory.join("prometheus.yml");
        fs::write(&config, "global: {}\n").unwrap();
        let port = Port::claim();
        let process = Command::new(binary)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("run prometheus; scripts/install-deps.sh --tests installs it");
        let server = Server { process, port };
        wait_for("prometheus to get ready", || server.get("/-/ready").is_ok_and(|(status, _)| status == 200));
        server
    }

    fn get(&self, path: &str) -> Result<(u16, String), String> {
        http::answer(&mut http::curl(&format!("http://127.0.0.1:{}{path}", self.port)))
    }

    /// Returns the value of one of the server's own series, or 0 if there is no such series.
    fn own(&self, series: &str) -> f64 {
        let (_, text) = self.get("/metrics").expect("scrape prometheus");
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.trim().parse().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn prometheus_requests_and_queries() {
    let directory = directory();
    let binary = private(first_of(&["/usr/bin/prometheus"]), directory.path());
    let server = Server::start(&binary, directory.path());
    let exporter = Exporter::tracing(&format!(
        r#"
  - name: prometheus
    binary: {}
    probes:
    - function: {API}.query
      metrics: [{{ histogram: api_query_seconds, value: duration, buckets: [100] }}]
    - function: {API}.respond
      metrics: [{{ histogram: respond_seconds, value: duration, buckets: [100] }}]
    - function: {API}.respondError
      metrics: [{{ histogram: refuse_seconds, value: duration, buckets: [100] }}]
    - function: {ENGINE}.NewInstantQuery
      args: {{ query: {{ index: 4, type: go_string }} }}
      metrics: [{{ histogram: instant_seconds, value: duration, labels: {{ query: query }}, buckets: [100] }}]
    - function: {ENGINE}.exec
      metrics: [{{ histogram: exec_seconds, value: duration, buckets: [100] }}]
"#,
        binary.display()
    ));
    let requests =
        |code| format!("prometheus_http_requests_total{{code=\"{code}\",handler=\"/api/v1/query\"}}");
    let before = [200, 400].map(|code| server.own(&requests(code)));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..100 {
                    let query = if n % 10 == 9 { "sum(" } else { ["vector(1)", "up", "sum(up)"][n % 3] };
                    let path =
                        format!("/api/v1/query?query={}", query.replace('(', "%28").replace(')', "%29"));
                    server.get(&path).expect("an answer");
                }
            });
        }
    });
    let told = [200, 400].map(|code| server.own(&requests(code))).map(|n| n);
    let [good, bad] = [told[0] - before[0], told[1] - before[1]];
    assert_eq!([good, bad], [360.0, 40.0], "prometheus counts its requests");
    let seen = exporter.scrape();
    assert_eq!(seen.sum("api_query_seconds_count", &[]), good + bad);
    assert_eq!(seen.sum("respond_seconds_count", &[]), good);
    assert_eq!(seen.sum("refuse_seconds_count", &[]), bad);
    assert_eq!(seen.sum("exec_seconds_count", &[]), good);
    let by_query = seen.by("instant_seconds_count", "query");
    let expected = [("sum(", 40.0), ("sum(up)", 120.0), ("up", 120.0), ("vector(1)", 120.0)];
    assert_eq!(by_query.into_iter().collect::<Vec<_>>(), expected.map(|(query, n)| (query.to_string(), n)));
    // The duration of a request includes the durations of the functions that served it.
    let whole = server.own("prometheus_http_request_duration_seconds_sum{handler=\"/api/v1/query\"}");
    let part = seen.sum("api_query_seconds_sum", &[]);
    let inner = seen.sum("exec_seconds_sum", &[]) + seen.sum("instant_seconds_sum", &[]);
    assert!(0.0 < inner && inner < part && part < whole, "{inner} in {part} in {whole}");
    seen.assert_nothing_lost();
}

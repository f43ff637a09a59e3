//! A real Prometheus on loopback, with the compose stack's own configuration.
//!
//! It needs `prometheus` and `promtool`, both in Debian's package `prometheus`. The only differences from the stack are
//! those that [`adapt`] makes: the target, the paths of files, and the intervals. The module `dashboard` must be
//! declared beside it.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value as Json;
use serde_yaml::Value as Yaml;

use super::dashboard::{BUILT_IN_VARIABLES, Dashboard, Variable, substitute};
use super::exporter::{Exporter, Place, TIMEOUT};
use super::http;

/// How Prometheus reaches the exporter under test; everything else comes from the stack's `prometheus.yml`.
pub struct Scrape {
    /// `host:port`. With TLS, the host must be a name in the certificate.
    pub target: String,
    /// The trusted CA; `None` scrapes without TLS.
    pub ca_file: Option<PathBuf>,
    pub password_file: PathBuf,
    /// The target's label `node`, as the entries for several nodes set it.
    pub node: Option<String>,
}

impl Scrape {
    /// Describes an exporter that was set up in `place` with [`super::exporter::Setup::secure`].
    pub fn secure(exporter: &Exporter, place: &Place) -> Scrape {
        Scrape {
            target: format!("localhost:{}", exporter.port),
            ca_file: exporter.authority.clone(),
            password_file: place.path("password"),
            node: None,
        }
    }
}

/// A running Prometheus. Dropping it kills it and deletes its files.
pub struct Prometheus {
    child: Child,
    port: u16,
    directory: tempfile::TempDir,
}

/// One element of an instant vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// A stored exemplar as the API returns it, with the labels of its series.
#[derive(Debug, Clone)]
pub struct StoredExemplar {
    pub series: BTreeMap<String, String>,
    pub exemplar: Json,
}

/// Returns the directory of the stack's `prometheus.yml` and rules.
pub fn stack_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docker/prometheus")
}

/// Returns a loopback port between 19100 and 19199 that nothing listens on. No other test gets it while this process
/// runs.
///
/// # Panics
/// If all of them are taken.
pub fn free_port() -> u16 {
    // Binding the UDP port of the same number is a claim that tests in other processes see, too.
    static CLAIMED: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());
    (19100..19200)
        .find(|port| {
            let Ok(claim) = UdpSocket::bind((Ipv4Addr::LOCALHOST, *port)) else { return false };
            CLAIMED.lock().unwrap_or_else(PoisonError::into_inner).push(claim);
            TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()
        })
        .expect("no free port between 19100 and 19199")
}

/// Adapts the stack's `prometheus.yml`: its job `fibre` scrapes `scrape`, every second, and its rules are found in
/// `directory`, the file's original directory.
///
/// # Errors
/// If the text is not YAML or lacks a part that is replaced: the test would then no longer test the stack's
/// configuration.
pub fn adapt(text: &str, directory: &Path, scrape: &Scrape) -> Result<String, String> {
    let mut config: Yaml = serde_yaml::from_str(text).map_err(|e| e.to_string())?;
    for key in ["scrape_interval", "evaluation_interval"] {
        *part(&mut config, &["global", key])? = "1s".into();
    }
    config["global"]["scrape_timeout"] = "1s".into();
    for rules in part(&mut config, &["rule_files"])?.as_sequence_mut().ok_or("rule_files is not a list")? {
        let path = rules.as_str().ok_or("rule_files holds something that is not a path")?;
        *rules = directory.join(path).display().to_string().into();
    }
    let jobs =
        part(&mut config, &["scrape_configs"])?.as_sequence_mut().ok_or("scrape_configs is not a list")?;
    let job = jobs.iter_mut().find(|j| j["job_name"] == "fibre").ok_or("no job named fibre")?;
    *part(job, &["basic_auth", "password_file"])? = scrape.password_file.display().to_string().into();
    match &scrape.ca_file {
        Some(ca) => *part(job, &["tls_config", "ca_file"])? = ca.display().to_string().into(),
        None => {
            *part(job, &["scheme"])? = "http".into();
            job.as_mapping_mut().and_then(|m| m.remove("tls_config")).ok_or("no tls_config")?;
        }
    }
    part(job, &["file_sd_configs"])?;
    let mut entry = serde_yaml::Mapping::new();
    entry.insert("targets".into(), Yaml::Sequence(vec![scrape.target.clone().into()]));
    if let Some(node) = &scrape.node {
        let labels = serde_yaml::Mapping::from_iter([("node".into(), node.clone().into())]);
        entry.insert("labels".into(), Yaml::Mapping(labels));
    }
    let job = job.as_mapping_mut().ok_or("the job is not a mapping")?;
    job.remove("file_sd_configs");
    job.insert("static_configs".into(), Yaml::Sequence(vec![Yaml::Mapping(entry)]));
    serde_yaml::to_string(&config).map_err(|e| e.to_string())
}

/// Returns the value at `path`, or an error if there is none.
fn part<'a>(yaml: &'a mut Yaml, path: &[&str]) -> Result<&'a mut Yaml, String> {
    path.iter().try_fold(yaml, |at, key| at.get_mut(*key)).ok_or_else(|| format!("no {}", path.join(".")))
}

/// Runs `promtool` with these arguments.
///
/// # Errors
/// Its output, if it fails; or that it is not installed.
pub fn promtool<const N: usize>(arguments: [&str; N]) -> Result<String, String> {
    let output = Command::new("promtool")
        .args(arguments)
        .output()
        .map_err(|e| format!("cannot run promtool ({e}); install Debian's package prometheus"))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    if output.status.success() { Ok(said) } else { Err(said) }
}

impl Prometheus {
    /// Starts Prometheus and waits until it is ready.
    ///
    /// # Errors
    /// If it cannot be started; the error contains its log.
    pub fn start(scrape: &Scrape) -> Result<Prometheus, String> {
        Prometheus::start_with(scrape, &[])
    }

    /// Like [`Prometheus::start`], with additional arguments.
    ///
    /// # Errors
    /// If it cannot be started; the error contains its log.
    pub fn start_with(scrape: &Scrape, more: &[&str]) -> Result<Prometheus, String> {
        let stack = stack_directory();
        let text = std::fs::read_to_string(stack.join("prometheus.yml"))
            .map_err(|e| format!("cannot read the stack's prometheus.yml: {e}"))?;
        Prometheus::start_configured(&adapt(&text, &stack, scrape)?, more)
    }

    /// Starts it with the text of a `prometheus.yml` and waits until it answers.
    ///
    /// # Errors
    /// If it cannot be started, with its log.
    pub fn start_configured(text: &str, more: &[&str]) -> Result<Prometheus, String> {
        let failed = |what: &str, e: std::io::Error| format!("{what}: {e}");
        let directory = tempfile::tempdir().map_err(|e| failed("cannot make a temporary directory", e))?;
        let config = directory.path().join("prometheus.yml");
        std::fs::write(&config, text).map_err(|e| failed("cannot write prometheus.yml", e))?;
        let log = File::create(directory.path().join("log")).map_err(|e| failed("cannot make a log", e))?;

        let port = free_port();
        // The variable can select another version.
        let program = std::env::var_os("PROMETHEUS").unwrap_or_else(|| "prometheus".into());
        let child = Command::new(program)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--log.level=warn")
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|e| failed("cannot run prometheus (install Debian's package prometheus)", e))?;
        let mut server = Prometheus { child, port, directory };
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if server.get("/-/ready").is_ok() {
                return Ok(server);
            }
            if let Ok(Some(status)) = server.child.try_wait() {
                return Err(format!("prometheus ended with {status}:\n{}", server.log()));
            }
            if Instant::now() > deadline {
                return Err(format!("prometheus does not get ready:\n{}", server.log()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Returns its log so far (warnings and errors).
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Waits until every target is `up` and its samples can be queried.
    ///
    /// # Errors
    /// After `timeout`: what Prometheus reports about each target.
    pub fn wait_until_up(&self, timeout: Duration) -> Result<(), String> {
        self.wait(timeout, || {
            let data = self.api("/api/v1/targets?state=active")?;
            let targets = data["activeTargets"].as_array().ok_or("no list of targets in the answer")?;
            // A target's health is reported slightly before its samples can be queried.
            let up = self.query("up")?.iter().filter(|s| s.value == 1.0).count();
            if !targets.is_empty() && up == targets.len() {
                return Ok(());
            }
            let told = targets.iter().map(|t| {
                format!(
                    "{} is {}: {}",
                    t["scrapeUrl"],
                    t["health"],
                    t["lastError"].as_str().unwrap_or_default()
                )
            });
            Err(told.collect::<Vec<_>>().join("\n"))
        })
    }

    /// Waits until each target has been scraped `times` times; a rate needs two scrapes.
    ///
    /// # Errors
    /// After `timeout`: how often each was scraped.
    pub fn wait_for_scrapes(&self, times: u32, timeout: Duration) -> Result<(), String> {
        self.wait(timeout, || {
            let counts = self.query("count_over_time(up[1h])")?;
            if !counts.is_empty() && counts.iter().all(|s| s.value >= f64::from(times)) {
                return Ok(());
            }
            Err(format!("no target yet, or one with fewer than {times} scrapes: {counts:?}"))
        })
    }

    fn wait(&self, timeout: Duration, mut done: impl FnMut() -> Result<(), String>) -> Result<(), String> {
        let deadline = Instant::now() + timeout;
        loop {
            match done() {
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(100)),
                answer => return answer,
            }
        }
    }

    /// Evaluates an expression now. A scalar is returned as one sample without labels.
    ///
    /// # Errors
    /// Prometheus's message, if it rejects the expression; or that it does not respond.
    pub fn query(&self, expr: &str) -> Result<Vec<Sample>, String> {
        let data = self.api(&format!("/api/v1/query?query={}", percent_encode(expr)))?;
        let strange = || format!("a strange answer to {expr}: {data}");
        let value = |pair: &Json| pair[1].as_str().and_then(|v| v.parse::<f64>().ok()).ok_or_else(strange);
        match data["resultType"].as_str() {
            Some("scalar") => Ok(vec![Sample { labels: BTreeMap::new(), value: value(&data["result"])? }]),
            Some("vector") => data["result"]
                .as_array()
                .ok_or_else(strange)?
                .iter()
                .map(|element| {
                    let labels = serde_json::from_value(element["metric"].clone()).map_err(|_| strange())?;
                    Ok(Sample { labels, value: value(&element["value"])? })
                })
                .collect(),
            _ => Err(strange()),
        }
    }

    /// Evaluates an expression now that yields a single native histogram; returns its count, sum and buckets as in the
    /// API.
    ///
    /// # Errors
    /// Prometheus's message; that it does not respond; or that the result is not exactly one native histogram.
    pub fn histogram(&self, expr: &str) -> Result<Json, String> {
        let mut data = self.api(&format!("/api/v1/query?query={}", percent_encode(expr)))?;
        match data["result"].as_array_mut().map(Vec::as_mut_slice) {
            Some([one]) if one["histogram"].is_array() => Ok(one["histogram"][1].take()),
            _ => Err(format!("not one native histogram: {data}")),
        }
    }

    /// Returns the stored exemplars of a selector's series, with the labels of each series.
    ///
    /// # Errors
    /// Prometheus's message, if it rejects the selector; or that it does not respond.
    pub fn exemplars(&self, selector: &str) -> Result<Vec<StoredExemplar>, String> {
        // The whole time range.
        let path =
            format!("/api/v1/query_exemplars?query={}&start=0&end=9999999999", percent_encode(selector));
        let data = self.api(&path)?;
        let strange = || format!("a strange answer to {selector}: {data}");
        let mut all = Vec::new();
        for series in data.as_array().ok_or_else(strange)? {
            let labels: BTreeMap<_, _> =
                serde_json::from_value(series["seriesLabels"].clone()).map_err(|_| strange())?;
            let exemplars = series["exemplars"].as_array().ok_or_else(strange)?;
            all.extend(
                exemplars.iter().map(|one| StoredExemplar { series: labels.clone(), exemplar: one.clone() }),
            );
        }
        Ok(all)
    }

    /// Runs every query of every panel; returns those without data, as `panel, query: expression`. A number that is not
    /// finite does not count as data: it is the result of a quantile of nothing or of 0/0.
    ///
    /// # Errors
    /// If a query is rejected or has a variable without a value.
    pub fn queries_without_data(
        &self,
        dashboard: &Dashboard,
        variables: &[Variable],
    ) -> Result<Vec<String>, String> {
        let mut empty = Vec::new();
        for panel in &dashboard.panels {
            for query in &panel.queries {
                let expr = substitute(&query.expr, &[variables, BUILT_IN_VARIABLES])?;
                empty.push((panel, query, expr));
            }
        }
        // On a busy machine, a scrape may time out, after which there is no data until the next one.
        for attempt in 0..5 {
            if attempt > 0 && !empty.is_empty() {
                std::thread::sleep(Duration::from_secs(1));
            }
            let mut still = Vec::new();
            for (panel, query, expr) in empty {
                let samples = self.query(&expr).map_err(|e| format!("{}: {e}", panel.title))?;
                if !samples.iter().any(|s| s.value.is_finite()) {
                    still.push((panel, query, expr));
                }
            }
            empty = still;
        }
        let shown =
            empty.iter().map(|(panel, query, expr)| format!("{}, {}: {expr}", panel.title, query.ref_id));
        Ok(shown.collect())
    }

    /// Returns the `data` of an HTTP API response.
    fn api(&self, path: &str) -> Result<Json, String> {
        let mut answer: Json = serde_json::from_str(&self.get(path)?).map_err(|e| e.to_string())?;
        if answer["status"] == "success" {
            Ok(answer["data"].take())
        } else {
            Err(answer["error"].to_string())
        }
    }

    /// Returns the body of the response for a path.
    fn get(&self, path: &str) -> Result<String, String> {
        let (status, body) = http::answer(&mut http::curl(&format!("http://127.0.0.1:{}{path}", self.port)))
            .map_err(|e| format!("prometheus does not answer: {e}"))?;
        // The API explains a rejected query in the body of a 400 or 422.
        if status == 200 || body.starts_with('{') {
            Ok(body)
        } else {
            Err(format!("status {status}: {body}"))
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Both fail only if it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

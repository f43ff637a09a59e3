//! The compose file and the files that its containers mount: each is valid, and their references to each other are
//! correct. Otherwise, an error would only show when the stack is started.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_yaml::Value as Yaml;

use super::{repository, shipped_dashboards};
use crate::support::prometheus::{Scrape, adapt, promtool, stack_directory};

fn yaml(path: &str) -> Yaml {
    let text = std::fs::read_to_string(repository(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_yaml::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn text<'a>(yaml: &'a Yaml, path: &[&str]) -> &'a str {
    let found = path.iter().try_fold(yaml, |at, key| at.get(*key)).and_then(Yaml::as_str);
    found.unwrap_or_else(|| panic!("no text at {}", path.join(".")))
}

fn list<'a>(yaml: &'a Yaml, key: &str) -> &'a [Yaml] {
    yaml.get(key).and_then(Yaml::as_sequence).unwrap_or_else(|| panic!("no list at {key}"))
}

fn services(compose: &Yaml) -> Vec<(&str, &Yaml)> {
    let services = compose["services"].as_mapping().expect("no services");
    services.iter().map(|(name, service)| (name.as_str().unwrap(), service)).collect()
}

/// Returns the sources of a service's directories and files, as written in the compose file, and their paths in the
/// container; named volumes are left out.
fn mounts(service: &Yaml) -> Vec<(String, String)> {
    let both = |volume: &Yaml| match volume.as_str() {
        Some(short) => {
            let mut parts = short.split(':');
            let source = parts.next()?.to_owned();
            source.starts_with('.').then(|| Some((source, parts.next()?.to_owned())))?
        }
        None => Some((text(volume, &["source"]).to_owned(), text(volume, &["target"]).to_owned())),
    };
    list(service, "volumes").iter().filter_map(both).collect()
}

/// Returns the file in the repository that is mounted at a path in a container.
fn mounted(service: &Yaml, inside: &str) -> PathBuf {
    let found = mounts(service).into_iter().find_map(|(source, target)| {
        let below = Path::new(inside).strip_prefix(&target).ok()?;
        let source = repository("docker").join(source);
        Some(if below.as_os_str().is_empty() { source } else { source.join(below) })
    });
    found.unwrap_or_else(|| panic!("{inside} is not mounted"))
}

fn same_file(one: &Path, other: &str) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    real(one) == real(&repository(other))
}

#[test]
fn images_are_pinned_with_local_ports_and_health_checks() {
    let compose = yaml("docker/docker-compose.yml");
    assert_eq!(services(&compose).iter().map(|s| s.0).collect::<Vec<_>>(), ["prometheus", "grafana"]);
    for (name, service) in services(&compose) {
        let (image, tag) = text(service, &["image"]).rsplit_once(':').expect("an image without a tag");
        assert!(image.starts_with("docker.io/"), "{name}: Podman asks which registry {image} is in");
        let numbers: Vec<_> = tag.trim_start_matches('v').split('.').map(str::parse::<u32>).collect();
        assert!(numbers.len() == 3 && numbers.iter().all(Result::is_ok), "{name}: {tag} is no release");
        for port in list(service, "ports") {
            assert!(port.as_str().is_some_and(|p| p.starts_with("127.0.0.1:")), "{name}: {port:?}");
        }
        let test = list(&service["healthcheck"], "test");
        assert_eq!(test[0], "CMD", "{name}");
        let published = list(service, "ports")[0].as_str().and_then(|p| p.rsplit(':').next()).unwrap();
        let url = test.last().and_then(Yaml::as_str).unwrap();
        assert!(url.starts_with(&format!("http://127.0.0.1:{published}/")), "{name}: {url}");
    }
}

#[test]
fn every_mounted_path_exists_or_is_user_supplied() {
    let compose = yaml("docker/docker-compose.yml");
    for (name, service) in services(&compose) {
        for (source, _) in mounts(service) {
            let made = source == "../certs/ca.crt";
            assert!(made || repository("docker").join(&source).exists(), "{name}: {source}");
        }
        for volume in list(service, "volumes").iter().filter_map(Yaml::as_str) {
            let source = volume.split(':').next().unwrap();
            let declared = || compose["volumes"].get(source).is_some();
            assert!(source.starts_with('.') || declared(), "{name}: the volume {source} is not declared");
            // Only a named volume may be writable.
            assert_eq!(source.starts_with('.'), volume.ends_with(":ro,Z"), "{name}: {volume}");
        }
    }
    // The long syntax: a missing certificate must not become an empty directory.
    let long = list(&compose["services"]["prometheus"], "volumes").iter().find(|v| v.is_mapping()).unwrap();
    assert_eq!(long["bind"]["create_host_path"], false);
    assert_eq!(long["read_only"], true);
}

#[test]
fn secrets_are_git_ignored_files() {
    let compose = yaml("docker/docker-compose.yml");
    let file = text(&compose, &["secrets", "metrics_password", "file"]).replacen("./", "/docker/", 1);
    let ignored = std::fs::read_to_string(repository(".gitignore")).unwrap();
    let ignores = |path: &str| ignored.lines().any(|line| path.starts_with(line));
    assert!(ignores(&file), "{file}");
    assert!(ignores("/docker/.env") && ignores("/certs/ca.crt"), "{ignored}");
}

#[test]
fn compose_variables_are_documented() {
    let compose = std::fs::read_to_string(repository("docker/docker-compose.yml")).unwrap();
    let example = std::fs::read_to_string(repository("docker/.env.example")).unwrap();
    let used: BTreeSet<&str> = compose
        .split("${")
        .skip(1)
        .filter_map(|rest| rest.split(|c: char| c != '_' && !c.is_ascii_uppercase()).next())
        .collect();
    let offered: BTreeSet<&str> = example
        .lines()
        .filter_map(|line| line.trim_start_matches('#').split_once('='))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(used, offered);
    assert!(compose.contains("${GRAFANA_ADMIN_PASSWORD:?"), "compose must refuse to start without it");
    assert!(example.lines().any(|line| line == "GRAFANA_ADMIN_PASSWORD="), "the example sets a password");
}

#[test]
fn prometheus_finds_its_files_and_the_host() {
    let compose = yaml("docker/docker-compose.yml");
    let service = &compose["services"]["prometheus"];
    let config = list(service, "command")
        .iter()
        .find_map(|a| a.as_str()?.strip_prefix("--config.file="))
        .expect("no --config.file");
    assert!(same_file(&mounted(service, config), "docker/prometheus/prometheus.yml"), "{config}");

    let prometheus = yaml("docker/prometheus/prometheus.yml");
    let job = &list(&prometheus, "scrape_configs")[0];
    let ca = mounted(service, text(job, &["tls_config", "ca_file"]));
    assert!(ca.ends_with("../certs/ca.crt"), "{}", ca.display());
    let secrets: Vec<_> = list(service, "secrets").iter().filter_map(Yaml::as_str).collect();
    let password = text(job, &["basic_auth", "password_file"]).strip_prefix("/run/secrets/");
    assert_eq!(secrets, [password.expect("compose puts secrets in /run/secrets")]);
    assert!(compose["secrets"].get(secrets[0]).is_some());

    let pattern = list(&list(job, "file_sd_configs")[0], "files")[0].as_str().unwrap();
    let nodes = Path::new(config).parent().unwrap().join(pattern.replace('*', "nodes"));
    assert!(same_file(&mounted(service, nodes.to_str().unwrap()), "docker/prometheus/nodes/nodes.yml"));
    let nodes = yaml("docker/prometheus/nodes/nodes.yml");
    let target = list(&nodes.as_sequence().unwrap()[0], "targets")[0].as_str().unwrap();
    let (host, port) = target.rsplit_once(':').unwrap();
    assert_eq!(port, "9435", "the exporter's default port");
    let hosts: Vec<_> = list(service, "extra_hosts").iter().filter_map(Yaml::as_str).collect();
    assert_eq!(hosts, [format!("{host}:host-gateway")]);
}

#[test]
fn prometheus_accepts_its_config_with_tls_and_password() {
    let directory = tempfile::tempdir().unwrap();
    let make = |name: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, "").unwrap();
        path
    };
    let scrape = Scrape {
        target: "localhost:9435".into(),
        ca_file: Some(make("ca.crt")),
        password_file: make("password"),
        node: None,
    };
    let stack = std::fs::read_to_string(stack_directory().join("prometheus.yml")).unwrap();
    let config = make("prometheus.yml");
    let adapted = adapt(&stack, &stack_directory(), &scrape).unwrap();
    std::fs::write(&config, &adapted).unwrap();
    let told = promtool(["check", "config", &config.display().to_string()]).unwrap();
    assert!(told.contains("1 rule files found"), "{told}");

    let job = &list(&serde_yaml::from_str(&adapted).unwrap(), "scrape_configs")[0].clone();
    assert_eq!(text(job, &["scheme"]), "https");
    assert_eq!(text(job, &["basic_auth", "username"]), "prometheus");
    assert_eq!(job["honor_labels"], true);

    std::fs::write(&config, adapted.replace("honor_labels", "honor")).unwrap();
    let told = promtool(["check", "config", &config.display().to_string()]).unwrap_err();
    assert!(told.contains("field honor not found"), "{told}");
}

#[test]
fn uncommented_multi_node_example_is_valid() {
    let nodes = std::fs::read_to_string(repository("docker/prometheus/nodes/nodes.yml")).unwrap();
    let uncommented = nodes.replace("# - targets", "- targets").replace("#   labels", "  labels");
    let entries: Yaml = serde_yaml::from_str(&uncommented).unwrap();
    let entries = entries.as_sequence().unwrap();
    let names: Vec<_> = entries.iter().skip(1).map(|e| text(e, &["labels", "node"])).collect();
    assert_eq!(names, ["london", "tokyo"]);
    assert!(entries.iter().all(|e| list(e, "targets").len() == 1));
}

#[test]
fn unexpected_prometheus_config_is_rejected() {
    let password_file = "password".into();
    let scrape = Scrape { target: "localhost:1".into(), ca_file: None, password_file, node: None };
    let stack = std::fs::read_to_string(stack_directory().join("prometheus.yml")).unwrap();
    let told = |text: &str| adapt(text, Path::new("/"), &scrape).unwrap_err();
    assert_eq!(told(&stack.replace("job_name: fibre", "job_name: other")), "no job named fibre");
    assert_eq!(told(&stack.replace("password_file", "password")), "no basic_auth.password_file");
}

#[test]
fn grafana_finds_prometheus_and_the_dashboards() {
    let compose = yaml("docker/docker-compose.yml");
    let service = &compose["services"]["grafana"];
    let provisioning = mounted(service, "/etc/grafana/provisioning");
    assert!(same_file(&provisioning, "docker/grafana/provisioning"));

    let sources = yaml("docker/grafana/provisioning/datasources/prometheus.yml");
    assert_eq!(sources["apiVersion"], 1);
    let source = &list(&sources, "datasources")[0];
    let url = text(source, &["url"]).strip_prefix("http://").and_then(|u| u.rsplit_once(':'));
    let (host, port) = url.expect("a URL with a port");
    let ports = list(&compose["services"][host], "ports");
    assert!(
        ports.iter().any(|p| p.as_str().is_some_and(|p| p.ends_with(&format!(":{port}")))),
        "{host}:{port}"
    );
    let interval = yaml("docker/prometheus/prometheus.yml")["global"]["scrape_interval"].clone();
    assert_eq!(source["jsonData"]["timeInterval"], interval, "$__rate_interval follows from it");

    let providers = yaml("docker/grafana/provisioning/dashboards/fibre.yml");
    assert_eq!(providers["apiVersion"], 1);
    let path = text(&list(&providers, "providers")[0], &["options", "path"]);
    assert!(same_file(&mounted(service, path), "grafana"), "{path}");
    let home = text(service, &["environment", "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]);
    assert!(same_file(&mounted(service, home), "grafana/fibre.json"), "{home}");
    // `support::dashboard::chosen` assumes it.
    let toggles = text(service, &["environment", "GF_FEATURE_TOGGLES_ENABLE"]);
    assert_eq!(toggles, "prometheusSpecialCharsInLabelValues");

    for file in shipped_dashboards() {
        let dashboard = crate::support::dashboard::Dashboard::load(&file).unwrap();
        let chosen = &dashboard.json["templating"]["list"][0]["current"];
        if chosen.is_null() {
            // Grafana then uses its default.
            assert_eq!(source["isDefault"], true);
            continue;
        }
        assert_eq!(chosen["value"], text(source, &["uid"]), "{}", file.display());
        assert_eq!(chosen["text"], text(source, &["name"]), "{}", file.display());
    }
}

#[test]
fn alerts_fire_exactly_when_expected() {
    promtool(["test", "rules", &repository("tests/unprivileged/stack/alerts.yml").display().to_string()])
        .unwrap();
}

//! What Prometheus needs to scrape this exporter.

use super::model::Connect;

/// How the metrics are reached.
#[derive(Debug, Default)]
pub(crate) struct ScrapeAccess<'a> {
    pub node: &'a str,
    pub port: u16,
    pub has_tls: bool,
    /// A client certificate is required.
    pub wants_certificate: bool,
    /// The first user, if there are users.
    pub user: Option<&'a str>,
}

/// Returns a scrape_config to copy. The reader must adapt the file names in it.
pub(crate) fn connect(access: &ScrapeAccess<'_>) -> Connect {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut text = "scrape_configs:\n  - job_name: fibre\n".to_owned();
    if access.has_tls {
        text.push_str("    scheme: https\n    tls_config:\n      ca_file: /etc/prometheus/exporter-ca.crt\n");
        if access.wants_certificate {
            text.push_str(
                "      cert_file: /etc/prometheus/client.crt\n      key_file: /etc/prometheus/client.key\n",
            );
        }
    }
    if let Some(user) = access.user {
        text.push_str(&format!(
            "    basic_auth:\n      username: {}\n      password_file: /etc/prometheus/exporter-password\n",
            quoted(user)
        ));
    }
    let address = format!("{}:{}", access.node, access.port);
    text.push_str(&format!("    static_configs:\n      - targets: [{}]\n", quoted(&address)));
    Connect { address, scrape_config: text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scrape_config_is_valid_yaml_for_any_name() {
        let hostile = ScrapeAccess {
            node: "a\"]\nb: c",
            port: 9435,
            has_tls: true,
            wants_certificate: true,
            user: Some("u\n  x: y"),
        };
        for access in [ScrapeAccess { node: "london", port: 1, ..ScrapeAccess::default() }, hostile] {
            let made = connect(&access);
            let yaml: serde_yaml::Value = serde_yaml::from_str(&made.scrape_config).unwrap();
            let job = &yaml["scrape_configs"][0];
            assert_eq!(job["static_configs"][0]["targets"][0].as_str(), Some(&made.address[..]));
            assert_eq!(job["basic_auth"]["username"].as_str(), access.user);
            assert_eq!(job["scheme"].as_str(), access.has_tls.then_some("https"));
        }
    }
}

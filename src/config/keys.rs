//! The settings that can be given as a flag, an environment variable or a key of the file. The command line is built
//! from this table, and the sources are merged by it.

/// A setting with its three names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettingKey {
    /// The key in the file and in [`super::Overrides`].
    pub name: &'static str,
    pub env: &'static str,
    /// Without leading dashes.
    pub flag: &'static str,
    pub short: Option<char>,
    /// The placeholder for the flag's value; `None` for a switch.
    pub value: Option<&'static str>,
    pub help: &'static str,
    /// The default, written like a flag's value.
    pub default: Option<&'static str>,
}

/// The variable that names the configuration file if `--config` is absent.
pub const CONFIG_ENV: &str = "FIBRE_CONFIG";

const fn key(
    name: &'static str,
    env: &'static str,
    flag: &'static str,
    value: Option<&'static str>,
    help: &'static str,
) -> SettingKey {
    SettingKey { name, env, flag, short: None, value, help, default: None }
}

const fn short(key: SettingKey, short: char) -> SettingKey {
    SettingKey { short: Some(short), ..key }
}

const fn default(key: SettingKey, default: &'static str) -> SettingKey {
    SettingKey { default: Some(default), ..key }
}

/// All such settings. The first twelve are named as in the Python exporter for FIBRE.
#[rustfmt::skip]
pub const KEYS: &[SettingKey] = &[
    short(key("bitcoind_path", "FIBRE_BITCOIND_PATH", "bitcoind", Some("PATH"),
        "Trace this bitcoind binary with the profile `fibre`"), 'b'),
    short(key("pid", "FIBRE_PID", "pid", Some("PID"),
        "Count only this process instead of every process of that bitcoind"), 'p'),
    short(default(key("node_name", "FIBRE_NODE_NAME", "node-name", Some("NAME"),
        "Value of the label `node` on every metric"), "localhost"), 'n'),
    default(key("metrics_port", "FIBRE_METRICS_PORT", "port", Some("PORT"),
        "Port that serves /metrics"), "9435"),
    default(key("health_port", "FIBRE_HEALTH_PORT", "health-port", Some("PORT"),
        "Port that serves /health and /ready"), "9436"),
    short(default(key("verbose", "FIBRE_VERBOSE", "verbose", None,
        "Log every event"), "false"), 'v'),
    default(key("log_level", "FIBRE_LOG_LEVEL", "log-level", Some("LEVEL"),
        "Log level: DEBUG, INFO, WARNING or ERROR"), "INFO"),
    key("log_file", "FIBRE_LOG_FILE", "log-file", Some("PATH"),
        "Also log to this file"),
    key("metrics_auth_username", "FIBRE_METRICS_AUTH_USERNAME", "metrics-auth-username", Some("USER"),
        "User name for basic authentication on /metrics"),
    key("metrics_auth_password", "FIBRE_METRICS_AUTH_PASSWORD", "metrics-auth-password", Some("PASSWORD"),
        "Password or bcrypt hash; prefer --metrics-auth-password-file, which does not show in `ps`"),
    key("tls_cert", "FIBRE_TLS_CERT", "tls-cert", Some("PATH"),
        "Certificate chain (PEM); enables HTTPS"),
    key("tls_key", "FIBRE_TLS_KEY", "tls-key", Some("PATH"),
        "Private key of the certificate (PEM)"),
    key("metrics_auth_password_file", "FIBRE_METRICS_AUTH_PASSWORD_FILE", "metrics-auth-password-file", Some("PATH"),
        "File that contains the password"),
    default(key("bind", "FIBRE_BIND", "bind", Some("ADDRESS"),
        "IP address to listen on, for both ports"), "127.0.0.1"),
    key("web_config_file", "FIBRE_WEB_CONFIG_FILE", "web.config.file", Some("PATH"),
        "Web configuration file (TLS, users, rate limit) in the format of Prometheus's exporter-toolkit"),
    key("web_listen_address", "FIBRE_WEB_LISTEN_ADDRESS", "web.listen-address", Some("ADDRESS"),
        "Address that serves /metrics, instead of --bind and --port: :9435, [::1]:9435 or unix:/run/exporter.sock; can be repeated"),
    key("web_systemd_socket", "FIBRE_WEB_SYSTEMD_SOCKET", "web.systemd-socket", None,
        "Serve /metrics on the sockets that systemd has opened"),
];

impl SettingKey {
    /// Returns the entry called `name`. Names are hard-coded, so a wrong one is a bug.
    pub(super) fn named(name: &str) -> &'static SettingKey {
        match KEYS.iter().find(|key| key.name == name) {
            Some(key) => key,
            None => unreachable!("{name} is not in the table of settings"),
        }
    }
}

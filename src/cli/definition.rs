//! The definition of commands and flags for clap.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, Command, value_parser};
use clap_complete::Shell;

use crate::config;
use crate::config::keys::{CONFIG_ENV, KEYS};
use crate::net::{Prefix, parse_ports, parse_ttl};
use crate::plan::profiles;

/// The setting whose flag can be repeated; its values are joined with commas.
const REPEATABLE: &str = "web_listen_address";

/// The command line, for parsing and for completion scripts.
pub fn command() -> Command {
    let path = |name: &'static str| Arg::new(name).value_name("FILE").value_parser(value_parser!(PathBuf));
    let config = || path("config").long("config").short('c');
    let file = || {
        let file = path("file").required_unless_present("config").conflicts_with("config");
        [
            file.help("Configuration file, or - for standard input"),
            config().help("The same, named as for the exporter itself"),
        ]
    };
    let switch = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    let settings = || {
        KEYS.iter().map(|key| {
            let default = key.default.filter(|_| key.value.is_some());
            let default = default.map(|default| format!(" [default: {default}]")).unwrap_or_default();
            let arg = Arg::new(key.name).long(key.flag).help(format!("{}{default}", key.help));
            let arg = if let Some(short) = key.short { arg.short(short) } else { arg };
            match key.value {
                Some(value) if key.name == REPEATABLE => arg.value_name(value).action(ArgAction::Append),
                Some(value) => arg.value_name(value),
                None => arg.action(ArgAction::SetTrue),
            }
        })
    };
    Command::new("exporter")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Traces USDT probes, functions and packets, and exports Prometheus metrics")
        .after_help(
            "Without a command, it traces the targets of --config or --bitcoind until it receives SIGTERM.\n\nFlags \
             override environment variables, which override the configuration file. The variable of a\nkey is FIBRE_ \
             followed by the key in capitals: FIBRE_METRICS_PORT for metrics_port.",
        )
        // The Python exporter's parser accepted abbreviated flags, and the last of repeated ones.
        .infer_long_args(true)
        .args_override_self(true)
        .args_conflicts_with_subcommands(true)
        .arg(config().help(format!("Configuration file (YAML) [env: {CONFIG_ENV}]")))
        .args(settings())
        .subcommand(
            Command::new("check")
                .about("Validate a configuration and print what it would trace")
                .after_help("The exporter's own flags are accepted, too, such as --web.config.file.")
                .args(file())
                .args(settings().map(|arg| arg.hide(true)))
                .arg(switch("attach").help("Also attach the probes for a few seconds and count hits"))
                .arg(
                    Arg::new("seconds")
                        .long("seconds")
                        .value_name("N")
                        .value_parser(value_parser!(u16).range(1..=3600))
                        .default_value("5")
                        .requires("attach")
                        .help("Seconds to count with --attach"),
                ),
        )
        .subcommand(
            Command::new("probes")
                .about("List the probes of a program")
                .arg(
                    Arg::new("target")
                        .value_name("TARGET")
                        .required(true)
                        .help("Path of an executable or library, process id, or process name"),
                )
                .arg(
                    Arg::new("functions")
                        .long("functions")
                        .value_name("GLOB")
                        .help("Also list matching functions"),
                )
                .arg(switch("json").help("Print JSON").conflicts_with("yaml"))
                .arg(switch("yaml").help("Print a starter configuration")),
        )
        .subcommand(
            Command::new("profiles").about("List the built-in profiles, or print one").arg(
                Arg::new("name")
                    .value_name("NAME")
                    .value_parser(PossibleValuesParser::new(profiles().iter().map(|(name, _)| *name)))
                    .hide_possible_values(true)
                    .help("Profile to print"),
            ),
        )
        .subcommand(
            Command::new("dashboard")
                .about("Print a Grafana dashboard, or alerting rules, for a configuration")
                .args(file())
                .arg(switch("alerts").help("Print Prometheus alerting rules instead"))
                .arg(
                    Arg::new("runbooks")
                        .long("runbooks")
                        .value_name("URL")
                        .requires("alerts")
                        .help("Page that alerts link to, a copy of docs/alerts.md [default: /alerts of each exporter]"),
                ),
        )
        .subcommand(
            Command::new("schema")
                .about("Print the JSON schema of the configuration")
                .arg(switch("markdown").help("Print the configuration reference (Markdown) instead")),
        )
        .subcommand(
            Command::new("hash-password")
                .about("Read a password from the terminal or standard input and print its bcrypt hash")
                .arg(
                    Arg::new("cost")
                        .long("cost")
                        .value_name("N")
                        .value_parser(value_parser!(u32).range(4..=16))
                        .default_value("10")
                        .help("bcrypt cost; each step doubles the time per check"),
                ),
        )
        .subcommand(
            Command::new("unpin")
                .about("Detach the probes that `state: pinned` left attached, and discard their counts")
                .arg(config().help("Configuration file of the exporter that left them"))
                .arg(
                    Arg::new("directory")
                        .value_name("DIRECTORY")
                        .value_parser(value_parser!(PathBuf))
                        .required_unless_present("config")
                        .conflicts_with("config")
                        .help("State directory, such as /sys/fs/bpf/exporter-9435"),
                ),
        )
        .subcommand(
            Command::new("events")
                .about("Show stored slow events")
                .arg(config().help("Configuration file that names the event file"))
                .arg(
                    path("file")
                        .long("file")
                        .conflicts_with("config")
                        .help("Event file [default: /var/lib/fibre-exporter/events-9435.db]"),
                )
                .arg(
                    Arg::new("since")
                        .long("since")
                        .value_name("DURATION")
                        .value_parser(duration)
                        .help("Only events not older than this: 90s, 5min or 24h"),
                )
                .arg(Arg::new("probe").long("probe").value_name("NAME").help("Only events of this probe"))
                .arg(
                    Arg::new("metric")
                        .long("metric")
                        .value_name("NAME")
                        .help("Only events of this histogram"),
                )
                .arg(
                    Arg::new("where")
                        .long("where")
                        .value_name("FIELD=VALUE")
                        .value_parser(field)
                        .action(ArgAction::Append)
                        .help("Only events with this value; can be repeated, and all must match"),
                )
                .arg(
                    Arg::new("limit")
                        .long("limit")
                        .value_name("N")
                        .value_parser(value_parser!(u32).range(1..))
                        .default_value("100")
                        .help("Show the latest N events at most"),
                )
                .arg(table_or_json()),
        )
        .subcommand(
            blocklist_command("block")
                .about("Block an address or prefix, through the running exporter")
                .arg(prefix().required(true).help("Address or prefix: 192.0.2.7, 2001:db8::/32"))
                .arg(
                    Arg::new("ttl")
                        .long("ttl")
                        .value_name("TIME")
                        .value_parser(parse_ttl)
                        .help("For how long: 90s, 15min, 12h or 7d [default: until it is unblocked]"),
                )
                .arg(Arg::new("reason").long("reason").value_name("TEXT").help("Shown with the entry"))
                .arg(
                    Arg::new("direction")
                        .long("direction")
                        .value_name("DIRECTION")
                        .value_parser(["ingress", "egress", "both"])
                        .help("Packets received from it, sent to it, or both [default: `direction` of network.block]"),
                )
                .arg(
                    Arg::new("protocol")
                        .long("protocol")
                        .value_name("PROTOCOL")
                        .value_parser(["tcp", "udp", "icmp"])
                        .help("Only packets of this protocol [default: all; tcp with --ports]"),
                )
                .arg(
                    Arg::new("ports")
                        .long("ports")
                        .value_name("PORTS")
                        .value_parser(parse_ports)
                        .help("Only packets to this port or range (1000-2000)"),
                )
                .arg(
                    Arg::new("confirm").long("confirm").value_name("TIME").value_parser(parse_ttl).help(
                        "Undo the block after this time unless Enter is pressed first, in case it locks you out",
                    ),
                ),
        )
        .subcommand(
            blocklist_command("unblock")
                .about("Unblock an address or prefix")
                .arg(prefix().required(true).help("Address or prefix, as `exporter blocklist` shows it")),
        )
        .subcommand(
            blocklist_command("blocklist")
                .about("List the blocked addresses and prefixes, with their hits")
                .arg(prefix().help("Only this entry"))
                .arg(table_or_json()),
        )
        .subcommand(
            Command::new("completions").about("Print a shell completion script").arg(
                Arg::new("shell")
                    .value_name("SHELL")
                    .required(true)
                    .value_parser(value_parser!(Shell))
                    .help("Shell"),
            ),
        )
        .subcommand(
            Command::new("man")
                .about("Print the man page of the exporter or of a command")
                .arg(Arg::new("command").value_name("COMMAND").help("Command, such as check")),
        )
}

/// A command for the running exporter.
fn blocklist_command(name: &'static str) -> Command {
    let path = |name: &'static str| Arg::new(name).long(name).value_parser(value_parser!(PathBuf));
    Command::new(name)
        .arg(path("config").short('c').value_name("FILE").help("Configuration file of the running exporter"))
        .arg(
            path("socket")
                .value_name("PATH")
                .conflicts_with("config")
                .help("Its control socket [default: /run/fibre-exporter/control-9435.sock]"),
        )
}

fn table_or_json() -> Arg {
    Arg::new("format")
        .long("format")
        .value_name("FORMAT")
        .value_parser(["table", "json"])
        .default_value("table")
        .help("table or json")
}

fn prefix() -> Arg {
    let parse = |text: &str| Prefix::parse(text).map(Prefix::canonical);
    Arg::new("prefix").value_name("PREFIX").value_parser(parse)
}

fn duration(text: &str) -> Result<Duration, String> {
    let seconds = config::duration(text).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| "expected a duration such as 90s, 5min or 24h".to_owned())
}

fn field(text: &str) -> Result<(String, String), String> {
    let both = text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    both.ok_or_else(|| "expected FIELD=VALUE".to_owned())
}

/// The man page of the exporter or of one of its commands, in roff; `None` if there is no such command.
pub fn man_page(of: Option<&str>) -> Option<Vec<u8>> {
    let mut command = command();
    command.build();
    if let Some(of) = of {
        command = command.find_subcommand(of)?.clone();
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).expect("writing to memory cannot fail");
    if of.is_none() {
        page = with_sections(&String::from_utf8_lossy(&page)).into_bytes();
    }
    Some(page)
}

/// Adds the sections of the administrator's page other than commands and flags, before the version, which comes last.
fn with_sections(page: &str) -> String {
    page.replace(".SH EXTRA\n", ".SH ENVIRONMENT\n")
        .replace(".SH VERSION\n", concat!(include_str!("man.roff"), ".SH VERSION\n"))
}

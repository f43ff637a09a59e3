//! Commands and flags. This module only parses arguments: [`crate::config::load`] merges the run command's flags with
//! the environment and the file.

mod definition;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ArgMatches;
use clap_complete::Shell;

use crate::blocking;
use crate::config::Overrides;
use crate::config::keys::KEYS;
use crate::net::{BlockDirection, BlockProtocol, BlockScope, Prefix};
use crate::slow::EventQuery;

pub use self::definition::{command, man_page};

/// The requested command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invocation {
    /// Trace and serve: no command.
    Run(Overrides),
    /// Validate a configuration and print the plan; with `attach`, try it in the kernel for this long.
    Check { overrides: Overrides, attach: Option<Duration> },
    /// List the probes of a target: a path, a process id or a process name.
    Probes {
        target: String,
        /// A glob of functions to list as well.
        functions: Option<String>,
        format: ProbesFormat,
    },
    /// List the profiles, or print the named one.
    Profiles { name: Option<String> },
    /// Print a Grafana dashboard for `file`, or, with `alerts`, Prometheus rules.
    Dashboard { file: PathBuf, alerts: bool, runbooks: Option<String> },
    /// Print the JSON schema of a configuration, or its reference as Markdown.
    Schema { markdown: bool },
    /// Read a password from standard input and print its bcrypt hash.
    HashPassword { cost: u32 },
    /// Detach what `state: pinned` has left attached: by the exporter of `file`, or in `directory`.
    Unpin { file: Option<PathBuf>, directory: Option<PathBuf> },
    /// Show slow events: those of the exporter configured by `config`, or in `file`.
    Events { config: Option<PathBuf>, file: Option<PathBuf>, query: EventQuery, json: bool },
    /// Change or show the blocklist of the exporter configured by `config`, or listening on `socket`.
    Blocklist { config: Option<PathBuf>, socket: Option<PathBuf>, command: blocking::Command },
    /// Print a shell completion script.
    Completions { shell: Shell },
    /// Print the man page of the exporter, or of a command.
    Man { command: Option<String> },
}

/// The output format of `probes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbesFormat {
    Columns,
    Json,
    /// An initial configuration.
    Yaml,
}

/// Parses the command line; the first of `args` is the program's name. `--help` and `--version` are returned as errors,
/// too: [`clap::Error::print`] prints each of them appropriately.
pub fn parse<I, T>(args: I) -> Result<Invocation, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let mut args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    // clap's own `help` command accepts no flags.
    if args.get(1).is_some_and(|first| first == "help") {
        args.retain(|arg| arg != "--help" && arg != "-h");
    }
    let matches = command().try_get_matches_from(args)?;
    Ok(match matches.subcommand() {
        Some((name, matches)) => subcommand(name, matches),
        None => Invocation::Run(overrides(&matches)),
    })
}

fn overrides(matches: &ArgMatches) -> Overrides {
    let mut overrides = Overrides::default();
    overrides.config = matches.get_one("config").cloned();
    for key in KEYS {
        if key.value.is_none() {
            if matches.get_flag(key.name) {
                overrides.set(key, "true");
            }
        } else if let Some(texts) = matches.get_many::<String>(key.name) {
            // Flags that cannot be repeated have one value.
            let texts: Vec<_> = texts.map(String::as_str).collect();
            overrides.set(key, texts.join(","));
        }
    }
    overrides
}

fn subcommand(name: &str, matches: &ArgMatches) -> Invocation {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let file = || {
        let mut given = ["file", "config"].into_iter().filter_map(|name| matches.get_one::<PathBuf>(name));
        let given = given.next().cloned().unwrap_or_default();
        if given == Path::new("-") { PathBuf::from("/dev/stdin") } else { given }
    };
    match name {
        "check" => {
            let seconds = matches.get_one("seconds").copied().map(|n: u16| Duration::from_secs(n.into()));
            let mut overrides = overrides(matches);
            overrides.config = Some(file());
            Invocation::Check { overrides, attach: seconds.filter(|_| matches.get_flag("attach")) }
        }
        "probes" => Invocation::Probes {
            target: text("target").unwrap_or_default(),
            functions: text("functions"),
            format: if matches.get_flag("json") {
                ProbesFormat::Json
            } else if matches.get_flag("yaml") {
                ProbesFormat::Yaml
            } else {
                ProbesFormat::Columns
            },
        },
        "profiles" => Invocation::Profiles { name: text("name") },
        "dashboard" => Invocation::Dashboard {
            file: file(),
            alerts: matches.get_flag("alerts"),
            runbooks: matches.get_one("runbooks").cloned(),
        },
        "schema" => Invocation::Schema { markdown: matches.get_flag("markdown") },
        "hash-password" => Invocation::HashPassword { cost: matches.get_one("cost").copied().unwrap_or(10) },
        "completions" => {
            Invocation::Completions { shell: matches.get_one("shell").copied().unwrap_or(Shell::Bash) }
        }
        "unpin" => Invocation::Unpin {
            file: matches.get_one("config").cloned(),
            directory: matches.get_one("directory").cloned(),
        },
        "events" => Invocation::Events {
            config: matches.get_one("config").cloned(),
            file: matches.get_one("file").cloned(),
            query: EventQuery {
                since: matches.get_one("since").copied(),
                probe: text("probe"),
                metric: text("metric"),
                fields: matches.get_many("where").into_iter().flatten().cloned().collect(),
                limit: matches.get_one::<u32>("limit").copied().unwrap_or(100) as usize,
            },
            json: text("format").is_some_and(|format| format == "json"),
        },
        "block" | "unblock" | "blocklist" => Invocation::Blocklist {
            config: matches.get_one("config").cloned(),
            socket: matches.get_one("socket").cloned(),
            command: blocklist(name, matches),
        },
        "man" => Invocation::Man { command: matches.get_one("command").cloned() },
        other => unreachable!("no subcommand is called {other}"),
    }
}

fn blocklist(name: &str, matches: &ArgMatches) -> blocking::Command {
    let text = |name: &str| matches.get_one::<String>(name).map(String::as_str);
    let listed = matches.get_one::<Prefix>("prefix").copied();
    match (name, listed) {
        ("block", Some(prefix)) => {
            let ports = matches.get_one::<(u16, u16)>("ports").copied();
            let protocol = text("protocol").or(ports.map(|_| "tcp")).and_then(BlockProtocol::of);
            blocking::Command::Block {
                prefix,
                reason: text("reason").unwrap_or_default().to_owned(),
                ttl: matches.get_one("ttl").copied(),
                direction: text("direction").and_then(BlockDirection::of),
                scope: protocol.map(|protocol| BlockScope::new(protocol, ports)),
                confirm: matches.get_one("confirm").copied(),
            }
        }
        ("unblock", Some(prefix)) => blocking::Command::Unblock(prefix),
        _ => blocking::Command::List { prefix: listed, json: text("format") == Some("json") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::error::ErrorKind;

    fn run(args: &[&str]) -> Overrides {
        match parse([&["exporter"], args].concat()) {
            Ok(Invocation::Run(overrides)) => overrides,
            other => panic!("{args:?}: {other:?}"),
        }
    }

    fn refused(args: &[&str]) -> clap::Error {
        parse([&["exporter"], args].concat()).expect_err(&format!("{args:?}"))
    }

    #[test]
    fn command_definition_is_valid() {
        command().debug_assert();
    }

    #[test]
    fn every_table_flag_is_accepted() {
        for key in KEYS {
            let long = format!("--{}", key.flag);
            let mut forms = vec![long.clone()];
            forms.extend(key.short.map(|short| format!("-{short}")));
            for flag in forms {
                let (args, expected) = if key.value.is_some() {
                    (vec![flag.as_str(), "x"], "x")
                } else {
                    (vec![flag.as_str()], "true")
                };
                let overrides = run(&args);
                assert_eq!(overrides.get(key.name), Some(expected), "{flag}");
                assert_eq!(
                    KEYS.iter().filter(|other| overrides.get(other.name).is_some()).count(),
                    1,
                    "{flag}"
                );
            }
        }
        assert_eq!(run(&[]), Overrides::default());
        assert_eq!(run(&["-c", "a.yaml"]).config, Some("a.yaml".into()));
        assert_eq!(run(&["--config=a.yaml"]).config, Some("a.yaml".into()));
    }

    #[test]
    fn accepts_python_exporter_command_lines() {
        let all = run(&[
            "-b",
            "/usr/bin/bitcoind",
            "-p",
            "42",
            "-n",
            "mynode",
            "--port",
            "9435",
            "--health-port",
            "9436",
            "-c",
            "c.yaml",
            "-v",
            "--log-level",
            "DEBUG",
            "--log-file",
            "/l",
            "--metrics-auth-username",
            "u",
            "--metrics-auth-password=-p-",
            "--tls-cert",
            "/c",
            "--tls-key",
            "/k",
        ]);
        assert_eq!(all.get("bitcoind_path"), Some("/usr/bin/bitcoind"));
        assert_eq!(all.get("metrics_auth_password"), Some("-p-"));
        assert_eq!(all.get("verbose"), Some("true"));
        assert_eq!(all.get("bind"), None);
        // An abbreviated flag; the last of two; a value after an equals sign.
        assert_eq!(run(&["--node", "a"]).get("node_name"), Some("a"));
        assert_eq!(run(&["--port", "1", "--port=2"]).get("metrics_port"), Some("2"));
        let several = run(&["--web.listen-address", ":1", "--web.listen-address=[::1]:2"]);
        assert_eq!(several.get("web_listen_address"), Some(":1,[::1]:2"));
        assert_eq!(run(&["--metrics-auth-password", "x"]).get("metrics_auth_password_file"), None);
    }

    #[test]
    fn parses_subcommands() {
        let parsed = |args: &[&str]| parse([&["exporter"], args].concat()).unwrap();
        let file = PathBuf::from("c.yaml");
        let check = |seconds: Option<u64>| Invocation::Check {
            overrides: Overrides::file("c.yaml"),
            attach: seconds.map(Duration::from_secs),
        };
        assert_eq!(parsed(&["check", "c.yaml"]), check(None));
        assert_eq!(parsed(&["check", "--config", "c.yaml"]), check(None));
        assert_eq!(parsed(&["dashboard", "-c", "c.yaml"]), parsed(&["dashboard", "c.yaml"]));
        assert_eq!(parsed(&["check", "--attach", "c.yaml"]), check(Some(5)));
        assert_eq!(parsed(&["check", "--attach", "--seconds", "60", "c.yaml"]), check(Some(60)));
        let flags = ["-n", "london", "--web.config.file", "w.yml", "-v"];
        let Invocation::Check { overrides, .. } = parsed(&[&["check", "c.yaml"], &flags[..]].concat()) else {
            panic!("not a check");
        };
        assert_eq!(overrides, run(&[&["-c", "c.yaml"], &flags[..]].concat()));
        let probes = |functions: Option<&str>, format| Invocation::Probes {
            target: "1234".into(),
            functions: functions.map(str::to_owned),
            format,
        };
        assert_eq!(parsed(&["probes", "1234"]), probes(None, ProbesFormat::Columns));
        assert_eq!(parsed(&["probes", "1234", "--json"]), probes(None, ProbesFormat::Json));
        assert_eq!(
            parsed(&["probes", "--functions", "S*", "1234", "--yaml"]),
            probes(Some("S*"), ProbesFormat::Yaml)
        );
        assert_eq!(parsed(&["profiles"]), Invocation::Profiles { name: None });
        assert_eq!(parsed(&["profiles", "fibre"]), Invocation::Profiles { name: Some("fibre".into()) });
        assert_eq!(
            parsed(&["dashboard", "c.yaml"]),
            Invocation::Dashboard { file: file.clone(), alerts: false, runbooks: None }
        );
        assert_eq!(
            parsed(&["dashboard", "c.yaml", "--alerts"]),
            Invocation::Dashboard { file: file.clone(), alerts: true, runbooks: None }
        );
        assert_eq!(
            parsed(&[
                "dashboard",
                "c.yaml",
                "--alerts",
                "--runbooks",
                "https://docs.example.org/alerts.html"
            ]),
            Invocation::Dashboard {
                file,
                alerts: true,
                runbooks: Some("https://docs.example.org/alerts.html".into())
            }
        );
        refused(&["dashboard", "c.yaml", "--runbooks", "https://docs.example.org/alerts.html"]);
        assert_eq!(parsed(&["schema"]), Invocation::Schema { markdown: false });
        assert_eq!(parsed(&["schema", "--markdown"]), Invocation::Schema { markdown: true });
        assert_eq!(
            parsed(&["unpin", "-c", "c.yaml"]),
            Invocation::Unpin { file: Some("c.yaml".into()), directory: None }
        );
        assert_eq!(
            parsed(&["unpin", "/sys/fs/bpf/x"]),
            Invocation::Unpin { file: None, directory: Some("/sys/fs/bpf/x".into()) }
        );
        refused(&["unpin"]);
        let query = EventQuery { limit: 100, ..EventQuery::default() };
        assert_eq!(
            parsed(&["events"]),
            Invocation::Events { config: None, file: None, query: query.clone(), json: false }
        );
        let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let query = EventQuery {
            since: Some(Duration::from_secs(300)),
            probe: Some("a:b".into()),
            metric: Some("m".into()),
            fields: vec![field("height", "7"), field("x", "=1")],
            limit: 3,
        };
        let all = "events --file f.db --since 5min --probe a:b --metric m --where height=7 --where x==1 --limit 3 --format json";
        assert_eq!(
            parsed(&all.split(' ').collect::<Vec<_>>()),
            Invocation::Events { config: None, file: Some("f.db".into()), query, json: true }
        );
        assert_eq!(parsed(&["hash-password"]), Invocation::HashPassword { cost: 10 });
        assert_eq!(parsed(&["man", "check"]), Invocation::Man { command: Some("check".into()) });
        assert_eq!(parsed(&["completions", "zsh"]), Invocation::Completions { shell: Shell::Zsh });
    }

    #[test]
    fn every_command_and_flag_is_in_the_man_pages() {
        let page = |of: Option<&str>| String::from_utf8(man_page(of).unwrap()).unwrap();
        let whole = page(None).replace("\\-", "-");
        for flag in command().get_opts().filter_map(clap::Arg::get_long) {
            assert!(whole.contains(&format!("--{flag}")), "{flag}");
        }
        for sub in command().get_subcommands() {
            assert!(whole.contains(&format!("exporter-{}", sub.get_name())), "{}", sub.get_name());
            assert!(page(Some(sub.get_name())).contains(".TH"), "{}", sub.get_name());
        }
        for section in ["ENVIRONMENT", "SIGNALS", "EXIT STATUS", "FILES", "SEE ALSO", "VERSION"] {
            assert_eq!(page(None).matches(&format!("\n.SH {section}\n")).count(), 1, "{section}");
        }
        assert_eq!(man_page(Some("nonsense")), None);
    }

    #[test]
    fn usage_errors_exit_with_2() {
        let wrong: &[&[&str]] = &[
            &["--prot", "1"],
            &["--port"],
            &["chekc", "c.yaml"],
            &["check"],
            &["check", "a", "b"],
            &["check", "a", "--attach", "--seconds", "0"],
            &["probes"],
            &["probes", "x", "--json", "--yaml"],
            &["events", "--since", "5m"],
            &["events", "--since", "-5s"],
            &["events", "--where", "height"],
            &["events", "--limit", "0"],
            &["events", "--format", "xml"],
            &["events", "--file", "a", "--config", "b"],
            &["block"],
            &["block", "192.0.2.1/24"],
            &["block", "::1", "--ttl", "1w"],
            &["block", "::1", "--ports", "0"],
            &["unblock", "::1", "--socket", "a", "--config", "b"],
            &["completions", "tcsh"],
            &["hash-password", "--cost", "17"],
            &["--port", "1", "check", "c.yaml"],
            &["dashboard", "c.yaml", "--port", "1"],
            &["--verbose=maybe"],
        ];
        for args in wrong {
            assert_eq!(refused(args).exit_code(), 2, "{args:?}");
        }
        assert!(refused(&["--prot", "1"]).to_string().contains("--port"));
    }

    #[test]
    fn help_and_version_exit_with_0() {
        let version = refused(&["--version"]);
        assert_eq!((version.kind(), version.exit_code()), (ErrorKind::DisplayVersion, 0));
        assert_eq!(version.to_string(), format!("exporter {}\n", env!("CARGO_PKG_VERSION")));
        assert_eq!(refused(&["--help"]).exit_code(), 0);
    }

    #[test]
    fn mistyped_flag_does_not_leak_its_value() {
        let found = refused(&["--metrics-auth-pasword=hunter2"]).to_string();
        assert!(!found.contains("hunter2"), "{found}");
    }
}

//! Commands and flags. Arguments are parsed here and nothing else: the run command's flags are merged with
//! the environment and the file by [`crate::config::load`].

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use crate::config::Overrides;
use crate::config::keys::{CONFIG_ENV, KEYS};

/// The setting whose flag can be repeated; its values are put together with commas.
const REPEATABLE: &str = "web_listen_address";

/// What the user asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invocation {
    /// Trace and serve: the command without a name.
    Run(Overrides),
    /// Validate `file` and print the plan; with `attach`, try it in the kernel for so long.
    Check { file: PathBuf, attach: Option<Duration> },
    /// List the probes of a target: a path, a process id or a process name.
    Probes {
        target: String,
        /// Which functions to list besides; a glob.
        functions: Option<String>,
        format: Format,
    },
    /// List the profiles, or print the one named.
    Profiles { name: Option<String> },
    /// Print a Grafana dashboard for `file`, or with `alerts` Prometheus rules.
    Dashboard { file: PathBuf, alerts: bool },
    /// Print the JSON schema of a configuration, or its reference as Markdown.
    Schema { markdown: bool },
    /// Read a password from standard input and print its bcrypt hash.
    HashPassword { cost: u32 },
    /// Detach what `state: pinned` has left attached: that of `file`, or in `directory`.
    Unpin { file: Option<PathBuf>, directory: Option<PathBuf> },
    /// Print a completion script.
    Completions { shell: Shell },
    /// Print the man page, or that of a command.
    Man { command: Option<String> },
}

/// How `probes` shows what it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Columns,
    Json,
    /// A starter configuration.
    Yaml,
}

/// What `args` ask for; the first of them is the program's name. `--help` and `--version` come back as
/// errors too: [`clap::Error::exit`] prints each as it should be, and leaves with 0 or 2.
pub fn parse<I, T>(args: I) -> Result<Invocation, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let matches = command().try_get_matches_from(args)?;
    Ok(match matches.subcommand() {
        Some((name, matches)) => subcommand(name, matches),
        None => Invocation::Run(overrides(&matches)),
    })
}

/// The whole command line, for parsing and for completion scripts.
pub fn command() -> Command {
    let path = |name: &'static str| Arg::new(name).value_name("FILE").value_parser(value_parser!(PathBuf));
    let file = || path("file").required(true).help("Configuration file");
    let config = || path("config").long("config").short('c');
    let switch = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    Command::new("exporter")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Traces USDT probes, functions and packets, and exports Prometheus metrics")
        .after_help(
            "Flags override environment variables, which override the configuration file.\nEnvironment \
             variables are named FIBRE_ plus the key of the file in capitals: FIBRE_METRICS_PORT.",
        )
        // The Python exporter's parser took the beginnings of flags, and the last of several.
        .infer_long_args(true)
        .args_override_self(true)
        .args_conflicts_with_subcommands(true)
        .arg(config().help(format!("Configuration file (YAML) [env: {CONFIG_ENV}]")))
        .args(KEYS.iter().map(|key| {
            let default = key.default.filter(|_| key.value.is_some());
            let default = default.map(|default| format!(" [default: {default}]")).unwrap_or_default();
            let arg = Arg::new(key.name).long(key.flag).help(format!("{}{default}", key.help));
            let arg = if let Some(short) = key.short { arg.short(short) } else { arg };
            match key.value {
                Some(value) if key.name == REPEATABLE => arg.value_name(value).action(ArgAction::Append),
                Some(value) => arg.value_name(value),
                None => arg.action(ArgAction::SetTrue),
            }
        }))
        .subcommand(
            Command::new("check")
                .about("Validate a configuration and print what it would trace")
                .arg(file())
                .arg(switch("attach").help("Also attach the probes for a few seconds and count hits"))
                .arg(
                    Arg::new("seconds")
                        .long("seconds")
                        .value_name("N")
                        .value_parser(value_parser!(u16).range(1..=3600))
                        .default_value("5")
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
            Command::new("profiles")
                .about("List the built-in profiles, or print one")
                .arg(Arg::new("name").value_name("NAME").help("Profile to print")),
        )
        .subcommand(
            Command::new("dashboard")
                .about("Print a Grafana dashboard, or alerting rules, for a configuration")
                .arg(file())
                .arg(switch("alerts").help("Print Prometheus alerting rules instead")),
        )
        .subcommand(
            Command::new("schema")
                .about("Print the JSON schema of the configuration")
                .arg(switch("markdown").help("Print the configuration reference (Markdown) instead")),
        )
        .subcommand(
            Command::new("hash-password")
                .about("Read a password and print its bcrypt hash, for metrics_auth_password")
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
                .arg(config().help("Configuration file whose state is removed"))
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
                .arg(Arg::new("command").value_name("COMMAND").help("Command: check, probes, ...")),
        )
}

/// The man page of the exporter or of one of its commands, as roff; `None` if there is no such command.
pub fn man_page(of: Option<&str>) -> Option<Vec<u8>> {
    let mut command = command();
    command.build();
    if let Some(of) = of {
        command = command.find_subcommand(of)?.clone();
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).expect("writing to memory cannot fail");
    Some(page)
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
            // Of those that cannot be repeated there is one.
            let texts: Vec<_> = texts.map(String::as_str).collect();
            overrides.set(key, texts.join(","));
        }
    }
    overrides
}

fn subcommand(name: &str, matches: &ArgMatches) -> Invocation {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let file = || matches.get_one::<PathBuf>("file").cloned().unwrap_or_default();
    match name {
        "check" => {
            let seconds = matches.get_one("seconds").copied().map(|n: u16| Duration::from_secs(n.into()));
            Invocation::Check { file: file(), attach: seconds.filter(|_| matches.get_flag("attach")) }
        }
        "probes" => Invocation::Probes {
            target: text("target").unwrap_or_default(),
            functions: text("functions"),
            format: if matches.get_flag("json") {
                Format::Json
            } else if matches.get_flag("yaml") {
                Format::Yaml
            } else {
                Format::Columns
            },
        },
        "profiles" => Invocation::Profiles { name: text("name") },
        "dashboard" => Invocation::Dashboard { file: file(), alerts: matches.get_flag("alerts") },
        "schema" => Invocation::Schema { markdown: matches.get_flag("markdown") },
        "hash-password" => Invocation::HashPassword { cost: matches.get_one("cost").copied().unwrap_or(10) },
        "completions" => {
            Invocation::Completions { shell: matches.get_one("shell").copied().unwrap_or(Shell::Bash) }
        }
        "unpin" => Invocation::Unpin {
            file: matches.get_one("config").cloned(),
            directory: matches.get_one("directory").cloned(),
        },
        "man" => Invocation::Man { command: matches.get_one("command").cloned() },
        other => unreachable!("no subcommand is called {other}"),
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
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_flag_of_the_table() {
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
    fn command_lines_of_the_python_exporter() {
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
        // The beginning of a flag; the last of two; a value behind an equals sign.
        assert_eq!(run(&["--node", "a"]).get("node_name"), Some("a"));
        assert_eq!(run(&["--port", "1", "--port=2"]).get("metrics_port"), Some("2"));
        let several = run(&["--web.listen-address", ":1", "--web.listen-address=[::1]:2"]);
        assert_eq!(several.get("web_listen_address"), Some(":1,[::1]:2"));
        assert_eq!(run(&["--metrics-auth-password", "x"]).get("metrics_auth_password_file"), None);
    }

    #[test]
    fn commands() {
        let parsed = |args: &[&str]| parse([&["exporter"], args].concat()).unwrap();
        let file = PathBuf::from("c.yaml");
        assert_eq!(parsed(&["check", "c.yaml"]), Invocation::Check { file: file.clone(), attach: None });
        assert_eq!(
            parsed(&["check", "--attach", "c.yaml"]),
            Invocation::Check { file: file.clone(), attach: Some(Duration::from_secs(5)) }
        );
        assert_eq!(
            parsed(&["check", "--attach", "--seconds", "60", "c.yaml"]),
            Invocation::Check { file: file.clone(), attach: Some(Duration::from_secs(60)) }
        );
        let probes = |functions: Option<&str>, format| Invocation::Probes {
            target: "1234".into(),
            functions: functions.map(str::to_owned),
            format,
        };
        assert_eq!(parsed(&["probes", "1234"]), probes(None, Format::Columns));
        assert_eq!(parsed(&["probes", "1234", "--json"]), probes(None, Format::Json));
        assert_eq!(
            parsed(&["probes", "--functions", "S*", "1234", "--yaml"]),
            probes(Some("S*"), Format::Yaml)
        );
        assert_eq!(parsed(&["profiles"]), Invocation::Profiles { name: None });
        assert_eq!(parsed(&["profiles", "fibre"]), Invocation::Profiles { name: Some("fibre".into()) });
        assert_eq!(
            parsed(&["dashboard", "c.yaml"]),
            Invocation::Dashboard { file: file.clone(), alerts: false }
        );
        assert_eq!(
            parsed(&["dashboard", "c.yaml", "--alerts"]),
            Invocation::Dashboard { file, alerts: true }
        );
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
        assert_eq!(parsed(&["hash-password"]), Invocation::HashPassword { cost: 10 });
        assert_eq!(parsed(&["man", "check"]), Invocation::Man { command: Some("check".into()) });
        assert_eq!(parsed(&["completions", "zsh"]), Invocation::Completions { shell: Shell::Zsh });
    }

    #[test]
    fn every_command_and_flag_has_its_man_page() {
        let page = |of| String::from_utf8(man_page(of).unwrap()).unwrap();
        let whole = page(None).replace("\\-", "-");
        for flag in command().get_opts().filter_map(Arg::get_long) {
            assert!(whole.contains(&format!("--{flag}")), "{flag}");
        }
        for sub in command().get_subcommands() {
            assert!(whole.contains(&format!("exporter-{}", sub.get_name())), "{}", sub.get_name());
            assert!(page(Some(sub.get_name())).contains(".TH"), "{}", sub.get_name());
        }
        assert_eq!(man_page(Some("nonsense")), None);
    }

    #[test]
    fn wrong_usage_leaves_with_2() {
        let wrong: &[&[&str]] = &[
            &["--prot", "1"],
            &["--port"],
            &["chekc", "c.yaml"],
            &["check"],
            &["check", "a", "b"],
            &["check", "a", "--attach", "--seconds", "0"],
            &["probes"],
            &["probes", "x", "--json", "--yaml"],
            &["completions", "tcsh"],
            &["hash-password", "--cost", "17"],
            &["--port", "1", "check", "c.yaml"],
            &["check", "c.yaml", "--port", "1"],
            &["--verbose=maybe"],
        ];
        for args in wrong {
            assert_eq!(refused(args).exit_code(), 2, "{args:?}");
        }
        assert!(refused(&["--prot", "1"]).to_string().contains("--port"));
    }

    #[test]
    fn help_and_version_are_no_mistakes() {
        let version = refused(&["--version"]);
        assert_eq!((version.kind(), version.exit_code()), (ErrorKind::DisplayVersion, 0));
        assert_eq!(version.to_string(), format!("exporter {}\n", env!("CARGO_PKG_VERSION")));
        assert_eq!(refused(&["--help"]).exit_code(), 0);
    }

    #[test]
    fn a_mistyped_flag_does_not_show_its_value() {
        let found = refused(&["--metrics-auth-pasword=hunter2"]).to_string();
        assert!(!found.contains("hunter2"), "{found}");
    }
}

//! The implementation of each command, and its exit code.

use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::cli::{Invocation, ProbesFormat};
use crate::config::model::Settings;
use crate::config::place::Place;
use crate::config::{self, Diagnostics, Overrides, default_events_file};
use crate::file_size::fail_beyond_limit;
use crate::kernel::choose;
use crate::loading::{CheckedConfig, load, secured};
use crate::logging::{LogFile, Logging};
use crate::net::detach_filters;
use crate::pins::PinDir;
use crate::plan::{lint, profile, profiles};
use crate::probes;
use crate::run::{Listeners, RunError, drop_privileges, prepare, run};
use crate::slow::{self, EventQuery, SlowRecorder};
use crate::table::wrap;
use crate::{blocking, check, dashboard, pins, reference, terminal, trial};

/// The configuration, the environment or the command line is invalid.
const CONFIGURATION: u8 = 2;
/// The kernel refuses the probe programs.
const KERNEL: u8 = 3;
/// Any other error that ends the exporter.
const RUN_TIME: u8 = 1;

/// The port of an exporter without a configured one.
const DEFAULT_PORT: u16 = 9435;

/// Executes a command.
pub fn perform(invocation: Invocation) -> ExitCode {
    if let Err(err) = fail_beyond_limit() {
        eprintln!(
            "exporter: failed to install a handler of SIGXFSZ: a limit of the size of files may end it: {err}"
        );
    }
    match invocation {
        Invocation::Run(overrides) => start(&overrides),
        Invocation::Check { overrides, attach } => check(&overrides, attach),
        Invocation::Profiles { name } => show_profiles(name.as_deref()),
        Invocation::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut crate::cli::command(), "exporter", &mut script);
            show_bytes(&script)
        }
        Invocation::Schema { markdown: false } => show(&reference::schema()),
        Invocation::Schema { markdown: true } => show(&reference::page()),
        Invocation::HashPassword { cost } => hash_password(cost),
        Invocation::Unpin { file, directory } => unpin(file, directory),
        Invocation::Events { config, file, query, json } => show_events(config, file, &query, json),
        Invocation::Blocklist { config, socket, command } => change_blocklist(config, socket, &command),
        Invocation::Man { command } => show_man_page(command.as_deref()),
        Invocation::Probes { target, functions, format } => {
            list_probes(&target, functions.as_deref(), format)
        }
        Invocation::Dashboard { file, alerts, runbooks } => {
            show_dashboard(&Overrides::file(file), alerts, runbooks.as_deref())
        }
    }
}

/// Prints the requested help or version, or what is wrong with the command line.
pub fn explain(error: &clap::Error) -> ExitCode {
    let written = written(error.print());
    if error.use_stderr() { ExitCode::from(CONFIGURATION) } else { written }
}

fn refuse(errors: &Diagnostics) -> ExitCode {
    eprint!("{errors}");
    eprintln!("exporter: {}", errors.summary());
    ExitCode::from(CONFIGURATION)
}

fn start(overrides: &Overrides) -> ExitCode {
    let hangup = match prepare() {
        Ok(hangup) => hangup,
        Err(err) => {
            eprintln!("exporter: {err}");
            return ExitCode::from(RUN_TIME);
        }
    };
    let CheckedConfig { loaded, plan, tls } = match load(overrides) {
        Ok(checked) => checked,
        Err(wrong) => return refuse(&wrong),
    };
    let settings = &loaded.config.settings;
    let attach = choose(settings.attach);
    // Both while all privileges are available: the file may belong to another user, and the ports may be below 1024.
    let file = match settings.log_file.as_ref().map(LogFile::open).transpose() {
        Ok(file) => file,
        Err(err) => {
            eprintln!("exporter: {}", no_log_file(settings, &err));
            return ExitCode::from(CONFIGURATION);
        }
    };
    let listeners = Listeners::bind(settings, plan.network.as_ref());
    let recorder = Arc::new(SlowRecorder::default());
    let kept = recorder.keep_for(&plan);
    if kept.is_err()
        && let Err(err) = slow::check_file(&plan)
    {
        eprintln!("exporter: {err}");
        return ExitCode::from(CONFIGURATION);
    }
    let (attaching, limited) = drop_privileges(attach, plan.network.as_ref());
    let logging = match Logging::install(settings.log_level, file) {
        Ok(logging) => logging,
        Err(err) => {
            eprintln!("exporter: failed to initialize logging: {err}");
            return ExitCode::from(RUN_TIME);
        }
    };
    loaded.warnings.iter().chain(&plan.warnings).for_each(|warning| log::warn!("{warning}"));
    // The probes of a file are attached all the same, so that nothing else tells it.
    for target in plan.targets.iter().filter(|target| target.selector.path().is_some()) {
        if let Some(pid) = target.selector.processes.absent_pid() {
            log::warn!(
                "Target {}: no process has the id {pid}: nothing is counted; without `pid`, all processes of the \
                 file are",
                target.name
            );
        }
    }
    if let Err(err) = limited {
        log::warn!("{err}");
    }
    let ran = listeners
        .map_err(RunError::from)
        .and_then(|listeners| kept.map(|()| listeners).map_err(RunError::from))
        .and_then(|listeners| {
            let checked = CheckedConfig { loaded, plan, tls };
            run(overrides, checked, attaching, logging.clone(), listeners, recorder, hangup)
        });
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            logging.wait();
            ExitCode::from(if matches!(error, RunError::Kernel(_)) { KERNEL } else { RUN_TIME })
        }
    }
}

fn no_log_file(settings: &Settings, err: &io::Error) -> String {
    let path = settings.log_file.as_deref().unwrap_or(Path::new(""));
    format!("failed to open the log file {}: {err}", path.display())
}

fn check(overrides: &Overrides, attach: Option<Duration>) -> ExitCode {
    let CheckedConfig { loaded, plan, tls } = match load(overrides) {
        Ok(checked) => checked,
        Err(wrong) => return refuse(&wrong),
    };
    // What cannot be used has been refused.
    let advice =
        secured(&loaded.config.settings.web, tls, None).map(|(_, advice)| advice).unwrap_or_default();
    let warnings = loaded.warnings.iter().chain(&plan.warnings).chain(&advice);
    warnings.for_each(|warning| eprintln!("warning: {warning}"));
    let checked = check::check(&plan, terminal::width());
    let shown = show(&terminal::painted(&checked.table));
    let settings = &loaded.config.settings;
    if let Some(Err(err)) = settings.log_file.as_deref().map(LogFile::check) {
        checked.errors.error(&Place::none(), no_log_file(settings, &err));
    }
    if let Err(err) = slow::check_file(&plan) {
        checked.errors.error(&Place::none(), err.to_string());
    }
    if let Some(Err(err)) = settings.pinned.as_deref().map(pins::check_place) {
        checked.errors.error(&Place::none(), format!("{err:#}"));
    }
    if !checked.errors.is_empty() {
        return refuse(&checked.errors);
    }
    lint(&plan).iter().for_each(|remark| eprintln!("note: {remark}"));
    let Some(time) = attach else { return shown };
    match trial::try_out(plan, time) {
        Ok(report) if report.refused => {
            show(&terminal::painted(&report.table));
            ExitCode::from(KERNEL)
        }
        Ok(report) => show(&terminal::painted(&report.table)),
        Err(error) => {
            eprintln!("exporter: {error}");
            ExitCode::from(if matches!(error, RunError::Kernel(_)) { KERNEL } else { RUN_TIME })
        }
    }
}

fn unpin(file: Option<PathBuf>, directory: Option<PathBuf>) -> ExitCode {
    let state = match (file, directory) {
        (Some(file), _) => match load(&Overrides::file(file)) {
            Ok(CheckedConfig { loaded, .. }) => {
                let settings = &loaded.config.settings;
                let port = settings.metrics_port;
                settings.pinned.clone().unwrap_or_else(|| config::default_state_directory(port))
            }
            Err(wrong) => return refuse(&wrong),
        },
        (None, directory) => directory.unwrap_or_default(),
    };
    if !state.exists() {
        return show(&format!("{} is not there: nothing is pinned\n", state.display()));
    }
    let detach = |network: &PinDir| {
        for index in detach_filters(network) {
            eprintln!(
                "warning: the TC filter on interface {index} of another network namespace is left attached"
            );
        }
    };
    match pins::remove_all(&state, detach) {
        Ok(()) => {
            show(&format!("{} is removed: its probes and packet counters are detached\n", state.display()))
        }
        Err(err) => {
            eprintln!("exporter: {err}");
            ExitCode::from(RUN_TIME)
        }
    }
}

fn show_events(config: Option<PathBuf>, file: Option<PathBuf>, query: &EventQuery, json: bool) -> ExitCode {
    let file = match (config, file) {
        (None, Some(file)) => file,
        (None, None) => default_events_file(DEFAULT_PORT),
        (Some(config), _) => match config::load(&Overrides::file(config), &config::environment()) {
            Ok(loaded) => loaded.config.settings.slow_events.file,
            Err(wrong) => return refuse(&wrong),
        },
    };
    match slow::read(&file, query) {
        Ok(rows) if json => match serde_json::to_string_pretty(&rows) {
            Ok(text) => show(&(text + "\n")),
            Err(err) => {
                eprintln!("exporter: failed to write the events as JSON: {err}");
                ExitCode::from(RUN_TIME)
            }
        },
        Ok(rows) => show(&slow::table(&rows, terminal::width())),
        Err(err) => {
            eprintln!("exporter: {err}");
            ExitCode::from(RUN_TIME)
        }
    }
}

fn change_blocklist(
    config: Option<PathBuf>,
    socket: Option<PathBuf>,
    command: &blocking::Command,
) -> ExitCode {
    let socket = match (config, socket) {
        (_, Some(socket)) => socket,
        (None, None) => blocking::socket(None, DEFAULT_PORT),
        (Some(config), None) => match load(&Overrides::file(config)) {
            Ok(CheckedConfig { loaded, plan, .. }) => {
                let block = plan.network.as_ref().and_then(|network| network.block.as_ref());
                blocking::socket(block, loaded.config.settings.metrics_port)
            }
            Err(wrong) => return refuse(&wrong),
        },
    };
    let mut say = |text: &str| {
        show(text);
    };
    match blocking::command(&socket, command, &mut say) {
        Ok(text) => show(&text),
        Err(err) => {
            eprintln!("exporter: {err}");
            ExitCode::from(if err.is_in_request() { CONFIGURATION } else { RUN_TIME })
        }
    }
}

fn list_probes(target: &str, functions: Option<&str>, format: ProbesFormat) -> ExitCode {
    let text = probes::list(target, functions).and_then(|listing| match format {
        ProbesFormat::Columns => Ok(probes::columns(&listing, terminal::width())),
        ProbesFormat::Json => Ok(probes::json(&listing)),
        ProbesFormat::Yaml => probes::yaml(&listing),
    });
    match text {
        Ok(text) => show(&text),
        Err(err) => {
            eprintln!("exporter: {err}");
            ExitCode::from(CONFIGURATION)
        }
    }
}

fn show_dashboard(overrides: &Overrides, alerts: bool, runbooks: Option<&str>) -> ExitCode {
    match load(overrides) {
        Ok(CheckedConfig { plan, .. }) if alerts => show(&dashboard::alerts(&plan, runbooks)),
        Ok(CheckedConfig { plan, .. }) => show(&dashboard::dashboard(&plan)),
        Err(wrong) => refuse(&wrong),
    }
}

/// Writes to standard output. A reader that has read enough (`head`) is not an error.
fn show(text: &str) -> ExitCode {
    show_bytes(text.as_bytes())
}

fn show_bytes(text: &[u8]) -> ExitCode {
    let mut stdout = std::io::stdout();
    written(stdout.write_all(text).and_then(|()| stdout.flush()))
}

fn written(result: io::Result<()>) -> ExitCode {
    match result {
        Err(err) if err.kind() != ErrorKind::BrokenPipe => {
            eprintln!("exporter: failed to write to standard output: {err}");
            ExitCode::from(RUN_TIME)
        }
        _ => ExitCode::SUCCESS,
    }
}

fn show_man_page(of: Option<&str>) -> ExitCode {
    let Some(page) = crate::cli::man_page(of) else {
        eprintln!(
            "exporter: unknown command {}; `exporter --help` lists the commands",
            of.unwrap_or_default()
        );
        return ExitCode::from(CONFIGURATION);
    };
    show_bytes(&page)
}

/// Lists the profiles with their descriptions: beside the name, or below it if the line has no room.
fn list_of_profiles(screen: Option<usize>) -> String {
    let mut list = String::new();
    for (name, _) in profiles() {
        let about = profile(name).and_then(Result::ok).map(|profile| profile.description).unwrap_or_default();
        let line = format!("{name:<14} {}", about.trim());
        match screen {
            Some(screen) if line.chars().count() > screen => {
                wrap(name, 0, screen, &mut list);
                wrap(about.trim(), 2, screen, &mut list);
            }
            _ => list.push_str(&(line + "\n")),
        }
    }
    list
}

fn show_profiles(name: Option<&str>) -> ExitCode {
    let Some(name) = name else {
        return show(&list_of_profiles(terminal::width()));
    };
    let known = profiles().iter().find(|(known, _)| *known == name);
    show(known.map(|(_, text)| *text).unwrap_or_default())
}

/// The largest input that is read for a password; bcrypt takes 72 bytes.
const MAX_PASSWORD_INPUT: u64 = 4096;

/// Hashes the password that is on standard input. A terminal shows a prompt but no input.
fn hash_password(cost: u32) -> ExitCode {
    let stdin = std::io::stdin();
    let hidden = tcgetattr(&stdin).ok().inspect(|shown| {
        eprint!("Password: ");
        let mut hidden = shown.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        let _ = tcsetattr(&stdin, OptionalActions::Flush, &hidden);
    });
    let mut text = String::new();
    // A terminal has no end before the user types one.
    let read = match hidden {
        Some(_) => stdin.read_line(&mut text),
        None => stdin.lock().take(MAX_PASSWORD_INPUT).read_to_string(&mut text),
    };
    if let Some(shown) = hidden {
        let _ = tcsetattr(&stdin, OptionalActions::Flush, &shown);
        eprintln!();
    }
    let password =
        text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    let hash = match read {
        Err(err) => Err(format!("failed to read the password: {err}")),
        Ok(_) if password.is_empty() => Err("the password is empty".to_owned()),
        Ok(_) if password.starts_with('\u{feff}') => Err(
            "the password begins with a byte order mark (BOM), which would belong to it; save the file without one".to_owned(),
        ),
        Ok(_) if password.contains(['\n', '\r']) => {
            Err("the input has more than one line; it must contain only the password".to_owned())
        }
        Ok(_) => bcrypt::non_truncating_hash(password, cost).map_err(|err| match err {
            bcrypt::BcryptError::Truncation(_) => {
                "the password is longer than 72 bytes, the maximum for bcrypt".to_owned()
            }
            err => format!("failed to hash the password: {err}"),
        }),
    };
    match hash {
        Ok(hash) => show(&format!("{hash}\n")),
        Err(err) => {
            eprintln!("exporter: {err}");
            ExitCode::from(CONFIGURATION)
        }
    }
}

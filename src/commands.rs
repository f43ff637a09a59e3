//! What each command does, and with which exit code it ends.

use std::process::ExitCode;

use crate::cli::Invocation;
use crate::config::{self, Diagnostics, Overrides};
use crate::kernel::choose;
use crate::logging::Logging;
use crate::plan::{Plan, plan, profile, profiles};
use crate::run::{RunError, limit_rights, run};

/// The configuration, the environment or the command line is wrong.
const CONFIGURATION: u8 = 2;
/// The kernel refuses the probe programs.
const KERNEL: u8 = 3;
/// Anything else that ends the exporter.
const RUN_TIME: u8 = 1;

/// Performs a command.
pub fn perform(invocation: Invocation) -> ExitCode {
    match invocation {
        Invocation::Run(overrides) => start(&overrides),
        Invocation::Check { file, .. } => check(&Overrides::file(file)),
        Invocation::Profiles { name } => show_profiles(name.as_deref()),
        Invocation::Completions { shell } => {
            clap_complete::generate(shell, &mut crate::cli::command(), "exporter", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
        Invocation::Probes { .. } | Invocation::Dashboard { .. } => {
            eprintln!("exporter: this command is not available in this version");
            ExitCode::from(RUN_TIME)
        }
    }
}

fn planned(overrides: &Overrides) -> Result<(config::Loaded, Plan), Diagnostics> {
    let loaded = config::load(overrides, &config::environment())?;
    let plan = plan(loaded.config.clone(), false)?;
    Ok((loaded, plan))
}

fn refuse(wrong: &Diagnostics) -> ExitCode {
    eprint!("{}", wrong.render());
    let n = wrong.len();
    eprintln!(
        "exporter: {n} mistake{} in the configuration; nothing was started",
        if n == 1 { "" } else { "s" }
    );
    ExitCode::from(CONFIGURATION)
}

fn start(overrides: &Overrides) -> ExitCode {
    let (loaded, plan) = match planned(overrides) {
        Ok(both) => both,
        Err(wrong) => return refuse(&wrong),
    };
    let settings = &loaded.config.settings;
    let attach = choose(settings.attach);
    let limited = limit_rights(attach);
    let logging = match Logging::install(settings.log_level, settings.log_file.as_deref()) {
        Ok(logging) => logging,
        Err(why) => {
            let file =
                settings.log_file.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
            eprintln!("exporter: the log file {file} cannot be opened: {why}");
            return ExitCode::from(CONFIGURATION);
        }
    };
    loaded.warnings.iter().for_each(|warning| log::warn!("{warning}"));
    if let Err(why) = limited {
        log::warn!("{why}");
    }
    match run(&loaded.config, plan, attach, logging.clone()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            logging.wait();
            ExitCode::from(if matches!(error, RunError::Kernel(_)) { KERNEL } else { RUN_TIME })
        }
    }
}

fn check(overrides: &Overrides) -> ExitCode {
    match planned(overrides) {
        Ok((loaded, plan)) => {
            loaded.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
            print!("{}", crate::plan::table(&plan));
            ExitCode::SUCCESS
        }
        Err(wrong) => refuse(&wrong),
    }
}

fn show_profiles(name: Option<&str>) -> ExitCode {
    let Some(name) = name else {
        for (name, _) in profiles() {
            let about =
                profile(name).and_then(Result::ok).map(|profile| profile.description).unwrap_or_default();
            println!("{name:<14} {}", about.trim());
        }
        return ExitCode::SUCCESS;
    };
    match profiles().iter().find(|(known, _)| *known == name) {
        Some((_, text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        None => {
            let near = config::did_you_mean(name, profiles().iter().map(|(name, _)| *name));
            eprintln!("exporter: unknown profile \"{name}\"{near}; `exporter profiles` lists them");
            ExitCode::from(CONFIGURATION)
        }
    }
}

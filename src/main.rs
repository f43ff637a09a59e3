//! The command line: parse, run, exit code.

use std::process::ExitCode;

use exporter::cli;
use exporter::commands;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(invocation) => commands::perform(invocation),
        Err(error) => commands::explain(&error),
    }
}

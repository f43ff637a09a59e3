//! The commands, through the binary: their output and exit codes.
//!
//! Needs root, the programs of demo/, `cc`, `c++`, `readelf`, `objcopy`, `setpriv` and `promtool`.

mod check;
mod dashboard;
mod probes;
mod terminal;
mod usage;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::demo::program;

/// The result of a command.
#[derive(Debug)]
struct Ran {
    code: i32,
    out: String,
    err: String,
}

/// Runs the exporter, unaffected by the test's own environment.
fn exporter(args: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_exporter"));
    ran(command.args(args))
}

fn ran(command: &mut Command) -> Ran {
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
    let output = command.output().unwrap_or_else(|e| panic!("{command:?} does not start: {e}"));
    Ran {
        code: output.status.code().unwrap_or_else(|| panic!("{command:?}: {}", output.status)),
        out: String::from_utf8(output.stdout).expect("UTF-8 on standard output"),
        err: String::from_utf8(output.stderr).expect("UTF-8 on standard error"),
    }
}

impl Ran {
    /// Returns its standard output; it must have succeeded with an empty standard error.
    #[track_caller]
    fn good(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{}", self.out);
        self.out
    }

    /// Returns its standard error; it must have exited with this code.
    #[track_caller]
    fn bad(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        self.err
    }
}

/// Returns the path of a program of demo/.
fn demo(name: &str) -> String {
    program(name).display().to_string()
}

/// A temporary directory for files, deleted at the end of the test.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Scratch(tempfile::tempdir().expect("make a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::write(&path, bytes).expect("write a file");
        path.display().to_string()
    }

    fn compile(&self, name: &str, compiler: &str, source: &str, flags: &[&str]) -> String {
        let input = self.write(if compiler == "cc" { "source.c" } else { "source.cc" }, source);
        let output = self.path(name);
        let status = Command::new(compiler).arg(input).args(flags).arg("-o").arg(&output).status();
        assert!(status.is_ok_and(|status| status.success()), "{compiler} fails");
        output.display().to_string()
    }
}

/// Returns a configuration with one target.
fn config(binary: &str, rest: &str) -> String {
    format!("targets:\n  - name: t\n    binary: {binary}\n    {rest}\n")
}

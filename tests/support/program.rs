//! Programs that a test compiles or copies, and how it runs them.
//!
//! Probes belong to a file, so everything on this machine that runs it is counted. [`private`] gives a test a private
//! copy of an executable or a library.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// Copies `file` to `directory` under its own name, so that nothing else on this machine hits its probes.
pub fn private(file: impl AsRef<Path>, directory: &Path) -> PathBuf {
    let file = file.as_ref();
    let copy = directory.join(file.file_name().expect("a file name"));
    copy_by_another(file, &copy);
    copy
}

/// Copies in another process: a descriptor open for writing in this process could leak into a child that another test
/// starts at the same time, and a file that is open for writing cannot be executed.
pub fn copy_by_another(file: &Path, copy: &Path) {
    run(Command::new("cp").arg("--").args([file, copy]));
}

/// Runs a command, which must succeed, and returns its standard output.
pub fn run(command: &mut Command) -> String {
    let output = finish(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("output in UTF-8")
}

/// Runs a command until it ends, whether it succeeds or fails.
pub fn finish(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|err| {
        panic!("{command:?}: {err}; scripts/install-deps.sh --tests installs what the tests need")
    })
}

/// Compiles a C or C++ program into `directory`.
pub fn compile(compiler: &str, name: &str, source: &str, flags: &[&str], directory: &Path) -> PathBuf {
    let (file, program) = (directory.join(name), directory.join("program"));
    fs::write(&file, source).expect("write the source");
    run(Command::new(compiler).arg("-O1").arg("-o").arg(&program).arg(&file).args(flags));
    program
}

/// Compiles a C or C++ program into a file of this name, which stays until it is compiled again.
pub fn compile_kept(name: &str, compiler: &str, source: &str, flags: &[&str]) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (file, program) = (directory.join(format!("{name}.src")), directory.join(name));
    fs::write(&file, source).expect("write the source");
    let language = if compiler == "cc" { "c" } else { "c++" };
    run(Command::new(compiler).args(["-x", language]).arg(&file).args(flags).arg("-o").arg(&program));
    program
}

/// A process that is killed on drop.
pub struct Running(pub Child);

impl Running {
    /// Starts it with its standard streams connected to /dev/null.
    pub fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap_or_else(|err| panic!("{command:?} does not start: {err}")))
    }

    pub fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Creates a directory that is deleted on drop.
pub fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("exporter-program-").tempdir().expect("make a directory")
}

/// Returns the first of these paths that exists. If there is none, the test fails and names the first.
pub fn first_of(paths: &[&str]) -> PathBuf {
    let found = paths.iter().map(Path::new).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{} is missing; run scripts/install-deps.sh --tests", paths[0])).to_owned()
}

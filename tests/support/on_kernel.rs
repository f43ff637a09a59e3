//! The built exporter on another kernel, in a virtual machine.

use std::path::Path;
use std::process::Command;

pub const EXPORTER: &str = env!("CARGO_BIN_EXE_exporter");

/// The output of the commands in the machine, divided into parts that begin with a line `-- NAME`.
pub struct Output(String);

#[allow(dead_code, reason = "each test program uses a part of it")]
impl Output {
    /// Runs the commands with `scripts/on-kernel.sh`, which makes the exporter and these files available to them. They
    /// must succeed.
    pub fn of(kernel: &str, commands: &str, files: &[&str]) -> Self {
        Self::with_modules(kernel, "", commands, files)
    }

    /// The same, with kernel modules loaded, separated by spaces.
    pub fn with_modules(kernel: &str, modules: &str, commands: &str, files: &[&str]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/on-kernel.sh");
        let output = Command::new(script)
            .env("ON_KERNEL_MODULES", modules)
            .args([kernel, commands, EXPORTER])
            .args(files)
            .output()
            .expect("run scripts/on-kernel.sh");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
        Self(text)
    }

    /// Returns a part, without its first line.
    pub fn part(&self, name: &str) -> &str {
        let (_, after) =
            self.0.split_once(&format!("-- {name}\n")).unwrap_or_else(|| panic!("no {name}: {}", self.0));
        after.split_once("\n-- ").map_or(after, |(part, _)| part)
    }
}

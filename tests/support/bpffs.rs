//! A BPF file system for what is pinned.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::exporter::{Place, exporter, finish};

/// A BPF file system of the test's own.
pub struct BpfFs(PathBuf);

impl BpfFs {
    pub fn mount(place: &Place) -> Self {
        let at = place.path("bpf");
        std::fs::create_dir(&at).expect("make a directory");
        let mounted = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&at).status().expect("run mount");
        assert!(mounted.success());
        Self(at)
    }

    /// Where an exporter keeps what is pinned.
    pub fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    /// So that it does.
    pub fn config(&self) -> String {
        format!("state: pinned\nstate_directory: {}\n", self.state().display())
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        // With all that is pinned in it.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// `exporter unpin`, after which nothing is left.
#[track_caller]
pub fn unpin(state: &Path) {
    let (status, out, err) = finish(exporter().arg("unpin").arg(state));
    assert_eq!(status, Some(0), "{out}{err}");
    assert!(!state.exists());
}

//! A BPF file system for pinned objects.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::exporter::{Place, exporter, finish};

/// A private BPF file system.
pub struct BpfFs(PathBuf);

impl BpfFs {
    pub fn mount(place: &Place) -> Self {
        let at = place.path("bpf");
        std::fs::create_dir(&at).expect("make a directory");
        let mounted = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&at).status().expect("run mount");
        assert!(mounted.success());
        Self(at)
    }

    /// Returns the directory in which an exporter pins its objects.
    pub fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    /// Returns the configuration that makes an exporter pin its objects here.
    pub fn config(&self) -> String {
        format!("state: pinned\nstate_directory: {}\n", self.state().display())
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        // Unmounting also releases everything that is pinned there.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Runs `exporter unpin`, which must leave nothing behind.
#[track_caller]
pub fn unpin(state: &Path) {
    let (status, out, err) = finish(exporter().arg("unpin").arg(state));
    assert_eq!(status, Some(0), "{out}{err}");
    assert!(!state.exists());
}

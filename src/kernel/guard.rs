//! Protects traced files from being overwritten while their probes are pinned and no exporter runs: see
//! `bpf/guard.bpf.c`.

use std::collections::BTreeSet;
use std::fmt;

use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, ProgramInput};

use super::error::{KernelError, loading};
use super::pinnable_link::{PinnableLink, release};
use super::pinned_maps::{pin_maps, reuse};
use super::storage::{Storage, new_storage};
use crate::abi::guard::generated::{GuardSkel, GuardSkelBuilder};
use crate::pins::EnginePins;

self_cell::self_cell!(
    struct GuardPrograms {
        owner: Storage,
        #[covariant]
        dependent: GuardSkel,
    }
);

/// The loaded programs with pinned links and maps.
pub(crate) struct Guard {
    loaded: GuardPrograms,
    links: Vec<PinnableLink>,
    files: BTreeSet<u64>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Guard {
    /// Loads and attaches the programs, or takes over pinned ones.
    ///
    /// # Errors
    /// From the kernel.
    pub fn start(pins: &EnginePins) -> Result<Self, KernelError> {
        let is_taken = pins.map("guarded").symlink_metadata().is_ok();
        let loaded = GuardPrograms::try_new(new_storage(), |storage| {
            let mut open = GuardSkelBuilder::default().open(storage.borrow_mut())?;
            if is_taken {
                reuse(open.open_object_mut(), pins)?;
            }
            open.load()
        })
        .map_err(loading)?;
        let skel = loaded.borrow_dependent();
        let programs = [
            ("guardian_ended", &skel.progs.guardian_ended),
            ("guard_truncate", &skel.progs.guard_truncate),
            ("guard_open", &skel.progs.guard_open),
        ];
        let mut links = Vec::new();
        for (name, program) in programs {
            let path = pins.link(name);
            links.push(match path.symlink_metadata() {
                Ok(_) => PinnableLink::open(&path).map_err(loading)?,
                Err(_) => {
                    let mut link = PinnableLink::new(program.attach().map_err(loading)?);
                    link.pin(&path).map_err(loading)?;
                    link
                }
            });
        }
        if !is_taken {
            pin_maps(skel.object(), pins).map_err(loading)?;
        }
        let files =
            skel.maps.guarded.keys().filter_map(|key| key.first_chunk().map(|key| u64::from_ne_bytes(*key)));
        let files = files.collect();
        Ok(Self { loaded, links, files })
    }

    /// From now on this process protects the files, by leases.
    pub fn take_charge(&self) {
        if let Err(err) = self.loaded.borrow_dependent().progs.take_charge.test_run(ProgramInput::default()) {
            log::warn!("traced files cannot be written while the exporter runs: {err:#}");
        }
    }

    /// Sets the traced files, by the addresses of their inodes.
    pub fn set_files(&mut self, files: BTreeSet<u64>) {
        let guarded = &self.loaded.borrow_dependent().maps.guarded;
        for file in files.difference(&self.files) {
            if let Err(err) = guarded.update(&file.to_ne_bytes(), &1u32.to_ne_bytes(), MapFlags::ANY) {
                log::warn!("a traced file is not guarded while no exporter runs: {err:#}");
            }
        }
        self.files.difference(&files).for_each(|file| drop(guarded.delete(&file.to_ne_bytes())));
        self.files = files;
    }

    /// Detaches the programs.
    pub fn end(&mut self) {
        release(std::mem::take(&mut self.links));
    }
}

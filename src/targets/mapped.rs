//! Files that running processes map, from the kernel's events; most are libraries.

use super::file::Identity;
use super::follow::MappedFile;
use super::libraries::Library;
use super::worker::Worker;
use crate::selectors::{FileSelector, Selector};

/// Files that are remembered; when full, all are reported again.
const MAX_FILES: usize = 4096;

impl Worker {
    /// After all targets that select these processes have been handled: files that are relevant to no target, or known
    /// to all that select them, need not be reported again.
    pub(super) fn update_known_mappings(&mut self, mapped: &[MappedFile]) {
        for MappedFile { pid, file, address } in mapped {
            // It may have been unmapped since.
            let Some(library) = self.finder.libraries.at(*pid, *address) else { continue };
            let all = self.selectors.iter().zip(&self.targets);
            let mut asking = all.filter(|(of, state)| asks_for(of, &state.usdt, &library)).peekable();
            if asking.peek().is_none() {
                self.finder.set_mapped(*file, None);
                continue;
            }
            let identity = self.finder.look_at(&library.path, String::new()).map(|found| found.identity);
            match identity {
                Ok(identity) if asking.all(|(_, state)| state.knows(identity)) => {
                    self.finder.set_mapped(*file, Some(identity));
                }
                // Its code is not mapped yet, or was not at the time of the look-up.
                _ => self.finder.read_soon(*pid),
            }
        }
    }
}

fn asks_for(selector: &Selector, usdt: &[String], library: &Library) -> bool {
    match &selector.file {
        FileSelector::Path(_) => false,
        FileSelector::Executable => library.has_any(usdt),
        FileSelector::Library(name) => library.is_called(name),
    }
}

impl super::find::Finder {
    /// If it is relevant, the file counts as handled until it is detached.
    fn set_mapped(&mut self, file: crate::kernel::NamedFile, identity: Option<Identity>) {
        let Some(events) = &self.events else { return };
        events.set_library_known(file);
        if self.mapped.len() >= MAX_FILES {
            self.mapped.drain().for_each(|(file, _)| events.forget_library(file));
        }
        self.mapped.extend(identity.map(|identity| (file, identity)));
    }
}

//! Reports traced files to the thread that hides breakpoints from readers.

use super::readers::TracedFiles;
use super::worker::Worker;

impl Worker {
    /// Reports the traced files to the thread, if they may have changed.
    pub(super) fn update_readers(&mut self) {
        let now = (self.signature(), self.attacher.detacher.changes());
        let Some(readers) = self.readers.as_mut().filter(|readers| readers.told != now) else { return };
        readers.told = now;
        let mut all = TracedFiles::new();
        for (target, state) in self.targets.iter_mut().enumerate() {
            for file in state.files_mut().filter(|file| file.is_attached() && file.identity.address != 0) {
                let traced = all.entry(file.identity).or_default();
                traced.targets.insert(target, self.plan.targets[target].name.clone());
                traced.display.clone_from(&file.display);
                traced.hidden.add(&file.hidden);
            }
        }
        readers.set_files(all, |identity| self.attacher.detacher.is_busy_with(identity));
    }
}

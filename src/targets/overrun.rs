//! Files that were overwritten with breakpoints in place, because the exporter was stopped for longer than the kernel
//! makes a writer wait (`/proc/sys/fs/lease-break-time`).
//!
//! A process started since has breakpoints of the old code in the new code, and executes the old instructions there.
//! When a breakpoint is removed, the kernel writes the old code's byte, which is wrong as well: the file's byte is
//! written over it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::attached_file::AttachedFile;
use super::file::Stamp;
use crate::mapping::PAGE;
use crate::procfs::{Mapping, living_thread, processes, text, writable_memory};

/// Processes that one message names.
const MAX_NAMED: usize = 16;

/// A file whose contents are not those that its breakpoints were set for.
#[derive(Debug)]
pub(super) struct Overrun {
    target: String,
    display: String,
    file: File,
    /// The old code's bytes under breakpoints, by offset in the file.
    originals: BTreeMap<u64, u8>,
}

impl Overrun {
    /// None if writers still wait, as they should.
    pub(super) fn of(target: &str, attached: &AttachedFile) -> Option<Self> {
        let file = attached.lease.as_ref()?.file();
        let now = file.metadata().ok()?;
        if !Stamp::of(&now).has_other_contents(attached.stamp) || makes_writers_wait(&now) {
            return None;
        }
        Some(Self {
            target: target.to_owned(),
            display: attached.display.clone(),
            file: file.try_clone().ok()?,
            originals: attached.hidden.originals.clone(),
        })
    }

    /// After detaching: repairs the processes that run the file, and logs which these are.
    pub(super) fn mend(&self) {
        let (mut running, mut mended) = (Vec::new(), 0);
        for pid in processes() {
            match self.mend_in(pid) {
                Ok(Some(bytes)) => {
                    running.push(pid);
                    mended += bytes;
                }
                Ok(None) => {}
                // It has ended, or must not be inspected.
                Err(err) => log::debug!("process {pid}: {err}"),
            }
        }
        let named: Vec<String> = running.iter().take(MAX_NAMED).map(u32::to_string).collect();
        let others = running.len() - named.len();
        log::error!(
            "Target {}: {} was written over while breakpoints of its old code were in it: the exporter was \
             stopped for longer than a writer waits (fs.lease-break-time). Processes started before the exporter continued may \
             have executed wrong instructions: restart processes {}{}; the probes are detached, and {mended} bytes were repaired",
            self.target,
            self.display,
            if named.is_empty() { "that still run it (none was found)".to_owned() } else { named.join(", ") },
            if others > 0 { format!(" and {others} more") } else { String::new() },
        );
    }

    /// The number of repaired bytes; None if the process does not run the file.
    fn mend_in(&self, pid: u32) -> io::Result<Option<usize>> {
        let pid = living_thread(pid);
        let meta = self.file.metadata()?;
        let maps = text(format!("/proc/{pid}/maps"))?;
        let is_it = |map: &Mapping<'_>| {
            map.is_executable()
                && map.inode == meta.ino()
                && fs::metadata(format!("/proc/{pid}/map_files/{}", map.entry()))
                    .is_ok_and(|of| (of.dev(), of.ino()) == (meta.dev(), meta.ino()))
        };
        let maps: Vec<Mapping<'_>> = maps.lines().filter_map(Mapping::parse).filter(is_it).collect();
        if maps.is_empty() {
            return Ok(None);
        }
        let memory = writable_memory(pid)?;
        let mut mended = 0;
        for map in &maps {
            for page in (map.start..map.end).step_by(PAGE as usize) {
                let offset = map.offset + (page - map.start);
                for at in self.wrong_bytes(&memory, page, offset)? {
                    let mut byte = [0];
                    self.file.read_exact_at(&mut byte, offset + at)?;
                    memory.write_all_at(&byte, page + at)?;
                    mended += 1;
                }
            }
        }
        Ok(Some(mended))
    }

    /// The positions on a page where the new code has the old code's bytes. Empty if the page differs from the file in
    /// any other way: then the process itself has modified it.
    fn wrong_bytes(&self, memory: &File, page: u64, offset: u64) -> io::Result<Vec<u64>> {
        if self.originals.range(offset..offset + PAGE).next().is_none() {
            return Ok(Vec::new());
        }
        let [mut here, mut there] = [[0; PAGE as usize]; 2];
        memory.read_exact_at(&mut here, page)?;
        let mut read = 0;
        while let more @ 1.. = self.file.read_at(&mut there[read..], offset + read as u64)? {
            read += more;
        }
        let differing = (0..PAGE).filter(|at| here[*at as usize] != there[*at as usize]);
        let differing: Vec<u64> = differing.collect();
        let is_old = |at: &u64| self.originals.get(&(offset + at)) == Some(&here[*at as usize]);
        Ok(if differing.iter().all(is_old) { differing } else { Vec::new() })
    }
}

/// Returns whether the kernel still makes writers wait for the release of a lease on the file. Then nobody has written to
/// it, whatever its modification time says: `touch` sets that also where it could not open the file without waiting.
fn makes_writers_wait(meta: &fs::Metadata) -> bool {
    let (major, minor) = (libc::major(meta.dev()), libc::minor(meta.dev()));
    let file = format!(" {major:02x}:{minor:02x}:{} ", meta.ino());
    let locks = text("/proc/locks").unwrap_or_default();
    locks.lines().any(|lock| lock.contains(" BREAKING ") && lock.contains(&file))
}

//! Sets the loaded programs' filters of target processes.

use libbpf_rs::{MapCore, MapFlags};

use super::filters::{self, Filter};
use super::load::{Kernel, update};
use crate::abi::{bytes_of, child_key, filter, member_key, site, site_flag};

impl Kernel {
    /// Sets which processes the target with this number selects.
    ///
    /// # Errors
    /// If the kernel refuses, which it has no reason to.
    pub(crate) fn set_filter(&self, target: usize, filter: &Filter, edition: u32) -> libbpf_rs::Result<()> {
        for (number, row, members) in self.filters.place(target, filter, edition) {
            let keys: Vec<_> = members.iter().map(|id| filters::member(number, id)).collect();
            if self.filters.has_members {
                self.set_members(number, &keys)?;
            }
            update(&self.skel().maps.filters, number, &row)?;
        }
        Ok(())
    }

    fn set_members(&self, number: u32, keys: &[member_key]) -> libbpf_rs::Result<()> {
        let map = &self.skel().maps.members;
        let one = 1u32.to_ne_bytes();
        keys.iter().try_for_each(|key| map.update(bytes_of(key), &one, MapFlags::ANY))?;
        let is_of_filter = |key: &Vec<u8>| key.starts_with(&number.to_ne_bytes());
        let known: Vec<_> = map.keys().filter(is_of_filter).collect();
        let is_gone = |known: &&Vec<u8>| keys.iter().all(|key| bytes_of(key) != known.as_slice());
        known.iter().filter(is_gone).for_each(|key| drop(map.delete(key)));
        Ok(())
    }

    /// Adds a child of a process that the target, which has `children`, selects.
    ///
    /// # Errors
    /// If there is no room for it.
    pub(crate) fn add_child(&self, target: usize, pid: u32) -> libbpf_rs::Result<()> {
        self.skel().maps.children.update(bytes_of(&child(target, pid)), &1u32.to_ne_bytes(), MapFlags::ANY)
    }

    pub(crate) fn has_child(&self, target: usize, pid: u32) -> bool {
        matches!(self.skel().maps.children.lookup(bytes_of(&child(target, pid)), MapFlags::ANY), Ok(Some(_)))
    }

    /// Removes a process that is not a child, or has ended.
    pub(crate) fn remove_child(&self, target: usize, pid: u32) {
        let _ = self.skel().maps.children.delete(bytes_of(&child(target, pid)));
    }

    /// Counts hits at sites of a candidate from now on, whatever the executable's name.
    ///
    /// # Errors
    /// If the kernel refuses, which it has no reason to.
    pub fn admit(&self, cookies: &[u32]) -> libbpf_rs::Result<()> {
        let at = std::mem::offset_of!(site, flags);
        for cookie in cookies {
            let key = cookie.to_ne_bytes();
            let Some(mut row) = self.skel().maps.sites.lookup(&key, MapFlags::ANY)? else { continue };
            if let Some(flags) = row.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
                *flags = (u32::from_ne_bytes(*flags) & !site_flag::SITE_CANDIDATE.0).to_ne_bytes();
            }
            self.skel().maps.sites.update(&key, &row, MapFlags::ANY)?;
        }
        Ok(())
    }

    /// The target's current filter: its edition, and the start time of its single process.
    pub(crate) fn filter_now(&self, target: usize) -> (u32, u64) {
        let key = (target as u32).to_ne_bytes();
        let row = self.skel().maps.filters.lookup(&key, MapFlags::ANY).ok().flatten().unwrap_or_default();
        let edition = row.get(std::mem::offset_of!(filter, edition)..).and_then(<[u8]>::first_chunk);
        let began = row.get(std::mem::offset_of!(filter, began)..).and_then(<[u8]>::first_chunk);
        (edition.map_or(0, |e| u32::from_ne_bytes(*e)), began.map_or(0, |b| u64::from_ne_bytes(*b)))
    }

    /// Children of selected processes for which there was no room: they are not selected.
    pub(crate) fn lost_children(&self) -> u64 {
        self.skel().maps.bss_data.as_deref().map_or(0, |data| data.children_lost)
    }
}

fn child(target: usize, pid: u32) -> child_key {
    child_key { tgid: pid, filter: u32::try_from(target).unwrap_or(u32::MAX) }
}

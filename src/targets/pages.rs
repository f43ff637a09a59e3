//! Whether pages of a process are still unmodified pages of the file that it maps there: `/proc/PID/pagemap`.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::mapping::PAGE;

/// Returns whether the page at an address is an unmodified page of the file. `pages` is the process's `pagemap`.
pub(super) fn is_of_file(pages: &File, at: u64) -> bool {
    let mut entry = [0; 8];
    let read = pages.read_exact_at(&mut entry, at / PAGE * 8);
    read.is_ok() && is_of_file_by(u64::from_ne_bytes(entry))
}

/// The same, given the page's entry.
pub(super) fn is_of_file_by(entry: u64) -> bool {
    // Linux, Documentation/admin-guide/mm/pagemap.rst.
    let [is_file, is_swapped, is_present] = [61, 62, 63].map(|bit| entry >> bit & 1 == 1);
    !is_swapped && (is_file || !is_present)
}

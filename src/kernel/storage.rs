//! The memory that libbpf-rs requires its caller to provide for an object. A skeleton and its storage move together
//! (`self_cell`), so that programs can be stored, sent to another thread, and freed.

use std::mem::MaybeUninit;

use libbpf_rs::OpenObject;
use self_cell::MutBorrow;

pub(super) type Storage = MutBorrow<MaybeUninit<OpenObject>>;

pub(super) fn new_storage() -> Storage {
    MutBorrow::new(MaybeUninit::uninit())
}

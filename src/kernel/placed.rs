//! Sites to be attached, and the result.

use std::collections::BTreeMap;

use libbpf_rs::Link;

use super::refusal::Refusal;
use crate::resolve::ResolvedSite;

/// How a site is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachMethod {
    Entry,
    Return,
    /// At the entry and the return of a function, by one link. The return has a site of its own with this number.
    Session {
        on_return: u32,
    },
    /// The return of a session, without a link of its own.
    InSession,
}

/// A site with its number.
#[derive(Debug, Clone, Copy)]
pub struct PlacedSite<'a> {
    pub cookie: u32,
    pub site: &'a ResolvedSite,
    pub method: AttachMethod,
    /// The span that the site starts or ends. Without its ends a start would wait in vain, so the sites of a function
    /// that belong to a span are attached together or not at all.
    pub span: Option<u32>,
}

/// The result of attaching. Dropping the links detaches.
#[derive(Debug, Default)]
pub struct Attached {
    pub links: Vec<Link>,
    /// Links by which it was found out what the kernel refuses; their hits are nobody's. They are to be detached only now: while
    /// one thread attaches and another one detaches, each waits for the other at every site.
    pub tried: Vec<Link>,
    /// By index in the list of sites.
    pub refused: BTreeMap<usize, Refusal>,
    /// The number of sites that another tracer holds without their semaphore, which is raised by a probe elsewhere in
    /// the file.
    pub beside: usize,
}

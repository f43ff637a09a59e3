//! The directories of pinned counters of each network namespace.

use crate::pins::PinDir;

use super::config::Space;
use super::counter_maps::CounterMaps;
use super::pinned::{counters_of, detach_filters_in, label, spaces, warn_of_filters};
use super::sys::netns_cookie;

/// The directory for the calling thread's network namespace. Leftovers of a previous namespace of this name are
/// removed.
///
/// # Errors
/// If it cannot be created.
pub(super) fn directory(counter_maps: &CounterMaps, space: &Space) -> libbpf_rs::Result<PinDir> {
    if !counter_maps.pins.is_pinned() {
        return Ok(PinDir::default());
    }
    let (label, cookie) = (label(space), netns_cookie()?.to_string());
    let is_other = |name: &str| name.strip_prefix(&label).is_some_and(|number| number != cookie);
    forget(counter_maps, is_other);
    Ok(counter_maps.pins.child(&format!("{label}{cookie}"))?)
}

/// Removes the directory of a namespace that no longer exists.
pub(super) fn forget_space(counter_maps: &CounterMaps, space: &Space) {
    forget(counter_maps, |name| name.starts_with(&label(space)));
}

/// Removes the directories of all other namespaces.
pub(super) fn forget_others(counter_maps: &CounterMaps, wanted: &[&Space]) {
    let labels: Vec<String> = wanted.iter().map(|space| label(space)).collect();
    forget(counter_maps, |name| !labels.iter().any(|label| name.starts_with(label)));
}

fn forget(counter_maps: &CounterMaps, which: impl Fn(&str) -> bool) {
    for (name, space) in spaces(&counter_maps.pins).into_iter().filter(|(name, _)| which(name)) {
        warn_of_filters(&detach_filters_in(&name, &space));
        counter_maps.give_back(counters_of(&space), &space);
        if let Err(err) = counter_maps.pins.remove(&name) {
            log::warn!("{err}");
        }
    }
}

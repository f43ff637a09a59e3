//! How large the maps of the probe programs are.

use std::io;

use super::filters::FilterIndex;
use super::tables::ProbeTables;
use crate::abi::generated::OpenProbeSkel;
use crate::layout::Layout;
use crate::plan::{Pairing, Plan, ValueKind};

/// Maximum memory of all shards together; fewer shards only cost time.
const SLOT_BYTES: u64 = 64 << 20;

/// Cgroups for which the kernel caches whether they are selected.
const MAX_CGROUPS: u32 = 4096;

/// Containers and pods that filters can match.
const MAX_MEMBERS: u32 = 1 << 14;

/// Processes for which state is kept, or that are children of selected processes.
const MAX_PROCESSES: u32 = 1 << 16;

/// Distinct executable paths and command lines.
const MAX_PROCESS_TEXTS: u32 = 1 << 14;

/// A power of two, enough for every CPU if memory permits.
pub(super) fn shards(slots: u32) -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from).next_power_of_two() as u64;
    let affordable = SLOT_BYTES / (8 * u64::from(slots.max(1)));
    let most = if affordable == 0 { 1 } else { 1 << affordable.ilog2() };
    cpus.min(most).min(64) as u32
}

/// Whether any label shows the executable's path or the command line.
pub(super) fn has_process_texts(plan: &Plan) -> bool {
    let mut values = plan.probes.iter().flat_map(|probe| &probe.values);
    values.any(|value| value.kind == ValueKind::ProcessText)
}

pub(super) fn count(n: usize) -> u32 {
    u32::try_from(n.max(1)).unwrap_or(u32::MAX)
}

/// Sets the sizes of all maps.
pub(super) fn size(
    open: &mut OpenProbeSkel<'_>,
    plan: &Plan,
    layout: &Layout,
    tables: &ProbeTables,
    filters: &FilterIndex,
    shards: u32,
) -> libbpf_rs::Result<()> {
    let maps = &mut open.maps;
    maps.sites.set_max_entries(plan.settings.limits.sites)?;
    maps.probes.set_max_entries(count(tables.probes.len()))?;
    let if_any = |is_any: bool, entries: u32| if is_any { entries } else { 1 };
    maps.filters.set_max_entries(filters.count.max(1))?;
    maps.globs.set_max_entries(count(filters.globs.len()))?;
    maps.cgroups.set_max_entries(if_any(filters.is_by_cgroup, MAX_CGROUPS))?;
    maps.members.set_max_entries(if_any(filters.has_members, MAX_MEMBERS))?;
    maps.lines.set_max_entries(if_any(filters.has_lines, MAX_PROCESSES))?;
    maps.children.set_max_entries(if_any(!filters.families.is_empty(), MAX_PROCESSES))?;
    maps.actions.set_max_entries(count(tables.actions.len()))?;
    maps.patterns.set_max_entries(count(tables.patterns.len()))?;
    maps.bounds.set_max_entries(count(tables.bounds.len()))?;
    maps.interners.set_max_entries(count(tables.interners.len()))?;
    maps.small_integers.set_max_entries(count(tables.interners.len()))?;
    let entries = layout.kernel.entries.max(1);
    maps.entries.set_max_entries(entries)?;
    maps.numbers.set_max_entries(entries)?;
    maps.slots.set_max_entries(layout.kernel.slots.saturating_mul(shards))?;
    let starts = if_any(plan.spans > 0, plan.settings.limits.starts);
    let spans = || plan.probes.iter().filter_map(|probe| probe.span);
    maps.starts.set_max_entries(starts)?;
    maps.nestings.set_max_entries(if_any(spans().any(|span| span.by == Pairing::Thread), starts))?;
    maps.start_texts.set_max_entries(if_any(spans().any(|span| span.texts), starts))?;
    let has_texts = has_process_texts(plan);
    maps.process_numbers.set_max_entries(if_any(has_texts, MAX_PROCESSES))?;
    maps.process_texts.set_max_entries(if_any(has_texts, MAX_PROCESS_TEXTS))?;
    maps.ring.set_max_entries(plan.settings.limits.ring_bytes)?;
    let rodata =
        maps.rodata_data.as_deref_mut().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    rodata.shard_mask = shards - 1;
    rodata.slots_per_shard = layout.kernel.slots;
    Ok(())
}

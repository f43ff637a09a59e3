//! Describes what will be counted, before anything is attached.

use super::block;
use super::config::{Mode, NetworkConfig, Scope, Space};
use super::hook::choose;
use super::links::interfaces;
use super::{counter_maps, stats, tables};

/// The lines of `check`: what is counted, how much kernel memory it takes on this machine, and for each existing
/// interface the hook and the reason.
pub fn describe(config: &NetworkConfig) -> Vec<String> {
    let count = &config.count;
    let statistics = stats::switches().map(|one| (count.statistics.contains(one.key), one.name.to_string()));
    let others = [
        (count.talkers > 0, format!("{} talkers", count.talkers)),
        (count.flows > 0, format!("{} flows", count.flows)),
        (count.top_sources > 0, format!("the {} top sources", count.top_sources)),
        (!count.cidrs.is_empty(), format!("{} groups of prefixes", count.cidrs.len())),
        (count.tcp_connections, "TCP connections by state".to_string()),
        (count.drop_reasons, "kernel drop reasons".to_string()),
        (count.tcp, "TCP connection statistics".to_string()),
        (count.cgroups, "packets by unit, container and pod".to_string()),
        (count.processes, "packets by process".to_string()),
        (count.dns, "DNS queries".to_string()),
    ];
    let wanted: Vec<_> = statistics.chain(others).filter_map(|(on, what)| on.then_some(what)).collect();
    let mode = format!("{:?}", config.mode).to_lowercase();
    let (each, fast, all) = memory(config, libbpf_rs::num_possible_cpus().unwrap_or(1));
    let elsewhere: String = config
        .elsewhere
        .iter()
        .map(|(space, names)| {
            let place = match space {
                Space::Own => "here".to_string(),
                Space::Netns(name) => format!("network namespace {name}"),
                Space::Container(name) => format!("container {name}"),
            };
            format!("; in {place}: {}", names.join(", "))
        })
        .collect();
    let mut lines = vec![
        format!("network: interfaces {}{elsewhere} (mode {mode})", config.interfaces.join(", ")),
        "  packets and bytes by direction, address family, protocol and verdict".to_string(),
        format!("  also: {}", wanted.join(", ")),
        format!(
            "  kernel memory: {} KiB per interface, {} KiB more with XDP; {} KiB for talkers and flows in total",
            each / 1024,
            fast / 1024,
            all / 1024
        ),
    ];
    lines.extend(config.block.iter().flat_map(block::describe).map(|line| format!("  {line}")));
    for (module, mode) in config.detect.modules() {
        let mode = mode.map(|enforces| if enforces { "enforce" } else { "observe" });
        lines.extend(mode.map(|mode| format!("  detection: {module} (mode {mode})")));
    }
    for scope in config.scopes().iter().filter(|scope| scope.space == Space::Own) {
        match hooks(scope, config.mode) {
            Ok(chosen) => lines.extend(chosen.iter().map(|line| format!("  {line}"))),
            Err(error) => lines.push(format!("  failed to list the interfaces: {error}")),
        }
    }
    lines
}

/// Kernel memory in bytes for a number of CPUs: one interface's counters without the fast path, the maximum that the
/// fast path adds, and the tables of talkers and flows.
fn memory(config: &NetworkConfig, cpus: usize) -> (u64, u64, u64) {
    let fast = if config.count.fits_fast_path() { counter_maps::fast_memory(1, cpus) } else { 0 };
    (counter_maps::memory(cpus), fast, tables::memory(&config.count, cpus))
}

/// For each existing configured interface, the hook and the reason.
fn hooks(scope: &Scope, mode: Mode) -> std::io::Result<Vec<String>> {
    let all = interfaces()?;
    let mut lines: Vec<String> = all
        .iter()
        .filter(|there| scope.wants(&there.name, &there.altnames))
        .map(|there| match choose(there, mode) {
            Ok(choice) => {
                let hooks: Vec<_> = choice.hooks.iter().map(|hook| hook.phrase()).collect();
                format!("{}: {} ({})", there.name, hooks.join(", else "), choice.reason)
            }
            Err(err) => format!("{}: received packets are not counted: {err}", there.name),
        })
        .collect();
    let missing = scope.exact_names().filter(|name| !all.iter().any(|there| there.is_called(name)));
    lines.extend(missing.map(|name| format!("{name}: no such interface (yet)")));
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_with_entries_and_cpus() {
        let mut config = NetworkConfig::default();
        assert_eq!(memory(&config, 8).2, 0);
        config.count.talkers = 4096;
        let talkers = memory(&config, 1).2;
        assert!((8192 * 56..8192 * 80).contains(&talkers), "{talkers}");
        config.count.flows = 4096;
        assert!(memory(&config, 2).2 > 4 * talkers);
        // The fast path is used only without talkers.
        assert_eq!(memory(&config, 3).1, 0);
        config.count.talkers = 0;
        assert_eq!(memory(&config, 3).1, 4 << 16);
        config.count.statistics.insert("tcp_trouble");
        assert_eq!(memory(&config, 3).1, 0, "nor where every packet is looked at");
    }
}

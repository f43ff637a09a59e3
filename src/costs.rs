//! An estimate of what tracing costs the traced programs: how often they were stopped for a probe, times the cost of
//! each stop. Pure except for [`so_far`].

use crate::abi::accounting_slot;
use crate::config::model::ReturnsBy;
use crate::kernel::{Accounting, Counts, Prices, SharedHandles};
use crate::plan::{ComputedIn, Plan, ProbeHook, ProbePlan};

/// Seconds that the exporter's own program takes for a hit, in addition to counting it (ARCHITECTURE.md, "Cost of a
/// hit").
const VALUES: f64 = 45e-9;
const ACTION: f64 = 60e-9;
const EVENT: f64 = 100e-9;
const SPAN: f64 = 150e-9;

/// Seconds that all hits of a probe have taken so far, including those of other processes, and stops of the program
/// that are not hits.
///
/// It assumes one probe per instruction: where several probes share one, the kernel stops the program once for all of
/// them. It does not account for CPUs that slow each other down, nor for what a program prepares when its semaphore is
/// raised.
pub(crate) fn seconds(
    probe: &ProbePlan,
    prices: &Prices,
    accounting: impl Fn(accounting_slot) -> u64,
) -> f64 {
    let stepped = accounting(accounting_slot::ACCT_STEPPED) as f64;
    let passed = accounting(accounting_slot::ACCT_PASSED) as f64;
    let hits = Accounting::of(accounting).begun as f64;
    let stop = match (probe.hook, probe.returns_by) {
        // The entry is a hit of the start.
        (ProbeHook::Return, ReturnsBy::Trampoline) if probe.span.is_some() => {
            (prices.trampoline - prices.emulated).max(0.0)
        }
        (ProbeHook::Return, ReturnsBy::Trampoline) => prices.trampoline,
        _ => prices.emulated,
    };
    let more = (prices.single_stepped - prices.emulated).max(0.0);
    (hits + passed) * stop + stepped * more + hits * handling(probe)
}

/// The same for a probe by index, at this moment.
pub fn so_far(plan: &Plan, shared: &SharedHandles, prices: &Prices, probe: usize) -> f64 {
    seconds(&plan.probes[probe], prices, |which| shared.accounting(probe, which))
}

fn handling(probe: &ProbePlan) -> f64 {
    let actions = probe.actions.iter().filter(|action| action.computed_in == ComputedIn::Kernel).count();
    let actions = actions + probe.slow.iter().filter(|slow| slow.computed_in == ComputedIn::Kernel).count();
    let of = |is_so: bool, seconds: f64| if is_so { seconds } else { 0.0 };
    of(actions > 0 || probe.emit.is_some(), VALUES)
        + ACTION * actions as f64
        + of(probe.emit.is_some(), EVENT)
        + of(probe.span.is_some(), SPAN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Overrides, load_bytes};

    fn probes(of: &str) -> Vec<ProbePlan> {
        let yaml = format!("targets:\n  - name: t\n    binary: /bin/true\n    probes:\n{of}");
        let loaded = load_bytes("a.yaml", yaml.into(), &Overrides::default(), &Environment::new()).unwrap();
        crate::plan::plan(loaded.config, false).unwrap().probes
    }

    const PRICES: Prices =
        Prices { emulated: 1e-6, single_stepped: 10e-6, trampoline: 3e-6, is_measured: true };

    fn cost(probe: &ProbePlan, counts: &[(accounting_slot, u64)]) -> f64 {
        let of = |which| counts.iter().find(|(slot, _)| *slot == which).map_or(0, |(_, count)| *count);
        (seconds(probe, &PRICES, of) * 1e6).round()
    }

    #[test]
    fn every_stop_costs_regardless_of_outcome() {
        let counted = &probes("      - on: usdt:p:a\n        metrics: [counter: a_total]\n")[0];
        for slot in [
            accounting_slot::ACCT_AGGREGATED,
            accounting_slot::ACCT_DELIVERED,
            accounting_slot::ACCT_FILTERED,
            accounting_slot::ACCT_LOST_NO_START,
            accounting_slot::ACCT_PASSED,
        ] {
            assert_eq!(cost(counted, &[(slot, 1000)]), 1000.0, "{slot:?}");
        }
        let stepped = [(accounting_slot::ACCT_AGGREGATED, 1000), (accounting_slot::ACCT_STEPPED, 1000)];
        assert_eq!(cost(counted, &stepped), 10_000.0);
        assert_eq!(cost(counted, &[]), 0.0);
    }

    #[test]
    fn trampoline_call_is_charged_once() {
        let by = "        returns_by: trampoline\n";
        let timed = probes(&format!(
            "      - function: f\n{by}        metrics: [{{ histogram: f_seconds, value: duration }}]\n"
        ));
        let calls = [(accounting_slot::ACCT_AGGREGATED, 1_000_000)];
        let whole: f64 = timed.iter().map(|probe| cost(probe, &calls) - cost_of_handling(probe)).sum();
        assert_eq!(whole, 3_000_000.0);
        let counted = &probes(&format!(
            "      - function: f\n{by}        metrics: [{{ counter: f_total, at: return }}]\n"
        ))[0];
        assert_eq!(cost(counted, &calls) - cost_of_handling(counted), 3_000_000.0);
    }

    fn cost_of_handling(probe: &ProbePlan) -> f64 {
        (handling(probe) * 1e12).round()
    }
}

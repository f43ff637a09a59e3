//! The minimum cost of a hit for the traced program, by how the kernel executes the probed instruction: measured once,
//! on code of the exporter's own that nothing else executes.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{ErrorExt, Link, UprobeMultiOpts, UprobeOpts};

use super::error::{has_filtered_trampoline, kernel_release};
use super::link_kind::Attach;
use super::pinnable_link::detach;
use crate::abi::prices::generated::{PricesSkel, PricesSkelBuilder};
use crate::logging::log_libbpf;
use crate::mapping::TestCode;

/// Seconds per hit with a program that only counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prices {
    /// At an instruction that the kernel emulates.
    pub emulated: f64,
    /// At an instruction that it single-steps.
    pub single_stepped: f64,
    /// A call of a function whose return address the kernel replaces: entry and return.
    pub trampoline: f64,
    /// Otherwise they are assumed, from measurements on other machines.
    pub is_measured: bool,
}

impl Default for Prices {
    fn default() -> Self {
        Self { emulated: 0.6e-6, single_stepped: 7e-6, trampoline: 1e-6, is_measured: false }
    }
}

/// The current prices, shared by all users.
#[derive(Debug, Clone, Default)]
pub struct SharedPrices(Arc<OnceLock<Prices>>);

impl SharedPrices {
    /// Assumed until they are measured.
    pub fn get(&self) -> Prices {
        self.0.get().copied().unwrap_or_default()
    }

    /// Measures them, once, in some 30 ms. If that is not possible they stay assumed, which is logged.
    pub fn measure(&self, attach: Attach) -> Prices {
        if let Some(prices) = self.0.get() {
            return *prices;
        }
        let (sender, receiver) = sync_channel(1);
        // It still detaches after reporting, which takes as long again.
        let thread = std::thread::Builder::new().name("prices".to_string()).spawn(move || {
            let measured = measure(attach, |prices| {
                let _ = sender.try_send(prices);
            });
            if let Err(err) = measured {
                log::info!("The cost of a hit could not be measured; using an estimate: {err:#}");
            }
        });
        let prices = thread.ok().and_then(|_| receiver.recv_timeout(MAX_WAIT).ok()).unwrap_or_default();
        let prices = *self.0.get_or_init(|| prices);
        log::debug!("A hit costs at least: {prices:?}");
        prices
    }
}

/// Calls between two readings of the clock, and how many times that is repeated: the fastest batch is the one that
/// nothing has disturbed.
const CALLS_PER_BATCH: u32 = 50;
const BATCHES: usize = 12;

/// After this, prices stay assumed.
const MAX_WAIT: Duration = Duration::from_secs(2);

/// Time for one form at most, however slow the machine is.
const MAX_TIME_PER_FORM: Duration = Duration::from_millis(15);

fn measure(attach: Attach, sender: impl FnOnce(Prices)) -> libbpf_rs::Result<()> {
    log_libbpf();
    let failed = |what: &'static str| move |err: io::Error| libbpf_rs::Error::from(err).context(what);
    let code = TestCode::new().map_err(failed("making code to probe"))?;
    let mut storage = MaybeUninit::uninit();
    let mut open = PricesSkelBuilder::default().open(&mut storage)?;
    open.progs.price_multi.set_autoload(attach == Attach::Multi);
    open.progs.price_perf.set_autoload(attach == Attach::Perf);
    let skel = open.load()?;
    let mut links = Vec::new();
    let made = link(&skel, attach, &code.file, &mut links);
    let measured = made.and_then(|()| {
        let bare = time(&code, TestCode::BARE);
        let price = |entry| (time(&code, entry) - bare).max(1e-9);
        let before = hits(&skel);
        // It could kill this process.
        let harms = has_filtered_trampoline(&kernel_release());
        let prices = Prices {
            emulated: price(TestCode::EMULATED),
            single_stepped: price(TestCode::SINGLE_STEPPED),
            trampoline: if harms { Prices::default().trampoline } else { price(TestCode::RETURNING) },
            is_measured: true,
        };
        // A missing breakpoint costs nothing.
        let is_hit = hits(&skel) - before >= (3 - u64::from(harms)) * u64::from(CALLS_PER_BATCH);
        let not_hit = || io::Error::other("the kernel accepted the probes, but they are not hit");
        if !is_hit {
            return Err(not_hit().into());
        }
        sender(prices);
        Ok(())
    });
    detach(links);
    measured
}

fn hits(skel: &PricesSkel<'_>) -> u64 {
    skel.maps.bss_data.as_deref().map_or(0, |data| data.hits)
}

fn link(skel: &PricesSkel<'_>, attach: Attach, file: &File, links: &mut Vec<Link>) -> libbpf_rs::Result<()> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let entries = vec![TestCode::EMULATED, TestCode::SINGLE_STEPPED];
    match attach {
        Attach::Multi => {
            for (offsets, retprobe) in [(entries, false), (vec![TestCode::RETURNING], true)] {
                let opts = UprobeMultiOpts { offsets, retprobe, ..UprobeMultiOpts::default() };
                links.push(skel.progs.price_multi.attach_uprobe_multi_with_opts(-1, &path, "", opts)?);
            }
        }
        Attach::Perf => {
            for offset in entries.into_iter().chain([TestCode::RETURNING]) {
                let retprobe = offset == TestCode::RETURNING;
                let opts = UprobeOpts { retprobe, ..UprobeOpts::default() };
                links.push(skel.progs.price_perf.attach_uprobe_with_opts(-1, &path, offset, opts)?);
            }
        }
    }
    Ok(())
}

/// Seconds per call.
fn time(code: &TestCode, entry: usize) -> f64 {
    let began = Instant::now();
    let mut best = f64::INFINITY;
    for _ in 0..BATCHES {
        let batch = Instant::now();
        (0..CALLS_PER_BATCH).for_each(|_| code.call(entry));
        best = best.min(batch.elapsed().as_secs_f64() / f64::from(CALLS_PER_BATCH));
        if began.elapsed() > MAX_TIME_PER_FORM {
            break;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::super::link_kind::choose;
    use super::*;
    use crate::config::model::AttachMode;

    #[test]
    fn measures_probe_costs_on_own_code_as_root() {
        for mode in [AttachMode::Auto, AttachMode::Perf] {
            let mut receiver = None;
            measure(choose(mode), |prices| receiver = Some(prices)).unwrap();
            let prices = receiver.unwrap();
            assert!(prices.is_measured && prices.emulated > 50e-9, "{prices:?}");
            assert!(prices.single_stepped > prices.emulated, "{prices:?}");
            assert!(prices.trampoline > prices.emulated, "{prices:?}");
        }
    }
}

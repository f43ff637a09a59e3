//! The state of the manager's thread.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::Level;

use super::attach_job::Jobs;
use super::attached_file::{Attacher, Shed};
use super::attaching::Attaching;
use super::code_checks::CodeChecks;
use super::cookies::Cookies;
use super::detacher::{Detacher, Shedding};
use super::file::Identity;
use super::find::Finder;
use super::raised::RaisedCopies;
use super::readers::ReadersHandle;
use super::record::{Changing, Signature, StartState};
use super::state::TargetState;
use super::status::TargetsStatus;
use super::watch::Watch;
use crate::clock::thread_time;
use crate::config::model::Point;
use crate::hierarchy::is_with_first_process;
use crate::kernel::{
    Clock, Files, Guard, Kernel, KernelError, PidNamespace, ProcessEvents, SharedPrices, Wanted,
};
use crate::layout::Layout;
use crate::plan::{Plan, TargetPlan, ValueKind};
use crate::selectors::{FileSelector, Selector};

/// How often conditions are checked that no event reports: whether replaced files still run, and, where the kernel does
/// not report process events, all processes.
pub(super) const WALK_INTERVAL: Duration = Duration::from_secs(5);

pub(super) struct Worker {
    pub(super) plan: Arc<Plan>,
    pub(super) attacher: Attacher,
    /// The cost of a hit.
    pub(super) prices: SharedPrices,
    pub(super) cookies: Cookies,
    pub(super) shedding: Vec<Shedding>,
    /// Shared with the detacher.
    pub(super) raised: Arc<RaisedCopies>,
    pub(super) targets: Vec<TargetState>,
    pub(super) finder: Finder,
    pub(super) watch: Watch,
    pub(super) first_clock: Option<Clock>,
    pub(super) last_walk: Instant,
    pub(super) last_look: Instant,
    pub(super) last_names: Instant,
    pub(super) last_lines: Instant,
    /// An event arrived, or a probe was hit, since the last periodic check.
    pub(super) is_disturbed: bool,
    /// Process events were lost: all processes must be checked.
    pub(super) is_behind: bool,
    pub(super) selectors: Vec<Selector>,
    /// Processes that executed a file since the last check, and may replace their code.
    pub(super) fresh: Vec<(u32, Identity)>,
    pub(super) code_checks: CodeChecks,
    /// Starts that found no room so far.
    pub(super) starts_refused: u64,
    /// Holds leases of files with pinned probes while no exporter runs.
    pub(super) guard: Option<Guard>,
    /// Hides breakpoints from processes that read traced files.
    pub(super) readers: Option<ReadersHandle>,
    /// The fingerprint of the layout of series.
    pub(super) layout: String,
    /// When the record was last written, and the signature of its contents.
    pub(super) last_kept: Instant,
    pub(super) signature: Signature,
    /// What was last written for the next exporter.
    pub(super) kept: Option<Changing>,
    /// Why it could not be written, as last logged.
    pub(super) keep_error: Option<String>,
}

impl Worker {
    pub(super) fn new(
        plan: Arc<Plan>,
        layout: &Layout,
        attaching: Attaching,
        status: Arc<TargetsStatus>,
        stopped: UnixStream,
        beginning: StartState,
    ) -> Result<Self, KernelError> {
        let failed = |what: &str, err: io::Error, next: &str| KernelError {
            what: what.to_string(),
            source: err.into(),
            next: next.to_string(),
        };
        let files = Files::load()?;
        let namespace = files.pid_namespace();
        if namespace != PidNamespace::default() {
            log::info!(
                "Process ids are those of this pid namespace; processes outside of it are also traced, with \
                 the id 0"
            );
            let by_process = |target: &TargetPlan| target.selector.is_by_process();
            if files.sees_all() && is_with_first_process() && plan.targets.iter().any(by_process) {
                log::warn!(
                    "/proc only shows processes of this container, so targets that are not chosen by `binary` are not \
                     found elsewhere: start it in the pid namespace of the host (`--pid=host`, or `hostPID: true` in \
                     Kubernetes)"
                );
            }
        }
        if !files.sees_all() {
            log::warn!(
                "/proc is that of an outer pid namespace: processes outside of the exporter's own are counted, but \
                 the kernel does not report what they map (breakpoints in copies, semaphores of lld's libraries): run in the pid namespace of \
                 /proc (`--pid=host`), or mount the /proc of this one"
            );
        }
        let readers = ReadersHandle::new(&attaching.readers, namespace, status.clone());
        let (began, worked) = (Instant::now(), thread_time());
        let kernel =
            Kernel::load_pinned(&plan, layout, attaching.kind, namespace, beginning.pinning.as_ref())?;
        tell_of_loading(began.elapsed(), thread_time().saturating_sub(worked));
        let guard = kernel.pins().and_then(|pins| {
            let started = Guard::start(pins);
            let report = |err: &KernelError| {
                log::warn!(
                    "`state: pinned`: while no exporter runs, do not overwrite a traced file in place, or the program can \
                     crash at its next start; replace it by renaming. The kernel refuses the program that would \
                     prevent it ({:#})",
                    err.source
                );
            };
            started.inspect_err(report).ok()
        });
        let watch = Watch::new(stopped, attaching.gate)
            .map_err(|err| failed("watch files", err, "raise fs.inotify.max_user_instances, or ulimit -n"))?;
        let usdt_of = |target: &TargetPlan| {
            let names = target.probes.iter().filter_map(|probe| match &plan.probes[*probe].point {
                Point::Usdt { provider, name } => Some(format!("{provider}:{name}")),
                Point::Function(_) => None,
            });
            names.collect()
        };
        let targets = plan
            .targets
            .iter()
            .map(|target| TargetState { usdt: usdt_of(target), ..TargetState::default() })
            .collect();
        let cookies = Cookies::new(plan.settings.limits.sites);
        let first_clock = kernel.clock();
        let (last_walk, last_look) = (Instant::now(), Instant::now());
        let selectors: Vec<Selector> = plan.targets.iter().map(|target| target.selector.clone()).collect();
        let needs_libraries =
            selectors.iter().zip(&targets).any(|(of, state): (&Selector, &TargetState)| match of.file {
                FileSelector::Path(_) => false,
                FileSelector::Executable => !state.usdt.is_empty(),
                FileSelector::Library(_) => true,
            });
        let events = process_events(&selectors, needs_libraries, namespace);
        let mut finder = Finder::new(files, &selectors, events, needs_libraries);
        let mut values = plan.probes.iter().flat_map(|probe| &probe.values);
        finder.processes.are_cgroups_shown = values.any(|value| matches!(value.kind, ValueKind::Cgroup(_)));
        let raised = Arc::new(RaisedCopies::default());
        let mut worker = Self {
            plan,
            attacher: Attacher {
                kernel: Arc::new(kernel),
                status,
                shed: Shed::new(),
                detacher: Detacher::new(raised.clone()),
                jobs: Jobs::default(),
            },
            prices: attaching.prices,
            cookies,
            shedding: Vec::new(),
            raised,
            targets,
            finder,
            watch,
            first_clock,
            last_walk,
            last_look,
            last_names: Instant::now(),
            last_lines: Instant::now(),
            is_disturbed: true,
            is_behind: false,
            selectors,
            fresh: Vec::new(),
            code_checks: CodeChecks::new(),
            starts_refused: 0,
            guard,
            readers,
            layout: layout.fingerprint(),
            last_kept: Instant::now(),
            signature: Signature::new(),
            kept: None,
            keep_error: None,
        };
        worker.set_candidate_names();
        if let Some(record) = beginning.record {
            worker.take_over(record);
        }
        Ok(worker)
    }
}

/// From this duration on, loading the programs is logged at info level.
const LONG_LOAD: Duration = Duration::from_secs(2);

/// Logs how long loading took. Nothing is attached before the kernel's verifier has checked the programs, which takes a
/// second or two of CPU time: several times that if others compete for the CPU, such as a second exporter that starts
/// at the same moment.
fn tell_of_loading(took: Duration, worked: Duration) {
    let level = if took >= LONG_LOAD { Level::Info } else { Level::Debug };
    log::log!(
        level,
        "Loading the BPF programs took {:.1} s: {:.1} s of processor time, nearly all in the kernel's verifier, and {:.1} s of waiting, mostly \
         for a processor",
        took.as_secs_f64(),
        worked.as_secs_f64(),
        took.saturating_sub(worked).as_secs_f64()
    );
}

/// The kernel's events about processes that targets select; None if it reports none.
fn process_events(selectors: &[Selector], mappings: bool, namespace: PidNamespace) -> Option<ProcessEvents> {
    let mut wanted = Wanted { mappings, ..Wanted::default() };
    for selector in selectors {
        let processes = &selector.processes;
        match (selector.path(), processes.name()) {
            (Some(path), _) => {
                wanted.names.extend(path.file_name().map(|name| name.to_string_lossy().into()));
            }
            (None, Some(name)) => wanted.names.push(name.to_string()),
            (None, None) if processes.is_by_cgroup() || processes.pid().is_some() => {}
            (None, None) => match (processes.name_glob(), processes.line_glob()) {
                (Some(glob), _) => wanted.name_globs.push(glob.clone()),
                (None, Some(glob)) => wanted.line_globs.push(glob.clone()),
                (None, None) => wanted.all = true,
            },
        }
        wanted.by_cgroup |= processes.is_by_cgroup();
        wanted.children |= processes.children;
    }
    if selectors.is_empty() {
        return None;
    }
    let started = ProcessEvents::start(&wanted, namespace);
    started.inspect_err(|err| log::info!("Scanning /proc every {} s: {err}", WALK_INTERVAL.as_secs())).ok()
}

//! Tests of process events with real processes. Needs root.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

use super::*;
use crate::clock::monotonic_now;
use crate::kernel::can_make_wait;

/// Waits until the process has no more events.
fn of(events: &mut ProcessEvents, pid: u32) -> Vec<ProcessChange> {
    events.take().into_iter().filter(|event| event.pid == pid).map(|event| event.change).collect()
}

#[test]
fn reports_only_requested_programs_as_root() {
    let directory = tempfile::tempdir().unwrap();
    let name = format!("wanted{}", std::process::id());
    let path = directory.path().join(&name);
    std::fs::copy("/bin/dash", &path).unwrap();
    let wanted = Wanted { names: vec![name], ..Wanted::default() };
    let mut events = ProcessEvents::start(&wanted, PidNamespace::default()).unwrap();
    let start = |path: &std::path::Path| {
        let mut child =
            Command::new(path).args(["-c", "(true); read x"]).stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        drop(child.stdin.take());
        child.wait().unwrap();
        pid
    };
    let pid = start(&path);
    let changes = of(&mut events, pid);
    let ProcessChange::Executed { file, path: ref executed, .. } = changes[0] else { panic!("{changes:?}") };
    assert_eq!(executed, &path);
    assert!(
        file.file.inode != 0
            && matches!(changes.last(), Some(ProcessChange::Ended { signal: 0, time }) if *time > 0),
        "{changes:?}"
    );
    let other = start("/bin/dash".as_ref());
    assert_eq!(of(&mut events, other), []);
    // The path of a known file is not reported.
    events.set_known(file, false, KnownUnless::default());
    let pid = start(&path);
    let changes = of(&mut events, pid);
    assert!(matches!(&changes[0], ProcessChange::Executed { path, .. } if path.as_os_str().is_empty()));
    events.pin(u32::MAX >> 2);
    events.forget(u32::MAX >> 2);
    assert_eq!(events.take_lost(), 0);
}

#[test]
fn program_waits_until_its_file_is_inspected_as_root() {
    let directory = tempfile::tempdir().unwrap();
    let name = format!("waits{}", std::process::id());
    let [program, written] = [name.as_str(), "written"].map(|name| directory.path().join(name));
    std::fs::copy("/bin/dash", &program).unwrap();
    let wanted = Wanted { names: vec![name], ..Wanted::default() };
    let mut events = ProcessEvents::start(&wanted, PidNamespace::default()).unwrap();
    let can_wait = can_make_wait();
    let run = |events: &mut ProcessEvents| {
        let _ = std::fs::remove_file(&written);
        let mut child = Command::new(&program).args(["-c", "echo > $0"]).arg(&written).spawn().unwrap();
        let (file, time, ticket) = loop {
            let told = of(events, child.id());
            if let Some(ProcessChange::Executed { file, time, ticket, .. }) = told.first() {
                break (*file, *time, *ticket);
            }
        };
        let has_run = written.exists();
        let late = monotonic_now() - time;
        events.answer();
        assert!(child.wait().unwrap().success() && written.exists());
        (file, ticket, (late < MAX_HOLD.as_nanos() as u64).then_some(has_run))
    };
    // It waits only up to a limit, and this test may be late.
    let held = (0..100).map(|_| run(&mut events)).find(|(.., has_run)| has_run.is_some());
    let (file, ticket, has_run) = held.unwrap();
    assert_eq!(ticket > 0, can_wait);
    assert!(!can_wait || has_run == Some(false), "it has run before its file was looked at");
    events.set_known(file, false, KnownUnless::default());
    assert_eq!(run(&mut events).1, 0, "nobody waits for what is known");
    // After one process has waited in vain, no other waits until there is an answer.
    events.forget_file(file);
    let unanswered = |events: &mut ProcessEvents| {
        let mut child = Command::new(&program).args(["-c", "true"]).spawn().unwrap();
        assert!(child.wait().unwrap().success());
        let told = of(events, child.id());
        told.iter().any(|change| matches!(change, ProcessChange::Executed { ticket, .. } if *ticket > 0))
    };
    assert_eq!([unanswered(&mut events), unanswered(&mut events)], [can_wait, false]);
    events.answer();
    // A process that is killed meanwhile has not waited in vain. This test may be late.
    let mut killed = || {
        let mut child = Command::new(&program).args(["-c", "read x"]).stdin(Stdio::piped()).spawn().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let is_next_held = unanswered(&mut events);
        events.answer();
        is_next_held
    };
    assert!(!can_wait || (0..100).any(|_| killed()), "who is killed goes on waiting");
    assert_eq!(run(&mut events).1 > 0, can_wait);
}

/// Also on a kernel without preemption: otherwise the thread that answers could not run before the limit.
#[test]
fn waiting_program_yields_its_cpu_as_root() {
    let directory = tempfile::tempdir().unwrap();
    let name = format!("yields{}", std::process::id());
    let program = directory.path().join(&name);
    std::fs::copy("/bin/true", &program).unwrap();
    let mut events =
        ProcessEvents::start(&Wanted { names: vec![name], ..Wanted::default() }, PidNamespace::default())
            .unwrap();
    let mut one = CpuSet::new();
    one.set(sched_getcpu());
    sched_setaffinity(None, &one).unwrap();
    let mut lets_run = || {
        let mut child = Command::new(&program).spawn().unwrap();
        let time = loop {
            if let Some(ProcessChange::Executed { time, .. }) = of(&mut events, child.id()).first() {
                break *time;
            }
        };
        let late = monotonic_now() - time;
        events.answer();
        assert!(child.wait().unwrap().success());
        late < MAX_HOLD.as_nanos() as u64
    };
    // This test may be late for other reasons.
    assert!((0..40).any(|_| lets_run()), "nobody else has run on the CPU");
}

#[test]
fn programs_matching_no_glob_are_ignored_as_root() {
    let directory = tempfile::tempdir().unwrap();
    let id = std::process::id();
    let [fits, other] = [format!("glob{id}-x"), format!("other{id}")].map(|name| {
        let path = directory.path().join(name);
        std::fs::copy("/bin/dash", &path).unwrap();
        path
    });
    let pattern = |text: String| Pattern::new(&text).unwrap();
    let wanted = Wanted {
        name_globs: vec![pattern(format!("nobody{id}*")), pattern(format!("glob{id}-[x-z]"))],
        line_globs: vec![pattern(format!("*needle{id} *"))],
        ..Wanted::default()
    };
    let mut events = ProcessEvents::start(&wanted, PidNamespace::default()).unwrap();
    let run_with = |events: &mut ProcessEvents, path: &std::path::Path, text: &str| {
        let mut child = Command::new(path).args(["-c", text]).spawn().unwrap();
        child.wait().unwrap();
        of(events, child.id())
    };
    let mut run = |path: &std::path::Path, text: &str| run_with(&mut events, path, text);
    let is_told = |changes: &[ProcessChange]| matches!(changes.first(), Some(ProcessChange::Executed { .. }));
    // The second time, the result of the globs is cached.
    for _ in 0..2 {
        assert!(is_told(&run(&fits, "true")));
        assert_eq!(run(&other, "true"), []);
    }
    assert!(is_told(&run(&other, &format!(": needle{id} ; true"))));
    assert_eq!(run(&other, &format!(": needle{id}; true")), []);
    // The same file by another name.
    let linked = directory.path().join(format!("glob{id}-y"));
    std::fs::hard_link(&other, &linked).unwrap();
    assert!(is_told(&run(&linked, "true")));
    assert_eq!(run(&other, "true"), []);
    let wanted = Wanted { line_globs: Vec::new(), ..wanted };
    let mut events = ProcessEvents::start(&wanted, PidNamespace::default()).unwrap();
    let mut rename = |name: &str| run_with(&mut events, &other, &format!("echo {name} > /proc/self/comm"));
    assert_eq!(rename("anybody"), []);
    let renamed = rename(&format!("nobody{id}"));
    assert!(
        matches!(&renamed[..], [ProcessChange::Renamed { .. }, ProcessChange::Ended { .. }]),
        "{renamed:?}"
    );
}

#[test]
fn excess_globs_are_matched_in_user_space() {
    let globs = |count: u32| Wanted {
        name_globs: (0..count).map(|n| Pattern::new(&format!("a{n}*")).unwrap()).collect(),
        ..Wanted::default()
    };
    let most = event_limit::MAX_EVENT_GLOBS.0;
    assert!(!globs(most).bounded().all);
    let all = globs(most + 1).bounded();
    assert!(all.all && all.name_globs.is_empty());
}

#[test]
fn reports_mappings_until_they_are_known_as_root() {
    let directory = tempfile::tempdir().unwrap();
    let name = format!("maps{}", std::process::id());
    let path = directory.path().join(&name);
    std::fs::copy("/bin/dash", &path).unwrap();
    let wanted = Wanted { names: vec![name], mappings: true, ..Wanted::default() };
    let mut events = ProcessEvents::start(&wanted, PidNamespace::default()).unwrap();
    assert!(events.reports_mappings());
    let mut mapped = || -> Vec<NamedFile> {
        let mut child = Command::new(&path).args(["-c", "true"]).spawn().unwrap();
        child.wait().unwrap();
        let file = |change| match change {
            ProcessChange::Mapped { file, .. } => Some(file),
            _ => None,
        };
        let told: Vec<_> = of(&mut events, child.id()).into_iter().filter_map(file).collect();
        told.iter().for_each(|file| events.set_library_known(*file));
        told
    };
    // The C library at least, and files that the loader has opened.
    let told = mapped();
    assert!(!told.is_empty() && told.iter().all(|of| of.file.inode != 0 && of.name != 0), "{told:?}");
    assert_eq!(mapped(), []);
    events.forget_library(told[0]);
    let path = directory.path().join("other");
    std::fs::copy("/bin/dash", &path).unwrap();
    let mut other = Command::new(path).args(["-c", "true"]).spawn().unwrap();
    other.wait().unwrap();
    assert_eq!(of(&mut events, other.id()), [], "of no interest");
}

#[test]
fn ignores_shared_mappings_as_root() {
    let directory = tempfile::tempdir().unwrap();
    let name = format!("data{}", std::process::id());
    let [program, private, shared] =
        [name.as_str(), "private", "shared"].map(|name| directory.path().join(name));
    std::os::unix::fs::symlink("/usr/bin/python3", &program).unwrap();
    std::fs::write(&private, [0; 4096]).unwrap();
    std::fs::write(&shared, [0; 4096]).unwrap();
    let wanted = Wanted { names: vec![name], mappings: true, ..Wanted::default() };
    let mut events = ProcessEvents::start(&wanted, PidNamespace::default()).unwrap();
    let text = "import mmap, sys\nfor path, flags in zip(sys.argv[1:], [mmap.MAP_PRIVATE, mmap.MAP_SHARED]):\n    \
                file = open(path, 'r+b')\n    \
                mmap.mmap(file.fileno(), 0, flags=flags)";
    let mut child = Command::new(&program).args(["-c", text]).args([&private, &shared]).spawn().unwrap();
    assert!(child.wait().unwrap().success());
    let told = of(&mut events, child.id());
    let number = |change: &ProcessChange| match change {
        ProcessChange::Mapped { file, .. } => Some(file.file.number),
        _ => None,
    };
    let numbers: Vec<u64> = told.iter().filter_map(number).collect();
    let is_told = |path: &PathBuf| numbers.contains(&path.metadata().unwrap().ino());
    assert_eq!([&private, &shared].map(is_told), [true, false], "{told:?}");
}

#[test]
fn name_has_keys_for_exe_and_comm() {
    let [exe, comm] = keys_of("bitcoind");
    assert_eq!(exe.unwrap()[..4], 8u32.to_ne_bytes());
    assert_eq!(comm.unwrap()[..4], u32::MAX.to_ne_bytes());
    assert_eq!(keys_of("a-name-of-16-byte")[1], None);
}

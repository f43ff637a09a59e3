use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Command;

use super::*;

/// Whether the thread has marked the file.
fn is_marked(path: &Path) -> bool {
    let wanted = format!("ino:{:x} ", fs::metadata(path).unwrap().ino());
    let threads = fs::read_dir("/proc/self/task").unwrap().flatten().map(|entry| entry.path());
    let mut gates =
        threads.filter(|of| fs::read_to_string(of.join("comm")).is_ok_and(|name| name == "exec-gate\n"));
    gates.any(|of| {
        let files = fs::read_dir(of.join("fdinfo")).unwrap().flatten();
        let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
        texts
            .flat_map(|text| text.lines().map(str::to_string).collect::<Vec<_>>())
            .any(|line| line.starts_with("fanotify ") && line.contains(&wanted))
    })
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Marks expire after a second: the action is repeated until one is seen.
fn until_marked(path: &Path, mut done: impl FnMut()) {
    let mut last: Option<Instant> = None;
    until(&format!("{} to be marked", path.display()), || {
        if last.is_none_or(|last| last.elapsed() > Duration::from_secs(1)) {
            done();
            last = Some(Instant::now());
        }
        is_marked(path)
    });
}

/// By another process: a descriptor open for writing here could leak into a child that another test starts.
fn copy(to: &Path) {
    assert!(Command::new("cp").arg("/bin/true").arg(to).status().unwrap().success());
}

#[test]
fn new_program_waits_for_managers_with_a_timeout_as_root() {
    let directory = tempfile::tempdir().unwrap();
    let [target, sibling] = ["app", "app.new"].map(|name| directory.path().join(name));
    let woken = LeaseBreaks::new().unwrap();
    let handle = GateHandle::new(Gate::prepare().expect("these tests need root"), &woken).unwrap();
    handle.follow(&[(7, target.clone())]);
    until_marked(&sibling, || copy(&sibling));
    let run = |path: &Path| {
        let mut command = Command::new(path);
        std::thread::spawn(move || command.status().unwrap().success())
    };
    // Answered at once.
    assert_eq!(handle.asked(), None);
    let running = run(&sibling);
    until("the manager to be asked", || handle.asked().is_some());
    handle.answer(handle.asked().unwrap());
    assert_eq!(handle.asked(), None);
    assert!(running.join().unwrap());
    // Never answered.
    fs::rename(&sibling, &target).unwrap();
    until_marked(&target, || {
        fs::rename(&target, &sibling).unwrap();
        fs::rename(&sibling, &target).unwrap();
    });
    assert!(run(&target).join().unwrap());
    until("the marks to go", || !is_marked(&target));
    until_marked(&target, || handle.expect(target.clone()));
    // No client is left to ask.
    drop(handle);
    assert!(run(&target).join().unwrap());
    until("the marks to go", || !is_marked(&target));
}
#[test]
fn watches_the_current_path_to_a_file_as_root() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().canonicalize().unwrap();
    let version = |name: &str| {
        fs::create_dir(at.join(name)).unwrap();
        copy(&at.join(name).join("app"));
        at.join(name).join("app")
    };
    let [first, second, third] = ["first", "second", "third"].map(version);
    let link = at.join("current");
    symlink("first", &link).unwrap();
    let woken = LeaseBreaks::new().unwrap();
    let handle = GateHandle::new(Gate::prepare().expect("these tests need root"), &woken).unwrap();
    handle.follow(&[(7, link.join("app"))]);
    until_marked(&first, || copy(&first));
    // Another directory, where something happens only later.
    let turn = || {
        symlink("second", at.join("next")).unwrap();
        fs::rename(at.join("next"), &link).unwrap();
    };
    until_marked(&second, turn);
    until("the marks to go", || !is_marked(&second));
    until_marked(&second, || copy(&second));
    until("the marks to go", || !is_marked(&second));
    // A mount causes no inotify event.
    let run = |program: &str, arguments: &[&str]| {
        Command::new(program).args(arguments).arg(&second).status().unwrap().success()
    };
    until_marked(&third, || assert!(run("mount", &["--bind", third.to_str().unwrap()])));
    until("the marks to go", || !is_marked(&third));
    until("all mounts to go", || !run("umount", &["-l", "-q"]));
    until("the marks to go", || !is_marked(&second));
    until_marked(&second, || {
        assert!(run("mount", &["--bind", third.to_str().unwrap()]) && run("umount", &["-l"]));
    });
}

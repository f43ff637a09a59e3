use super::*;
use crate::selectors::Selector;

fn called(name: &str) -> ProcessFilter {
    ProcessFilter::Matching(Selector::process(name).processes)
}

#[test]
fn rereads_only_requested_mappings() {
    let mut processes = Processes::of(vec![Some(called("app"))]);
    let process = Processes::default().look_at(std::process::id(), None).unwrap();
    for pid in 1..=20 {
        let libraries = (pid > 10).then(Vec::new);
        let comm = "app".to_string();
        processes.all.insert(pid, Process { pid, comm, libraries, ..process.clone() });
    }
    // Returns which ones were forgotten, and checks that they are read again.
    let mut forgotten = |are_told| -> Vec<u32> {
        processes.forget_some_libraries(are_told);
        let asked = processes.all.values_mut().filter(|process| process.pid > 10);
        let gone = asked.filter(|process| process.libraries.is_none());
        gone.map(|process| {
            process.libraries = Some(Vec::new());
            process.pid
        })
        .collect()
    };
    assert_eq!([forgotten(true), forgotten(true)], [[11, 12, 13, 14], [15, 16, 17, 18]]);
    assert_eq!([forgotten(true), forgotten(true)], [vec![19, 20], vec![11, 12, 13, 14]]);
    assert_eq!(forgotten(false), (15..=20).collect::<Vec<_>>());
    assert!(processes.all.values().all(|process| process.pid > 10 || process.libraries.is_none()));
    processes.take_changed();
    processes.all.values_mut().for_each(|process| process.libraries = None);
    processes.forget_some_libraries(false);
    assert_eq!(processes.take_changed(), BTreeSet::new());
}

#[test]
fn process_matches_by_any_name_of_its_file() {
    let path = ProcessFilter::Runs(vec!["app".to_string()], ProcessSelector::default());
    let mut processes = Processes::of(vec![Some(path), Some(called("other"))]);
    let process = Processes::default().look_at(std::process::id(), None).unwrap();
    let of = |comm: &str| Process { comm: comm.to_string(), exe: None, ..process.clone() };
    assert!(processes.matches(0, &of("app")) && !processes.matches(0, &of("app-1")));
    assert!(!processes.call(0, "app") && !processes.call(1, "app-1"));
    assert!(processes.call(0, "app-1") && !processes.call(0, "app-1"));
    assert!(processes.matches(0, &of("app-1")) && !processes.matches(1, &of("app-1")));
    for version in 2..=MAX_NAMES {
        processes.call(0, &format!("app-{version}"));
    }
    assert!(processes.matches(0, &of("app")) && processes.matches(0, &of(&format!("app-{MAX_NAMES}"))));
    assert!(!processes.matches(0, &of("app-1")));
}

#[test]
fn table_tracks_process_events() {
    let own = std::process::id();
    let me = Processes::default().look_at(own, None).unwrap();
    let filters = vec![
        None,
        // The thread's name is a prefix of it.
        Some(called(me.exe.as_deref().unwrap())),
        Some(called("nobody")),
        Some(ProcessFilter::Matching(Selector::pid(own).processes)),
    ];
    let mut processes = Processes::of(filters);
    let mut tell = |pid: u32, change| {
        let is_of_interest = processes.apply(&ProcessEvent { pid, change });
        (is_of_interest, processes.take_changed().into_iter().collect::<Vec<_>>())
    };
    let child = u32::MAX - 1;
    let executed = |cgroup| ProcessChange::Executed {
        file: Default::default(),
        path: "".into(),
        parent: 0,
        cgroup,
        fits_line: false,
        time: 0,
        ticket: 0,
    };
    assert_eq!(tell(own, executed(1)), (true, vec![1, 3]));
    assert_eq!(tell(child, ProcessChange::Forked { parent: own }), (true, vec![1]));
    assert_eq!(tell(child, ProcessChange::Renamed { comm: "x".into() }), (true, vec![1]));
    assert!(!tell(child, ProcessChange::Ended { signal: 0, time: 0 }).0);
    assert_eq!(tell(child, ProcessChange::Forked { parent: child }), (false, vec![]));
    assert_eq!(tell(own, ProcessChange::Ended { signal: 0, time: 0 }), (false, vec![1, 3]));
}

//! Targets by their properties: command lines, units, pods, images, parents, and the libraries that they load.

use std::fs;
use std::path::{Path, PathBuf};

use super::support::*;
use crate::support::exporter::{Place, Setup};
use crate::support::program::directory;
use crate::support::tracer::{Tracer, eventually};

/// Files that are removed when dropped.
struct Written(Vec<PathBuf>);

impl Written {
    fn file(&mut self, path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        self.0.push(path);
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
            // The directory that was created for the file.
            let _ = path.parent().map(fs::remove_dir);
        }
    }
}

fn program(at: &tempfile::TempDir, name: &str) -> PathBuf {
    let path = at.path().join(format!("{name}-{}", std::process::id() % 100_000));
    copy(&builds().path().join("first"), &path);
    path
}

fn name_of(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

fn id(n: u32) -> String {
    format!("{:08x}{}", std::process::id() ^ n << 24, "fedcba9876543210".repeat(4)[..56].to_owned())
}

fn run_with(program: &Path, arguments: &[&str]) {
    run(program.to_str().unwrap(), arguments);
}

#[test]
fn distinguishes_command_lines_from_the_first_hit() {
    let directory = directory();
    let path = program(&directory, "line");
    let name = name_of(&path);
    let mut anchor = Program::start(&path);
    let tracer = Tracer::start(&config(&[
        ("shop", &format!("process: {name}\n  cmdline: '*/{name} * --shop'")),
        ("any", &format!("process: '{}*'", &name[..name.len() - 1])),
        ("late", &format!("process: {name}\n  cmdline: '* the ?nd'")),
        ("title", &format!("process: {name}\n  cmdline: 'worker [0-9]*'")),
        ("whole", &format!("process: {name}\n  cmdline: '{}'", path.display())),
    ]));
    let alone = format!("cmdline: '*/{name} 0 --alone'");
    let mut alone_program = Program::of(std::process::Command::new(&path).args(["0", "--alone"]));
    let alone = Tracer::start(&config(&[("alone", &alone)]));
    alone_program.fire(6);
    assert_eq!(count(&alone, "alone_total"), 6);
    drop((alone, alone_program));
    let long = "x".repeat(6000);
    for _ in 0..20 {
        run_with(&path, &["1", "--shop"]);
        run_with(&path, &["100", "--shop", "more"]);
        run_with(&path, &["10000", &long, "the end"]);
    }
    assert_eq!((count(&tracer, "shop_total"), count(&tracer, "late_total")), (20, 200_000));
    assert_eq!(count(&tracer, "any_total"), 6 + 20 * 10_101);
    // A child has its parent's command line, a process may overwrite its own, and exec replaces it.
    anchor.fire(3);
    anchor.say("fork 4");
    anchor.say("title worker 7");
    anchor.fire(30);
    anchor.say("title worker x");
    anchor.fire(300);
    assert_eq!((count(&tracer, "whole_total"), count(&tracer, "title_total")), (7, 30));
    anchor.tell(&format!("exec {}", path.display()));
    anchor.fire(50);
    assert_eq!((count(&tracer, "whole_total"), count(&tracer, "title_total")), (57, 30));
    // Hits that were filtered out are reported.
    let hits = 6 + 20 * 10_101 + 3 + 4 + 30 + 300 + 50;
    assert_eq!(tracer.accounting_at_rest().iter().map(|of| of.hits).collect::<Vec<_>>(), [hits; 5]);
}

#[test]
fn command_line_overwritten_after_the_start_is_noticed() {
    let directory = directory();
    let path = program(&directory, "late");
    let title = format!("late worker {}", std::process::id());
    let tracer = Tracer::start_unready(&config(&[("late", &format!("cmdline: '{title}'"))]), false);
    let mut program = Program::start(&path);
    program.fire(5);
    program.say(&format!("title {title}"));
    eventually("a process with a new command line is found", || {
        program.fire(1);
        count(&tracer, "late_total") > 0
    });
    let before = count(&tracer, "late_total");
    program.fire(100);
    assert_eq!(count(&tracer, "late_total"), before + 100);
    eventually("what was not counted is reported", || !tracer.targets().unprobed[0].is_zero());
}

#[test]
fn matches_system_and_user_units_slices_and_templates() {
    let directory = directory();
    let path = program(&directory, "unit");
    let own = std::process::id();
    let slice = hierarchy().join(format!("demo{own}.slice"));
    let names = [
        format!("web{own}@one.service"),
        format!("web{own}@two.service/inner"),
        format!("user@1000.service/app.slice/web{own}.service"),
        format!("other{own}.service"),
    ];
    let groups: Vec<Cgroup> = names.iter().map(|name| Cgroup::new(slice.join(name))).collect();
    let mut programs: Vec<Program> = groups.iter().map(|group| group.start(&path)).collect();
    programs.iter_mut().for_each(|program| program.fire(0));
    let tracer = Tracer::start(&config(&[
        ("all", &format!("unit: demo{own}.slice")),
        ("instances", &format!("unit: web{own}@")),
        ("one", &format!("unit: web{own}@one.service")),
        ("user", &format!("unit: web{own}")),
    ]));
    for (program, times) in programs.iter_mut().zip([1, 10, 100, 1000]) {
        program.fire(times);
    }
    fire_at_once(&path, 10_000);
    let counts = || ["all", "instances", "one", "user"].map(|of| count(&tracer, &format!("{of}_total")));
    assert_eq!(counts(), [1111, 11, 1, 100]);
    // An instance that starts later counts from its first hit.
    let newer = Cgroup::new(slice.join(format!("web{own}@three.service")));
    let mut third = newer.start(&path);
    third.fire(5);
    assert_eq!(counts(), [1116, 16, 1, 100]);
}

#[test]
fn matches_pods_namespaces_images_and_container_names() {
    let directory = directory();
    let path = program(&directory, "pod");
    let own = std::process::id();
    let uid = |n: u32| format!("{own:08x}-2fa1-11d2-883f-0016d3cca42{n}");
    let mut written = Written(Vec::new());
    let pod = |n: u32, written: &mut Written| {
        let directory = PathBuf::from(format!("/var/log/pods/ns{own}-{n}_web{own}-{n}_{}", uid(n)));
        fs::create_dir_all(&directory).unwrap();
        written.0.push(directory);
    };
    let docker = |id: &str, name: &str, image: &str, written: &mut Written| {
        let text = format!(r#"{{"Name":"/{name}","Config":{{"Image":"{image}"}}}}"#);
        written.file(format!("/var/lib/docker/containers/{id}/config.v2.json").into(), &text);
    };
    pod(1, &mut written);
    docker(&id(1), &format!("name{own}"), &format!("registry:5000/image{own}:3"), &mut written);
    let [first, second, third, fourth] = [1, 2, 3, 4].map(id);
    let systemd =
        format!("kubepods{own}.slice/kubepods{own}-burstable-pod{}.slice", uid(1).replace('-', "_"));
    let systemd = format!("{systemd}/cri-containerd-{second}.scope");
    let groups = [format!("docker-{first}.scope"), systemd];
    let groups = groups.map(|name| Cgroup::new(hierarchy().join(name)));
    let mut programs = groups.each_ref().map(|group| group.start(&path));
    programs.iter_mut().for_each(|program| program.fire(0));
    let process = name_of(&path);
    let config = config(&[
        ("pods", &format!("pod: web{own}-*")),
        ("two", &format!("pod: web{own}-2\n  namespace: ns{own}-*")),
        ("space", &format!("namespace: ns{own}-1")),
        ("image", &format!("image: image{own}")),
        ("named", &format!("container: name{own}")),
        ("globbed", &format!("container: 'name{own}*'\n  process: {process}")),
    ]);
    let tracer = Tracer::start_unready(&config, false);
    programs[0].fire(1);
    programs[1].fire(10);
    fire_at_once(&path, 10_000);
    let counts = || {
        ["pods", "two", "space", "image", "named", "globbed"].map(|of| count(&tracer, &format!("{of}_total")))
    };
    assert_eq!(counts(), [10, 0, 10, 1, 1, 1]);
    // Later ones, created by cgroupfs, as the kubelet may be configured to do, and by another engine.
    pod(2, &mut written);
    docker(&third, &format!("name{own}-b"), "other", &mut written);
    let later = [format!("kubepods{own}/pod{}/{fourth}", uid(2)), format!("docker-{third}.scope")];
    let later = later.map(|name| Cgroup::new(hierarchy().join(name)));
    let mut newer = later.each_ref().map(|group| group.start(&path));
    // The engine names a container long before it runs its program; here both happen at once.
    eventually("the newer ones are told", || {
        newer.iter_mut().for_each(|program| program.fire(1));
        let now = counts();
        now[0] > 10 && now[1] > 0 && now[5] > 1
    });
    let before = counts();
    newer[0].fire(100);
    newer[1].fire(1000);
    fire_at_once(&path, 10_000);
    let more: Vec<u64> = counts().iter().zip(before).map(|(now, before)| now - before).collect();
    assert_eq!(more, [100, 100, 0, 0, 0, 1000]);
}

/// A kubelet with systemd's cgroups above a runtime without: the names of the pod and the container are one.
#[test]
fn matches_pods_and_containers_of_joined_names() {
    let directory = directory();
    let path = program(&directory, "joined");
    let own = std::process::id();
    let uid = format!("{own:08x}-2fa1-11d2-883f-0016d3cca43");
    let mut written = Written(Vec::new());
    let [first, second] = [10, 11].map(id);
    let joined = |n: u32, runtime: &str, id: &str| {
        let pod = PathBuf::from(format!("/var/log/pods/ns{own}_joined{own}-{n}_{uid}{n}"));
        fs::create_dir_all(&pod).unwrap();
        let uid = format!("{uid}{n}").replace('-', "_");
        let cgroup = format!("kubelet-kubepods-besteffort-pod{uid}.slice:{runtime}:{id}");
        (pod, Cgroup::new(hierarchy().join(cgroup)))
    };
    let [(pod, one), (other, two)] = [joined(1, "cri-containerd", &first), joined(2, "crio", &second)];
    written.0.extend([pod, other]);
    let tracer = Tracer::start_unready(
        &config(&[
            ("whole", &format!("container: \"{first}\"")),
            ("short", &format!("container: \"{}\"", &second[..12])),
            ("pod", &format!("pod: joined{own}-1")),
            ("space", &format!("namespace: ns{own}")),
        ]),
        false,
    );
    for (group, times, targets) in [(one, 3, [0, 2, 3]), (two, 50, [1, 1, 3])] {
        let mut program = group.start(&path);
        program.fire(0);
        eventually("it is attached", || targets.iter().all(|target| tracer.state(*target).1 > 0));
        program.fire(times);
    }
    let counts = ["whole", "short", "pod", "space"].map(|of| count(&tracer, &format!("{of}_total")));
    assert_eq!(counts, [3, 50, 3, 53]);
}

/// Docker and the kubelet give every container its own, in which `/proc` shows `/../ID` for a container of the same pod.
#[test]
fn exporter_in_a_cgroup_namespace_knows_whole_paths() {
    let (place, directory) = (Place::new(), directory());
    let path = program(&directory, "shown");
    let own = std::process::id();
    let uid = format!("{own:08x}-2fa1-11d2-883f-0016d3cca441");
    let mut written = Written(Vec::new());
    let pod = PathBuf::from(format!("/var/log/pods/ns{own}_shown{own}_{uid}"));
    fs::create_dir_all(&pod).unwrap();
    written.0.push(pod);
    let slice = hierarchy().join(format!("shown{own}.slice"));
    let [exporter, program] = [12, 13].map(|n| Cgroup::new(slice.join(format!("pod{uid}/{}", id(n)))));
    let enter = format!("echo $$ > {}/cgroup.procs && exec unshare --cgroup \"$@\"", exporter.0.display());
    let yaml = config(&[("unit", &format!("unit: shown{own}.slice")), ("pod", &format!("pod: shown{own}"))]);
    let running = Setup::new(&place, yaml).through(&["sh", "-c", &enter, "sh"]).start();
    let mut program = program.start(&path);
    program.fire(0);
    let is_attached = |text: String| {
        text.lines().filter(|line| line.starts_with("fibre_exporter_probe_attached{")).count() == 2
    };
    eventually("both are attached", || is_attached(running.text()));
    program.fire(7);
    let counts = ["unit", "pod"].map(|of| running.scrape().sum(&format!("{of}_total"), &[]));
    assert_eq!(counts, [7.0, 7.0]);
    running.stop();
}

/// A node of kind or k3d: a container with a kubelet, whose files only its own processes see.
#[test]
fn names_of_containers_in_a_container_are_those_of_its_engine() {
    let directory = directory();
    let path = program(&directory, "inner");
    let own = std::process::id();
    let uid = format!("{own:08x}-2fa1-11d2-883f-0016d3cca451");
    let (node, container) = (id(14), id(15));
    let node = Cgroup::new(hierarchy().join(format!("docker-{node}.scope")));
    let inner = Cgroup::new(node.0.join(format!("kubelet/kubepods/burstable/pod{uid}/{container}")));
    let script = format!(
        "echo $$ > {}/cgroup.procs && exec unshare --mount sh -ec 'mount -t tmpfs none /var/log
        mkdir -p /var/log/pods/ns{own}_inner{own}_{uid} /var/log/containers
        touch /var/log/containers/inner{own}_ns{own}_name{own}-{container}.log
        echo ready; exec cat'",
        node.0.display()
    );
    let mut kubelet = Program::of(std::process::Command::new("sh").args(["-c", &script]));
    assert_eq!(kubelet.answer(), "ready");
    let targets = [("pod", format!("pod: inner{own}")), ("named", format!("container: name{own}"))];
    let tracer =
        Tracer::start_unready(&config(&targets.each_ref().map(|(name, by)| (*name, by.as_str()))), false);
    let mut program = inner.start(&path);
    program.fire(0);
    eventually("both are attached", || tracer.state(0).1 > 0 && tracer.state(1).1 > 0);
    program.fire(7);
    assert_eq!(["pod_total", "named_total"].map(|of| count(&tracer, of)), [7, 7]);
}

/// It maps each new file to identify it, and a process that maps a file may be loading a library.
#[test]
fn exporter_that_selects_itself_does_not_hold_itself_up() {
    let (place, directory) = (Place::new(), directory());
    let path = program(&directory, "beside");
    let own = std::process::id();
    let unit = Cgroup::new(hierarchy().join(format!("itself{own}.service")));
    let enter = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", unit.0.display());
    let unit_is = format!("unit: itself{own}");
    let yaml = config(&[("unit", &unit_is), ("library", &format!("library: libitself.so\n  {unit_is}"))]);
    let running = Setup::new(&place, yaml).through(&["sh", "-c", &enter, "sh"]).start();
    run("sh", &["-c", &enter, "sh", path.to_str().unwrap(), "7"]);
    if can_make_wait() {
        running.scrape_until("the first start to be counted", |scrape| scrape.sum("unit_total", &[]) == 7.0);
    }
    running.stop();
}

#[test]
fn removed_container_retains_its_labels() {
    let directory = directory();
    let path = program(&directory, "gone");
    let own = std::process::id();
    let mut written = Written(Vec::new());
    let text = format!(r#"{{"Name":"/gone{own}","Config":{{"Image":"image{own}"}}}}"#);
    written.file(format!("/var/lib/docker/containers/{}/config.v2.json", id(9)).into(), &text);
    let tracer = Tracer::start_unready(
        &format!(
            "node_name: test\ntargets:\n- name: gone\n  container: gone{own}\n  probes:\n  - on: usdt:t:hit\n    metrics: \
             [{{ counter: gone_total, labels: {{ container: container, image: image }} }}]\n"
        ),
        false,
    );
    let group = Cgroup::new(hierarchy().join(format!("docker-{}.scope", id(9))));
    let mut program = group.start(&path);
    eventually("it is counted", || {
        program.fire(1);
        tracer.accounting(0).aggregated > 0
    });
    let counted = tracer.accounting_at_rest()[0].aggregated;
    drop((program, group, written));
    let series = format!("gone_total{{container=\"gone{own}\",image=\"image{own}\"}}");
    assert_eq!(tracer.render().get(&series), Some(&counted.to_string()), "{:?}", tracer.render());
}

#[test]
fn recreated_container_or_unit_continues_its_series() {
    let directory = directory();
    let path = program(&directory, "again");
    let own = std::process::id();
    let mut written = Written(Vec::new());
    let docker = |id: &str, written: &mut Written| {
        let text = format!(r#"{{"Name":"/again{own}","Config":{{"Image":"image"}}}}"#);
        written.file(format!("/var/lib/docker/containers/{id}/config.v2.json").into(), &text);
    };
    let [first, second] = [5, 6].map(id);
    let unit = format!("again{own}.service");
    let text = ["container", "unit"].map(|kind| {
        let selector = if kind == "unit" { unit.clone() } else { format!("again{own}") };
        format!(
            "- name: {kind}\n  {kind}: {selector}\n  probes:\n  - on: usdt:t:hit\n    \
             metrics: [{{ counter: {kind}_total, labels: {{ {kind}: {kind} }} }}]\n"
        )
    });
    let tracer = Tracer::start_unready(&format!("node_name: test\ntargets:\n{}", text.concat()), false);
    let counts = || {
        let series = tracer.render();
        [("container", format!("again{own}")), ("unit", unit.clone())].map(|(kind, name)| {
            let all = series.iter().filter(|(series, _)| series.starts_with(&format!("{kind}_total")));
            let all: Vec<_> = all.map(|(series, value)| (series.as_str(), value.as_str())).collect();
            match all.as_slice() {
                [] => 0,
                [(series, value)] if *series == format!("{kind}_total{{{kind}=\"{name}\"}}") => {
                    value.parse::<u64>().unwrap()
                }
                other => panic!("{other:?}"),
            }
        })
    };
    let mut before = [0, 0];
    for (turn, id) in [first, second].iter().enumerate() {
        docker(id, &mut written);
        // The programs of a recreated container are different files, too.
        let path = directory.path().join(format!("{turn}-{}", name_of(&path)));
        copy(&builds().path().join(if turn == 0 { "first" } else { "second" }), &path);
        let groups =
            [format!("docker-{id}.scope"), unit.clone()].map(|name| Cgroup::new(hierarchy().join(name)));
        let mut programs = groups.each_ref().map(|group| group.start(&path));
        eventually("it is counted", || {
            programs.iter_mut().for_each(|program| program.fire(1));
            let now = counts();
            (0..2).all(|at| now[at] > before[at])
        });
        before = counts();
        programs.iter_mut().for_each(|program| program.fire(1000));
        assert_eq!(counts(), before.map(|count| count + 1000));
        before = before.map(|count| count + 1000);
        drop(programs);
        drop(groups);
        fs::remove_file(written.0.last().unwrap()).unwrap();
    }
    assert_eq!(counts(), before);
}

#[test]
fn children_are_traced_across_fork_exec_and_orphaning() {
    let directory = directory();
    let (parent, other) = (program(&directory, "parent"), program(&directory, "other"));
    let name = name_of(&parent);
    // A shell with another name is in between, and runs another program.
    let mut boss = Program::start(&parent);
    boss.fire(0);
    let selector = format!("process: {name}\n  children: true");
    let tracer = Tracer::start(&config(&[
        ("family", &selector),
        ("file", &format!("binary: {}", other.display())),
        ("both", &format!("binary: {}\n  {selector}", other.display())),
    ]));
    boss.fire(1);
    boss.say("fork 10");
    boss.say(&format!("run {} 100 < /dev/null", other.display()));
    assert_eq!(count(&tracer, "file_total"), 100);
    assert_eq!(count(&tracer, "both_total"), 100, "from its first hit on");
    fire_at_once(&other, 1000);
    assert_eq!((count(&tracer, "file_total"), count(&tracer, "both_total")), (1100, 100));
    // Its file is found: processes that run it belong to the target.
    eventually("the child's file is attached to", || {
        let before = count(&tracer, "family_total");
        boss.say(&format!("run (sleep 0.3; echo 1) | {} 0 > /dev/null", other.display()));
        count(&tracer, "family_total") > before
    });
    let before = count(&tracer, "family_total");
    fire_at_once(&other, 1000);
    assert_eq!(count(&tracer, "family_total"), before);
    // A child that outlives its parent.
    boss.say("leave 500");
    drop(boss);
    eventually("the orphan has fired", || count(&tracer, "family_total") >= before + 500);
    assert_eq!(count(&tracer, "family_total"), before + 500);
}

#[test]
fn finds_children_started_earlier() {
    let directory = directory();
    let (parent, other) = (program(&directory, "begun"), program(&directory, "old"));
    let name = name_of(&parent);
    let mut boss = Program::start(&parent);
    let fifo = directory.path().join("fifo");
    run("mkfifo", &[fifo.to_str().unwrap()]);
    boss.tell(&format!("run {} < {}", other.display(), fifo.display()));
    let mut to_child = fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    let tracer = Tracer::start_unready(
        &config(&[("both", &format!("binary: {}\n  process: {name}\n  children: true", other.display()))]),
        false,
    );
    fire_at_once(&other, 1000);
    std::io::Write::write_all(&mut to_child, b"70\n").unwrap();
    drop(to_child);
    boss.fire(0);
    assert_eq!(count(&tracer, "both_total"), 70);
}

fn library_of(directory: &Path, name: &str, soname: &str) -> PathBuf {
    let path = directory.join(name);
    let soname = format!("-Wl,-soname,{soname}");
    build(&path, &["-O1", "-DLIBRARY", "-DPAD=1", "-shared", "-fPIC", &soname]);
    path
}

#[test]
fn library_matches_every_loaded_file_of_its_name() {
    let directory = directory();
    let (path, stranger) = (program(&directory, "loads"), program(&directory, "stranger"));
    let name = name_of(&path);
    let at = |inner: &str| {
        let at = directory.path().join(inner);
        fs::create_dir_all(&at).unwrap();
        at
    };
    let plain = library_of(&at("a"), "libdemo.so.1", "libdemo.so.1");
    let linked = library_of(&at("b"), "libdemo.so.1.2.3", "libdemo.so.1");
    let other = library_of(&at("c"), "libother.so.1", "libother.so.1");
    let mut first = Program::start(&path);
    first.say(&format!("open {}", plain.display()));
    let probes = "probes:\n  - function: fire\n    metrics: [{ counter: demo_total }]";
    let yaml = format!(
        "node_name: test\ntargets:\n- name: demo\n  library: libdemo.so.1\n  process: {name}\n  {probes}\n"
    );
    let tracer = Tracer::start(&yaml);
    first.fire(3);
    assert_eq!(count(&tracer, "demo_total"), 3);
    // Other processes may load it, but do not belong to the target. And a library of another name does not match.
    let mut foreign = Program::start(&stranger);
    foreign.say(&format!("open {}", plain.display()));
    foreign.fire(1000);
    let mut unlike = Program::start(&path);
    unlike.say(&format!("open {}", other.display()));
    unlike.fire(1000);
    assert_eq!(count(&tracer, "demo_total"), 3);
    // Loaded later, by its soname; and from a memfd.
    let mut second = Program::start(&path);
    second.fire(0);
    second.say(&format!("open {}", linked.display()));
    until_sites(&tracer, 0, 2);
    second.fire(10);
    let mut third = Program::start(&path);
    third.say(&format!("load {}", plain.display()));
    until_sites(&tracer, 0, 3);
    third.fire(100);
    assert_eq!(count(&tracer, "demo_total"), 113);
    assert_eq!(tracer.accounting_at_rest()[0].hits, 1113);
}

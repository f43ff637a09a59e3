use super::*;

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).unwrap()
}

fn read(key: &str, text: &str) -> Predicate {
    KEYS.iter().find(|known| known.name == key).unwrap().read(text).unwrap()
}

fn facts(belongs: &Belongs) -> ProcessFacts<'_> {
    ProcessFacts { pid: 7, comm: "java", exe: Some("java"), cmdline: "java -jar /srv/shop.jar", belongs }
}

fn web() -> Belongs {
    let id = "0123456789abcdef".repeat(4);
    let path = format!(
        "/kubepods.slice/kubepods-pod0123456789abcdef0123456789abcdef.slice/cri-containerd-{id}.scope"
    );
    let mut web = Belongs::parse(&path);
    web.containers[0].name = Some("web".into());
    web.containers[0].image = Some("registry.example:5000/library/nginx:1.27@sha256:00".into());
    let pod = web.pod.as_mut().unwrap();
    (pod.name, pod.namespace) = ("web-7f9-x2".into(), "shop".into());
    web
}

#[test]
fn each_predicate_matches_its_own_facts() {
    let web = web();
    let yes = [
        ("process", "java"),
        ("process", "j*"),
        ("cmdline", "*/shop.jar"),
        ("cmdline", "java -jar *"),
        ("container", "web"),
        ("container", "w?b"),
        ("container", "01234567"),
        ("image", "nginx"),
        ("image", "nginx:1.27"),
        ("image", "library/nginx"),
        ("image", "registry.example:5000/library/nginx"),
        ("image", "ngin*"),
        ("unit", "kubepods.slice"),
        ("unit", "cri-containerd-*"),
        ("pod", "web-*"),
        ("namespace", "shop"),
    ];
    for (key, text) in yes {
        assert!(read(key, text).fits(&facts(&web)), "{key}: {text}");
    }
    let no = [
        ("process", "jav"),
        ("cmdline", "shop.jar"),
        ("container", "we"),
        ("container", "0123456"),
        ("container", "12345678"),
        ("image", "ngin"),
        ("image", "1.27"),
        ("unit", "kubepods"),
        ("pod", "web"),
        ("namespace", "sho"),
    ];
    for (key, text) in no {
        assert!(!read(key, text).fits(&facts(&web)), "{key}: {text}");
    }
}

#[test]
fn all_predicates_must_hold_and_none_match_nothing() {
    let web = web();
    let who = |predicates| ProcessSelector { predicates, children: false };
    assert!(who(vec![read("pod", "web-*"), read("process", "java")]).fits(&facts(&web)));
    assert!(!who(vec![read("pod", "web-*"), read("process", "perl")]).fits(&facts(&web)));
    assert!(!who(vec![]).fits(&facts(&web)));
    assert!(who(vec![read("pod", "web-*"), read("process", "perl")]).matches_cgroup(&web));
    assert!(!who(vec![read("process", "java")]).matches_cgroup(&web));
}

#[test]
fn unit_names_follow_systemctl() {
    let unit = |text: &str| match read("unit", text) {
        Predicate::Unit(pattern) => pattern.text().to_owned(),
        other => panic!("{other}"),
    };
    assert_eq!(unit("nginx"), "nginx.service");
    assert_eq!(unit("postgresql@.service"), "postgresql@*.service");
    assert_eq!(unit("postgresql@15-main"), "postgresql@15-main.service");
    assert_eq!(unit("app-*.slice"), "app-*.slice");
    assert_eq!(unit("getty@"), "getty@*.service");
}

#[test]
fn cgroup_members_and_kernel_tests() {
    let web = web();
    let id = "0123456789abcdef".repeat(4);
    assert_eq!(read("image", "nginx").members(&web), [id]);
    assert_eq!(read("pod", "web-*").members(&web), ["0123456789abcdef0123456789abcdef"]);
    assert!(read("pod", "db-*").members(&web).is_empty());
    assert_eq!(read("container", "0123456789ab").test(), KernelTest::Members { begin: Some("0123456789ab") });
    assert_eq!(read("container", "web").test(), KernelTest::Members { begin: None });
}

#[test]
fn truncated_name_does_not_match() {
    let belongs = Belongs::default();
    let is = |name: &str, comm, exe| {
        read("process", name).fits(&ProcessFacts { comm, exe: Some(exe), ..facts(&belongs) })
    };
    assert!(is("fifteen-letters", "fifteen-letters", "fifteen-letters"));
    assert!(!is("fifteen-letters", "fifteen-letters", "fifteen-letters-and-more"));
    assert!(!is("*-letters", "fifteen-letters", "fifteen-letters-and-more"));
    assert!(is("*-more", "fifteen-letters", "fifteen-letters-and-more"));
    assert!(is("fifteen-letters", "fifteen-letters", "sh"), "a script");
    assert!(is("fifteen", "fifteen", "fifteen-letters"), "it calls itself so");
}

#[test]
fn command_line_words_are_joined_by_single_spaces() {
    assert_eq!(command_line(b"java\0-jar\0\0a b.jar\0"), "java -jar a b.jar");
    assert_eq!(command_line(b"postgres: idle\0\0\0\0"), "postgres: idle");
    assert_eq!(command_line(b""), "");
    assert_eq!(command_line(&vec![b'x'; 40_000]).len(), CMDLINE_BYTES);
    assert!(pattern("*b.jar").matches(&command_line(b"a\0b.jar\0")));
}

#[test]
fn rejects_overlong_patterns_even_without_wildcards() {
    let read = |key: &str, text: &str| KEYS.iter().find(|known| known.name == key).unwrap().read(text);
    let long = "x".repeat(128);
    for key in ["cmdline", "unit"] {
        assert_eq!(read(key, &long), Err(PatternError::TooManyParts), "{key}");
        assert!(read(key, &long[..100]).is_ok(), "{key}");
    }
    assert!(read("process", &long).is_ok());
}

#[test]
fn a_process_id_is_absent_once_its_process_has_ended() {
    let by = |pid| ProcessSelector { predicates: vec![Predicate::Pid(pid)], children: false };
    assert_eq!(by(std::process::id()).absent_pid(), None);
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    assert_eq!(by(child.id()).absent_pid(), Some(child.id()));
    let by_name = ProcessSelector { predicates: Vec::new(), children: false };
    assert_eq!(by_name.absent_pid(), None);
}

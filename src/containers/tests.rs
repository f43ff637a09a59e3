use std::process::Command;

use super::*;

impl Containers {
    fn name(&self, id: &str) -> Option<String> {
        self.find(id, false).0.name
    }
}

fn write(path: PathBuf, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn finds_docker_and_podman_names() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = ("0123456789abcdef".repeat(4), "fedcba9876543210".repeat(4));
    let containers = Containers::below(directory.path());
    assert_eq!((containers.name(&first), containers.id("bitcoin")), (None, None), "no engine at all");
    let docker = directory.path().join("var/lib/docker/containers");
    let config = r#"{"ID":"x","Name":"/bitcoin","Config":{"Image":"btc:27"}}"#;
    write(docker.join(&first).join("config.v2.json"), config);
    let podman = directory.path().join("var/lib/containers/storage/overlay-containers/containers.json");
    let entry =
        r#","names":["relay"],"layer":"x","metadata":"{\"image-name\":\"docker.io/library/relay:1\"}"}]"#;
    write(podman.clone(), &format!(r#"[{{"id":"{second}"{entry}"#));
    assert_eq!(containers.name(&first).as_deref(), Some("bitcoin"));
    assert_eq!(containers.name(&second).as_deref(), Some("relay"));
    assert_eq!(containers.id("bitcoin"), Some(first.clone()));
    assert_eq!(containers.id("relay"), Some(second.clone()));
    assert_eq!(containers.id(&second[..12]), Some(second.clone()));
    assert_eq!(containers.id("nobody"), None);
    let images: Vec<_> = containers.list().filter_map(|container| container.image).collect();
    assert_eq!(images, ["btc:27", "docker.io/library/relay:1"]);
    write(podman, "not JSON");
    assert_eq!(containers.id("relay"), None);
}

/// Users write below their home directories, and a container writes its own files.
#[test]
fn pipes_and_endless_files_of_users_are_ignored() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let docker = root.join("home/user/.local/share/docker/containers");
    let storage = root.join("home/user/.local/share/containers/storage/overlay-containers");
    for path in [docker.join("a".repeat(64)), storage.clone(), root.join("etc/containers")] {
        fs::create_dir_all(path).unwrap();
    }
    for pipe in [
        docker.join("a".repeat(64)).join("config.v2.json"),
        storage.join("containers.json"),
        root.join("etc/containers/storage.conf"),
        root.join("etc/passwd"),
    ] {
        assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
    }
    std::os::unix::fs::symlink("/dev/zero", storage.join("volatile-containers.json")).unwrap();
    assert_eq!(Containers::below(root).id("name"), None);
}

#[test]
fn finds_engines_with_other_data_directories() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let id = |digit: &str| digit.repeat(64);
    let docker = |at: &str, of: &str, name: &str| {
        let config = format!(r#"{{"Name":"/{name}","Config":{{"Image":"x"}}}}"#);
        write(root.join(at).join("containers").join(id(of)).join("config.v2.json"), &config);
    };
    let storage = |at: &str, of: &str, name: &str, metadata: &str| {
        let list = format!(r#"[{{"id":"{}","names":["{name}"],"metadata":"{metadata}"}}]"#, id(of));
        write(root.join(at).join("overlay-containers/volatile-containers.json"), &list);
    };
    write(root.join("etc/docker/daemon.json"), r#"{"data-root":"/data/docker"}"#);
    let settings =
        "[storage]\ndriver = \"overlay\"\n# graphroot = \"/no\"\ngraphroot = \"/data/podman\" # larger\n";
    write(root.join("etc/containers/storage.conf"), settings);
    write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nci:x:990:990::/srv/ci:/bin/sh\nx:x:1:1::/:\n");
    docker("data/docker", "a", "moved");
    docker("srv/ci/.local/share/docker", "b", "rootless");
    storage("data/podman", "c", "pod", "");
    storage("srv/ci/.local/share/containers/storage", "d", "mine", "");
    let crio = r#"{\"metadata-name\":\"nginx\",\"image-name\":\"nginx:1\"}"#;
    storage("home/directory/.local/share/containers/storage", "e", "k8s_nginx_web_shop_uid_0", crio);
    let bundle = format!("run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io/{}/config.json", id("f"));
    write(root.join(bundle), r#"{"annotations":{"io.kubernetes.cri.container-name":"coredns"}}"#);
    let containers = Containers::below(root);
    let named =
        [("a", "moved"), ("b", "rootless"), ("c", "pod"), ("d", "mine"), ("e", "nginx"), ("f", "coredns")];
    for (of, name) in named {
        assert_eq!(containers.name(&id(of)).as_deref(), Some(name), "{name}");
    }
    assert_eq!(containers.id("rootless"), Some(id("b")));
}

#[test]
fn container_monitor_is_not_in_the_container() {
    let id = "0123456789abcdef".repeat(4);
    for inside in
        [format!("0::/machine.slice/libpod-{id}.scope/container\n"), format!("12:cpu:/docker/{id}\n0::/\n")]
    {
        assert!(are_in_container(&inside, &id) && are_in_container(&inside, &id[..8]), "{inside}");
        assert!(!are_in_container(&inside, &id[..7]) && !are_in_container(&inside, &id[1..]), "{inside}");
    }
    let watcher = format!("0::/machine.slice/libpod-conmon-{id}.scope\n");
    assert!(!are_in_container(&watcher, &id));
}

#[test]
fn finds_kubernetes_names() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let (id, uid) = ("0123456789abcdef".repeat(4), "1b4e28ba-2fa1-11d2-883f-0016d3cca427");
    let path = format!("/kubepods/burstable/pod{uid}/{id}");
    let mut containers = Containers::below(root);
    let mut belongs = Belongs::parse(&path);
    containers.describe(&mut belongs);
    assert!(belongs.is_unnamed());
    fs::create_dir_all(root.join(format!("var/log/pods/shop_web-7f9_{uid}"))).unwrap();
    write(root.join(format!("var/log/containers/web-7f9_shop_nginx-{id}.log")), "");
    let bundle = format!("run/containerd/io.containerd.runtime.v2.task/k8s.io/{id}/config.json");
    write(
        root.join(bundle),
        r#"{"annotations":{"io.kubernetes.cri.image-name":"docker.io/library/nginx:1.27"}}"#,
    );
    containers.describe(&mut belongs);
    let pod = Pod { uid: uid.into(), name: "web-7f9".into(), namespace: "shop".into() };
    assert_eq!(belongs.pod, Some(pod));
    let image = Some("docker.io/library/nginx:1.27".to_owned());
    assert_eq!(belongs.containers, [Container { id, name: Some("nginx".into()), image }]);
    assert!(!belongs.is_unnamed());
}

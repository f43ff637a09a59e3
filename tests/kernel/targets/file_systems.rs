//! Whatever a file system does with inodes, times and leases, the counts are the same.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use super::support::*;
use crate::support::program::directory;
use crate::support::tracer::{Tracer, eventually};

/// Mounts a file system in an image of this size, formatted with this program.
fn mounted_image(directory: &Path, kind: &str, megabytes: u64, make: &[&str]) -> Mounted {
    let image = directory.join("image");
    if megabytes > 0 {
        File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
    }
    let made = Command::new(make[0]).args(&make[1..]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    Mounted::at(&directory.join("mounted"), &["mount", "-t", kind, "-o", "loop", image.to_str().unwrap()])
}

/// Waits until each start of the file is counted for both targets, exactly.
fn counted_again(tracer: &Tracer, program: &Path) {
    let both = || [count(tracer, "path_total"), count(tracer, "name_total")];
    eventually("the file to be traced", || {
        let before = both();
        fire_at_once(program, 1);
        let is_counted = both() == before.map(|count| count + 1);
        is_counted && {
            std::thread::sleep(std::time::Duration::from_millis(50));
            let before = both();
            fire_at_once(program, 1);
            both() == before.map(|count| count + 1)
        }
    });
}

/// Traces a program that is already there and can only be run.
fn runs(at: &Path, name: &str) -> (Tracer, Program) {
    let path = at.join(name);
    let mut running = Program::start(&path);
    let tracer = Tracer::start(&config(&[
        ("path", &format!("binary: {}", path.display())),
        ("name", &format!("process: {name}")),
    ]));
    running.fire(100);
    fire_at_once(&path, 10);
    assert_eq!((count(&tracer, "path_total"), count(&tracer, "name_total")), (110, 110));
    (tracer, running)
}

/// Does everything to the file that may be done to it, besides running it.
fn lives(at: &Path, builds: &Path, name: &str) {
    let path = at.join(name);
    let [first, second] = ["first", "second"].map(|build| builds.join(build));
    let (tracer, mut running) = runs(at, name);
    let expect = |what: &str, times: u64, fire: &mut dyn FnMut()| {
        let before = [count(&tracer, "path_total"), count(&tracer, "name_total")];
        fire();
        let now = [count(&tracer, "path_total"), count(&tracer, "name_total")];
        assert_eq!(now, before.map(|count| count + times), "{what}");
    };
    // Another file with the same contents, even with the same blocks, is not the target.
    let other = at.join("another");
    run("cp", &["--reflink=auto", path.to_str().unwrap(), other.to_str().unwrap()]);
    expect("a copy", 0, &mut || fire_at_once(&other, 1000));
    // On overlayfs this creates another file.
    run("chmod", &["711", path.to_str().unwrap()]);
    counted_again(&tracer, &path);
    expect("the file with another mode", 20, &mut || fire_at_once(&path, 20));
    expect("the process that ran before", 5, &mut || running.fire(5));
    let new = at.join(format!("{name}.new"));
    copy(&second, &new);
    run("mv", &[new.to_str().unwrap(), path.to_str().unwrap()]);
    counted_again(&tracer, &path);
    expect("what was renamed over it", 30, &mut || fire_at_once(&path, 30));
    copy(&first, &path);
    counted_again(&tracer, &path);
    expect("what was written over it", 40, &mut || fire_at_once(&path, 40));
    let script = "until truncate -s 0 $1; do sleep 0.02; done; cat $0 > $1";
    run("sh", &["-c", script, second.to_str().unwrap(), path.to_str().unwrap()]);
    counted_again(&tracer, &path);
    expect("what was truncated and written", 50, &mut || fire_at_once(&path, 50));
    expect("the process that still runs", 6, &mut || running.fire(6));
    fs::remove_file(&path).unwrap();
    expect("a process whose file is deleted", 7, &mut || running.fire(7));
    assert_eq!(tracer.stray(), 0);
}

fn named(kind: &str) -> String {
    format!("{kind}{}", std::process::id() % 100_000)
}

fn lives_on(kind: &str, mount: impl Fn(&Path) -> Mounted) {
    let (builds, directory, name) = (builds(), directory(), named(kind));
    let mounted = mount(directory.path());
    copy(&builds.path().join("first"), &mounted.at.join(&name));
    lives(&mounted.at, builds.path(), &name);
}

#[test]
fn in_memory() {
    lives_on("tmpfs", |directory| Mounted::at(&directory.join("mounted"), &["mount", "-t", "tmpfs", "none"]));
}

#[test]
fn xfs_with_shared_blocks() {
    lives_on("xfs", |directory| {
        let image = directory.join("image");
        mounted_image(directory, "xfs", 320, &["mkfs.xfs", "-q", "-m", "reflink=1", image.to_str().unwrap()])
    });
}

#[test]
fn btrfs_with_shared_blocks() {
    lives_on("btrfs", |directory| {
        let image = directory.join("image");
        mounted_image(directory, "btrfs", 128, &["mkfs.btrfs", "-q", image.to_str().unwrap()])
    });
}

/// A snapshot has the same inode numbers on the same device, but its files are different ones.
#[test]
fn btrfs_snapshot_is_a_different_file() {
    let (builds, directory, name) = (builds(), directory(), named("snap"));
    let image = directory.path().join("image");
    let made = ["mkfs.btrfs", "-q", image.to_str().unwrap()];
    let mounted = mounted_image(directory.path(), "btrfs", 128, &made);
    let [one, two] = ["one", "two"].map(|volume| mounted.at.join(volume));
    run("btrfs", &["-q", "subvolume", "create", one.to_str().unwrap()]);
    copy(&builds.path().join("first"), &one.join(&name));
    run("btrfs", &["-q", "subvolume", "snapshot", one.to_str().unwrap(), two.to_str().unwrap()]);
    let tracer = Tracer::start(&config(&[
        ("one", &format!("binary: {}", one.join(&name).display())),
        ("two", &format!("binary: {}", two.join(&name).display())),
    ]));
    fire_at_once(&one.join(&name), 3);
    fire_at_once(&two.join(&name), 50);
    assert_eq!((count(&tracer, "one_total"), count(&tracer, "two_total")), (3, 50));
}

fn image_of(kind: &str, make: impl Fn(&str, &str) -> Vec<String>) {
    let (builds, directory, name) = (builds(), directory(), named(kind));
    let [content, image] = ["content", "image"].map(|name| directory.path().join(name));
    fs::create_dir(&content).unwrap();
    copy(&builds.path().join("first"), &content.join(&name));
    let make = make(content.to_str().unwrap(), image.to_str().unwrap());
    let make: Vec<&str> = make.iter().map(String::as_str).collect();
    let mounted = mounted_image(directory.path(), kind, 0, &make);
    runs(&mounted.at, &name);
}

/// As used by snaps and AppImages.
#[test]
fn squashfs_image() {
    image_of("squashfs", |content, image| {
        ["mksquashfs", content, image, "-quiet", "-no-progress"].map(str::to_string).to_vec()
    });
}

#[test]
fn erofs_image() {
    image_of("erofs", |content, image| ["mkfs.erofs", image, content].map(str::to_string).to_vec());
}

#[test]
fn overlays_of_every_kind() {
    for (kind, options) in [
        ("plain", ""),
        ("meta", ",metacopy=on,redirect_dir=on"),
        ("user", ",userxattr"),
        ("volatile", ",volatile"),
        ("index", ",index=on,xino=on"),
    ] {
        let (builds, directory, name) = (builds(), directory(), named(kind));
        let above = Mounted::at(&directory.path().join("above"), &["mount", "-t", "tmpfs", "none"]);
        let [lower, below] = ["lower", "below"].map(|name| directory.path().join(name));
        let [upper, work] = ["upper", "work"].map(|name| above.at.join(name));
        for directory in [&lower, &below, &upper, &work] {
            fs::create_dir(directory).unwrap();
        }
        copy(&builds.path().join("first"), &below.join(&name));
        let layers = format!(
            "lowerdir={}:{},upperdir={},workdir={}{options}",
            lower.display(),
            below.display(),
            upper.display(),
            work.display()
        );
        let merged =
            Mounted::at(&directory.path().join("merged"), &["mount", "-t", "overlay", "none", "-o", &layers]);
        lives(&merged.at, builds.path(), &name);
    }
}

/// FUSE, as used by sshfs and rootless containers.
#[test]
fn fuse_file_system() {
    lives_on("fuse", |directory| {
        let source = directory.join("source");
        fs::create_dir(&source).unwrap();
        Mounted::at(&directory.join("mounted"), &["bindfs", source.to_str().unwrap()])
    });
}

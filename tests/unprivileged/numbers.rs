//! The stack of numbers that nobody has, which CPUs and user space change without a lock: what the probe programs do to it
//! (`bpf/numbers.bpf.h`, the text itself) in every order in which three of them can. User space's half, `give_back` of the
//! library, is the same steps in Rust and tested beside the code.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::program::directory;

/// Builds the model from a text of `numbers.bpf.h` and runs it: whether no order is wrong, and what it says.
fn run(numbers: &str) -> (bool, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("numbers.bpf.h"), numbers).unwrap();
    let model = root.join("tests/unprivileged/numbers.c");
    let compile = |options: &[&str], object: &str| {
        let built = Command::new("cc")
            .args(["-O1", "-Wall", "-Wno-unknown-pragmas", "-c", "-o"])
            .args([&at(object), &model])
            .args(options)
            .arg("-I")
            .arg(directory.path())
            .arg("-I")
            .arg(root.join("bpf"))
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    };
    compile(&["-DSTEPS", "-fsanitize=thread"], "steps.o");
    compile(&[], "model.o");
    // Without the sanitizer's library: the model has its functions.
    let linked =
        Command::new("cc").args(["steps.o", "model.o", "-o", "model"]).current_dir(&directory).output();
    let linked = linked.unwrap();
    assert!(linked.status.success(), "{}", String::from_utf8_lossy(&linked.stderr));
    let ran = Command::new(at("model")).output().unwrap();
    (ran.status.success(), String::from_utf8_lossy(&ran.stdout).into_owned())
}

#[test]
fn no_order_gives_a_number_to_two_or_loses_one() {
    let text = fs::read_to_string("bpf/numbers.bpf.h").unwrap();
    let (is_right, told) = run(&text);
    assert!(is_right, "{told}");
    let orders: u64 = told.split(' ').next().unwrap().parse().unwrap();
    assert!(orders > 10_000, "{told}");
    // The model finds what it is there for: a stack that was changed and changed back, and a link that is written too late.
    let count = "((top >> 32) + 1) << 32";
    assert_eq!(text.matches(count).count(), 2);
    let (is_right, told) = run(&text.replace(count, "(top >> 32) << 32"));
    assert!(!is_right && told.contains("given out twice"), "{told}");
    let link = "*(volatile __u64 *)&entry->words[0] = (__u32)top;";
    assert_eq!(text.matches(link).count(), 1);
    let (is_right, told) = run(&text.replace(link, ""));
    assert!(!is_right, "{told}");
}

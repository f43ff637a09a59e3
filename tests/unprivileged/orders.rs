//! What several CPUs and user space do without locks, in every possible interleaving: the actual text of a header of
//! the BPF programs, compiled into a model and run by `orders.c`.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::program::directory;

/// Builds a model from a header's text and runs it; returns whether every interleaving is correct, and the model's
/// output.
fn run(model: &str, header: &str) -> (bool, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    fs::write(at(&format!("{model}.bpf.h")), header).unwrap();
    let sources = root.join("tests/unprivileged");
    let compile = |source: &str, options: &[&str], object: &str| {
        let built = Command::new("cc")
            .args(["-O1", "-Wall", "-Wno-unknown-pragmas", "-c", "-o"])
            .args([&at(object), &sources.join(source)])
            .args(options)
            .arg("-I")
            .arg(directory.path())
            .arg("-I")
            .arg(root.join("bpf"))
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    };
    let source = format!("{model}.c");
    compile(&source, &["-DSTEPS", "-fsanitize=thread"], "steps.o");
    compile(&source, &[], "model.o");
    compile("orders.c", &[], "orders.o");
    // Without the sanitizer's library: the scheduler provides its functions.
    let objects = ["steps.o", "model.o", "orders.o", "-o", "model"];
    let linked = Command::new("cc").args(objects).current_dir(&directory).output().unwrap();
    assert!(linked.status.success(), "{}", String::from_utf8_lossy(&linked.stderr));
    let ran = Command::new(at("model")).output().unwrap();
    (ran.status.success(), String::from_utf8_lossy(&ran.stdout).into_owned())
}

/// Checks that every interleaving is correct; returns the header's text.
fn is_right(model: &str, least: u64) -> String {
    let text = fs::read_to_string(format!("bpf/{model}.bpf.h")).unwrap();
    let (is_right, told) = run(model, &text);
    assert!(is_right, "{told}");
    let orders: u64 = told.split(' ').next().unwrap().parse().unwrap();
    assert!(orders > least, "{told}");
    text
}

/// Checks that the model detects the bug that this replacement in the header introduces.
fn is_found(model: &str, text: &str, from: &str, to: &str, wrong: &str) {
    assert!(text.contains(from), "{from}");
    let (is_right, told) = run(model, &text.replace(from, to));
    assert!(!is_right && told.contains(wrong), "{told}");
}

/// The stack of free numbers. User space's half, `give_back` in the library, takes the same steps in Rust and is tested
/// beside its code.
#[test]
fn no_interleaving_duplicates_or_loses_a_number() {
    let text = is_right("numbers", 10_000);
    // An ABA problem, and a link that is written too late.
    is_found("numbers", &text, "((top >> 32) + 1) << 32", "(top >> 32) << 32", "given out twice");
    is_found("numbers", &text, "*(volatile __u64 *)&entry->words[0] = (__u32)top;", "", "number");
}

/// A task whose wait times out keeps others from waiting, but only until user space has answered, whenever that
/// happens.
#[test]
fn no_interleaving_disables_waiting_permanently() {
    let text = is_right("tickets", 100);
    // A flag that user space clears, and that a task sets based on an earlier check.
    is_found(
        "tickets",
        &text,
        "return is_answered(in_vain);",
        "return !in_vain;\n#define CLEARS",
        "nobody waits any more",
    );
}

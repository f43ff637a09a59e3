//! What several CPUs and user space do without a lock, in every order in which they can: the text itself of a header of the BPF programs,
//! compiled into a model and run by `orders.c`.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::program::directory;

/// Builds a model from a text of its header and runs it: whether no order is wrong, and what it says.
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
    // Without the sanitizer's library: the scheduler has its functions.
    let objects = ["steps.o", "model.o", "orders.o", "-o", "model"];
    let linked = Command::new("cc").args(objects).current_dir(&directory).output().unwrap();
    assert!(linked.status.success(), "{}", String::from_utf8_lossy(&linked.stderr));
    let ran = Command::new(at("model")).output().unwrap();
    (ran.status.success(), String::from_utf8_lossy(&ran.stdout).into_owned())
}

/// No order is wrong. The header's text.
fn is_right(model: &str, least: u64) -> String {
    let text = fs::read_to_string(format!("bpf/{model}.bpf.h")).unwrap();
    let (is_right, told) = run(model, &text);
    assert!(is_right, "{told}");
    let orders: u64 = told.split(' ').next().unwrap().parse().unwrap();
    assert!(orders > least, "{told}");
    text
}

/// The model finds what it is there for, if this is in the header instead.
fn is_found(model: &str, text: &str, from: &str, to: &str, wrong: &str) {
    assert!(text.contains(from), "{from}");
    let (is_right, told) = run(model, &text.replace(from, to));
    assert!(!is_right && told.contains(wrong), "{told}");
}

/// The stack of numbers that nobody has. User space's half, `give_back` of the library, is the same steps in Rust and tested beside the
/// code.
#[test]
fn no_order_gives_a_number_to_two_or_loses_one() {
    let text = is_right("numbers", 10_000);
    // A stack that was changed and changed back, and a link that is written too late.
    is_found("numbers", &text, "((top >> 32) + 1) << 32", "(top >> 32) << 32", "given out twice");
    is_found("numbers", &text, "*(volatile __u64 *)&entry->words[0] = (__u32)top;", "", "number");
}

/// Who waits in vain keeps others from waiting, but not once user space has answered, whenever that was.
#[test]
fn no_order_of_answers_keeps_tasks_from_waiting_for_ever() {
    let text = is_right("tickets", 100);
    // A flag that user space clears, and a task sets that has looked before.
    is_found(
        "tickets",
        &text,
        "return is_answered(in_vain);",
        "return !in_vain;\n#define CLEARS",
        "nobody waits any more",
    );
}

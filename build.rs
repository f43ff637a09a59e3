//! Compiles the BPF programs and generates the Rust side of their ABI from the object's own type information.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use libbpf_cargo::SkeletonBuilder;

/// Lints that are disabled in generated skeletons, whose style is not ours.
const ALLOWED: &str = "clippy::all, clippy::pedantic, clippy::undocumented_unsafe_blocks, dead_code, missing_docs, \
                       non_camel_case_types, non_snake_case, unsafe_code, unsafe_op_in_unsafe_fn, unused_imports";

/// Every BPF object, one line each. `include!` turns its `NAME.skel.rs` into a module `generated`.
const OBJECTS: &[&str] =
    &["probe", "files", "events", "readers", "guard", "prices", "net", "net_bench", "stack", "sockets"];

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo:rerun-if-changed=bpf");
    println!("cargo:rerun-if-changed=src/net/stats");
    println!("cargo:rerun-if-env-changed=CLANG");
    let clang = env::var("CLANG").unwrap_or_else(|_| find_clang());
    // The benchmarks compile their own programs for comparison.
    println!("cargo:rustc-env=BPF_CLANG={clang}");
    println!("cargo:rustc-env=BPF_INCLUDE={}", env::var("DEP_BPF_INCLUDE").unwrap_or_default());
    // The generated code is only for the compiler. libbpf-cargo ignores a missing rustfmt, but that of rustup's minimal
    // profile exists and always fails, which would fail the build.
    let no_rustfmt = out.join("no-rustfmt");
    for name in OBJECTS {
        let source = format!("bpf/{name}.bpf.c");
        let skeleton = out.join(format!("{name}.skel.rs"));
        SkeletonBuilder::new()
            .source(&source)
            .clang(&clang)
            .rustfmt(&no_rustfmt)
            .clang_args(["-Wall", "-Werror", "-mcpu=v3", "-Ibpf", "-Isrc/net", "-D__TARGET_ARCH_x86"])
            .build_and_generate(&skeleton)
            .unwrap_or_else(|e| panic!("{source} with {clang}: {e:#}"));
        let module = fs::read_to_string(&skeleton)
            .map(|code| format!("#[allow({ALLOWED})]\npub mod generated {{\n{code}\n}}\n"));
        module
            .and_then(|module| fs::write(&skeleton, module))
            .unwrap_or_else(|e| panic!("{}: {e}", skeleton.display()));
    }
}

/// The oldest clang that compiles the programs.
const CLANG: u32 = 14;

/// Returns plain `clang` if it is new enough, else the oldest `clang-N` that is: Debian 12 has 14, Debian 13 has 19.
fn find_clang() -> String {
    let path = env::var_os("PATH").unwrap_or_default();
    let files = env::split_paths(&path).filter_map(|dir| dir.read_dir().ok()).flatten().flatten();
    let names = files.filter_map(|file| file.file_name().into_string().ok());
    let mut versioned: Vec<(u32, String)> = names
        .filter_map(|name| Some((name.strip_prefix("clang-")?.parse().ok()?, name)))
        .filter(|(version, _)| *version >= CLANG)
        .collect();
    versioned.sort();
    let mut candidates =
        std::iter::once("clang".to_string()).chain(versioned.into_iter().map(|(_, name)| name));
    candidates.find(|name| clang_version(name).is_some_and(|version| version >= CLANG)).unwrap_or_else(|| {
        panic!(
            "no clang {CLANG} or later in PATH; it compiles the BPF programs. Debian: apt-get install clang; \
             or set CLANG to one"
        )
    })
}

/// Parses the version from, for example, `Debian clang version 14.0.6`.
fn clang_version(name: &str) -> Option<u32> {
    let output = Command::new(name).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.split_once("clang version ")?.1.split('.').next()?.parse().ok()
}

//! Compiles the BPF programs and generates the Rust side of their ABI from the object's own type information.

use std::env;
use std::path::{Path, PathBuf};

use libbpf_cargo::SkeletonBuilder;

/// Every BPF object: one line each.
const OBJECTS: &[&str] = &["probe", "net", "net_bench"];

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo:rerun-if-changed=bpf");
    println!("cargo:rerun-if-env-changed=CLANG");
    let clang = env::var("CLANG").unwrap_or_else(|_| find_clang());
    // The benchmarks compile programs of their own to compare with.
    println!("cargo:rustc-env=BPF_CLANG={clang}");
    println!("cargo:rustc-env=BPF_INCLUDE={}", env::var("DEP_BPF_INCLUDE").unwrap_or_default());
    // The generated code is for the compiler only. A rustfmt that cannot be found is passed over; rustup's minimal
    // profile has one that can be found and always fails, which would fail the build.
    let no_rustfmt = out.join("no-rustfmt");
    for name in OBJECTS {
        let source = format!("bpf/{name}.bpf.c");
        SkeletonBuilder::new()
            .source(&source)
            .clang(&clang)
            .rustfmt(&no_rustfmt)
            .clang_args(["-Wall", "-Werror", "-mcpu=v3", "-Ibpf", target_define()])
            .build_and_generate(out.join(format!("{name}.skel.rs")))
            .unwrap_or_else(|e| panic!("{source} with {clang}: {e:#}"));
    }
}

/// Debian 12 names its default compiler `clang`, a versioned package only `clang-14`; either will do.
fn find_clang() -> String {
    let path = env::var_os("PATH").unwrap_or_default();
    let has = |name: &str| env::split_paths(&path).any(|dir| Path::new(&dir).join(name).is_file());
    ["clang", "clang-14", "clang-16", "clang-19"]
        .into_iter()
        .find(|name| has(name))
        .unwrap_or_else(|| panic!("no clang in PATH; it compiles the BPF programs: apt-get install clang-14"))
        .to_string()
}

fn target_define() -> &'static str {
    match env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
        Ok("aarch64") => "-D__TARGET_ARCH_arm64",
        _ => "-D__TARGET_ARCH_x86",
    }
}

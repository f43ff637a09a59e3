//! Code addresses resolve to the name of their function, however the file was built.
//!
//! Needs `cc`, `c++`, `clang-14`, `lld`, `objcopy` and `strip`.

use std::fs;
use std::path::Path;
use std::process::Command;

use exporter::elf::{AddressNames, Image, function_sites};
use exporter::resolve::resolve;

use crate::support::program::{compile_kept, run};
use crate::support::tracer::plan_of;

const SOURCE: &str = r#"
#include <stdio.h>
#define KEPT __attribute__((noinline))
KEPT static int plain(int n) { return printf("%d", n); }
KEPT __attribute__((section(".text.hot.x"))) int hot(int n) { return plain(n) + 1; }
KEPT __attribute__((cold)) int cold(int n) { return plain(n) + 2; }
KEPT __attribute__((section("elsewhere"))) int apart(int n) { return plain(n) + 3; }
__asm__(".globl unsized\n.type unsized, @function\nunsized: nop\nnop\nnop\nret\n.globl label\nlabel: nop\nret\n");
int unsized(int), label(int);
int main(int n, char **v) { (void)v; return hot(n) + cold(n) + apart(n) + unsized(n) + label(n); }
"#;

/// Returns the names found for the first and last byte of a function.
fn names_in(path: &Path, function: &str) -> [Option<String>; 2] {
    let bytes = fs::read(path).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let names = AddressNames::of(&image);
    let site = &function_sites(&image, function).unwrap()[0];
    [0, site.size.saturating_sub(1)].map(|into| names.name(site.site.offset + into))
}

#[test]
fn resolves_addresses_to_functions() {
    for (name, compiler, flags) in [
        ("addresses-pie", "cc", &["-O2"][..]),
        ("addresses-fixed", "cc", &["-O2", "-no-pie", "-fno-pie"]),
        ("addresses-static", "cc", &["-O2", "-static"]),
        ("addresses-static-pie", "cc", &["-O2", "-static-pie"]),
        ("addresses-one-segment", "cc", &["-O2", "-Wl,-z,noseparate-code"]),
        ("addresses-far", "cc", &["-O2", "-Wl,-z,max-page-size=0x200000"]),
        ("addresses-zlib", "cc", &["-O2", "-g", "-gz=zlib"]),
        ("addresses-relocations", "cc", &["-O2", "-Wl,--emit-relocs"]),
        ("addresses-lld", "cc", &["-O2", "-fuse-ld=lld"]),
        ("addresses-lld-segments", "cc", &["-O2", "-fuse-ld=lld", "-Wl,-z,separate-loadable-segments"]),
    ] {
        let path = compile_kept(name, compiler, SOURCE, flags);
        for function in ["plain", "hot", "cold", "apart", "main"] {
            assert_eq!(names_in(&path, function), [(); 2].map(|()| Some(function.to_string())), "{name}");
        }
        assert_eq!(names_in(&path, "unsized")[0].as_deref(), Some("unsized"), "{name}");
        // It has neither a type nor a size.
        assert_eq!(names_in(&path, "label")[0], None, "{name}");
    }
}

#[test]
fn stripped_code_is_not_named_after_its_predecessor() {
    let path = compile_kept(
        "addresses-whole",
        "cc",
        SOURCE,
        &["-O2", "-rdynamic", "-fno-asynchronous-unwind-tables"],
    );
    let stripped = path.with_extension("stripped");
    run(Command::new("strip").arg("-o").args([&stripped, &path]));
    let [whole, bytes] = [&path, &stripped].map(|path| fs::read(path).unwrap());
    let [whole, image] = [&whole, &bytes].map(|bytes| Image::parse(bytes).unwrap());
    let names = AddressNames::of(&image);
    let at = |function: &str| function_sites(&whole, function).unwrap()[0].site.offset;
    assert_eq!(names.name(at("hot")).as_deref(), Some("hot"));
    assert_eq!(names.name(at("plain")), None);
    // Exported, without a size.
    assert_eq!(names.name(at("unsized")), None);
}

#[test]
fn cpp_functions_have_source_names() {
    let source = r#"
template <unsigned N> __attribute__((noinline)) int lit(int x) { return x + (int)N; }
struct Foo { __attribute__((noinline)) int get(char c) const { return c + v; } int v = 1; };
namespace { __attribute__((noinline)) int hidden(int x) { asm volatile(""); return x; } }
static __attribute__((noinline)) int calc(int mode, int n) { asm volatile("" :: "r"(n)); return n * mode; }
int main(int n, char **) { return lit<3u>(n) + Foo().get('a') + hidden(n) + calc(7, n) + calc(7, n + 1); }
"#;
    let path = compile_kept("addresses-cpp", "c++", source, &["-O2"]);
    for (function, shown) in [
        ("lit<3u>", "int lit<3u>(int)"),
        ("Foo::get", "Foo::get(char) const"),
        ("hidden", "(anonymous namespace)::hidden(int)"),
        ("calc", "calc(int, int)"),
    ] {
        let pattern = if function == "hidden" { "*hidden" } else { function };
        let names = names_in(&path, pattern);
        assert_eq!(names, [(); 2].map(|()| Some(shown.to_string())), "{function}");
        assert_eq!(names_in(&path, shown), names, "the name that is shown is accepted");
    }
}

#[test]
fn caller_is_known_only_at_function_entry() {
    let path = compile_kept("addresses-caller", "cc", SOURCE, &["-O2"]);
    let bytes = fs::read(&path).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let resolved = |function: &str| {
        let yaml = format!(
            "targets: [{{ name: t, binary: {}, probes: [{{ function: {function}, metrics: [{{ counter: c_total, labels: {{ by: \
             caller }} }}] }}] }}]",
            path.display()
        );
        let plan = plan_of(&yaml, false).unwrap();
        resolve(&exporter::elf::SymbolIndex::of(&image), 0, &plan, &mut |_| 0).map(|_| ())
    };
    assert!(resolved("unsized").is_ok());
    let error = resolved("unsized+1").unwrap_err().to_string();
    assert!(error.contains("only known at a function's entry"), "{error}");
}

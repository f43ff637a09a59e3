//! Every name that is listed is also accepted, and refers to the function that it was listed for.
//!
//! Needs `cc`, `c++`, `objcopy`, `strip`, `xz` and the shared libraries of a Debian with a JDK.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use exporter::elf::{Image, SymbolIndex, function_sites};
use exporter::resolve::resolve;

use crate::support::names::listed_names_are_accepted;
use crate::support::program::{compile_kept as compile, run};
use crate::support::tracer::plan_of;

pub fn offsets(image: &Image<'_>, pattern: &str) -> BTreeSet<u64> {
    let found = function_sites(image, pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
    found.iter().map(|site| site.site.offset).collect()
}

#[test]
fn libstdcxx_names_are_accepted() {
    listed_names_are_accepted(Path::new("/usr/lib/x86_64-linux-gnu/libstdc++.so.6"), 3000);
}

const RUST: &str = r#"
mod shapes {
    pub trait Area { fn area(&self) -> f64; }
    pub struct Square<T>(pub T);
    impl<T: Copy + Into<f64>> Area for Square<T> {
        #[inline(never)]
        fn area(&self) -> f64 { let side: f64 = self.0.into(); side * side }
    }
    impl Square<u8> { #[inline(never)] pub fn größe(&self, text: &str) -> usize { text.len() + usize::from(self.0) } }
}
#[inline(never)]
fn apply<F: Fn(&str) -> Option<Vec<u8>>>(f: F) -> usize { f("x").map_or(0, |v| v.len()) }
fn main() {
    use shapes::Area;
    let all: Vec<Box<dyn Area>> = vec![Box::new(shapes::Square(2.0f32)), Box::new(shapes::Square(3i32))];
    let sum: f64 = all.iter().map(|shape| shape.area()).sum();
    println!("{sum} {} {}", apply(|text| Some(text.into())), shapes::Square(1u8).größe("abc"));
}
"#;

#[test]
fn rust_names_are_accepted() {
    for mangling in ["v0", "legacy"] {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("names-rust-{mangling}"));
        let source = path.with_extension("rs");
        fs::write(&source, RUST).unwrap();
        let mangled = format!("-Csymbol-mangling-version={mangling}");
        let unstable = if mangling == "legacy" { "-Zunstable-options" } else { "-Cdebuginfo=0" };
        run(Command::new("rustc")
            .env("RUSTC_BOOTSTRAP", "1")
            .args(["--edition=2024", &mangled, unstable, "-o"])
            .args([&path, &source]));
        listed_names_are_accepted(&path, 400);
        let bytes = fs::read(&path).unwrap();
        let image = Image::parse(&bytes).unwrap();
        assert_eq!(offsets(&image, "*::größe").len(), 1);
    }
}

#[test]
fn libjvm_names_are_accepted() {
    listed_names_are_accepted(Path::new("/usr/lib/jvm/java-17-openjdk-amd64/lib/server/libjvm.so"), 500);
}

#[test]
fn go_names_are_accepted() {
    let go = fs::canonicalize("/usr/lib/go/bin/go").unwrap();
    listed_names_are_accepted(&go, 5000);
}

const COPIES: &str = r#"
__attribute__((noinline)) static int whole(int a, int b) { asm volatile(""); return a * b + a; }
__attribute__((noinline, noclone)) int calls(int n) { return whole(n, 7); }
int wrapped(int n) { while (n > 100) n -= 7; return n; }
asm(".globl drain\n.type drain, @function\ndrain: dec %edi\nloop drain\nmov %edi, %eax\nret\n.size drain, .-drain\n");
asm(".globl empty\n.type empty, @function\nempty: dec %edi\njnz empty\nmov %edi, %eax\nret\n.size empty, .-empty\n");
int drain(int n);
int main(int n, char **v) { (void)v; return calls(n) + wrapped(n) + drain(n); }
"#;

#[test]
fn incomplete_symbol_information_is_noted() {
    let path = compile("names-copies", "cc", COPIES, &["-O2", "-fno-inline"]);
    // A copy named as compilers do it, whatever this compiler makes of the source.
    let copied = path.with_extension("copied");
    run(Command::new("objcopy")
        .args(["--add-symbol", "whole.constprop.7=.text:0x0,function,local"])
        .arg(&path)
        .arg(&copied));
    let bytes = fs::read(&copied).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let (sites, remarks) = SymbolIndex::of(&image).remarked_sites("whole").unwrap();
    assert!(sites.iter().any(|site| site.name == "whole.constprop.7" && site.specialised), "{sites:?}");
    assert!(remarks.iter().any(|remark| remark.contains("whole.constprop.7")), "{remarks:?}");
    let named = function_sites(&image, "whole.constprop.7").unwrap();
    assert!(named.len() == 1 && !named[0].specialised, "{named:?}");
    let warnings = |probe: &str| {
        let yaml = format!("targets: [{{ name: t, binary: {}, probes: [{{ {probe} }}] }}]", copied.display());
        let plan = plan_of(&yaml, false).unwrap();
        resolve(&SymbolIndex::of(&image), 0, &plan, &mut |_| 0).unwrap().warnings
    };
    let labelled = "args: { b: 1 }, metrics: [{ counter: calls_total, labels: { b: b } }]";
    let warned = warnings(&format!("function: whole, {labelled}"));
    assert!(
        warned.len() == 1 && warned[0].contains("whole.constprop.7") && warned[0].contains("moved them"),
        "{warned:?}"
    );
    for without in ["function: whole, metrics: [{ counter: calls_total }]", "function: calls, args: { n: 0 }"]
    {
        assert_eq!(warnings(without), Vec::<String>::new(), "{without}");
    }

    let bytes = fs::read(&path).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let remarks = |name: &str| SymbolIndex::of(&image).remarked_sites(name).unwrap().1;
    assert!(remarks("drain").iter().any(|remark| remark.contains("a loop")), "{:?}", remarks("drain"));
    assert_eq!(remarks("main"), Vec::<String>::new());
    assert_eq!(remarks("empty"), Vec::<String>::new(), "its turns are told from calls");
}

#[test]
fn distinguishes_symbol_versions() {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let map = dir.join("names-versions.map");
    fs::write(&map, "V_1.0 { global: send; local: *; };\nV_2.0 { global: send; } V_1.0;\n").unwrap();
    let source = "int old_send(int x) { return x; }\nint new_send(int x) { return x + 1; }\n\
                  asm(\".symver old_send, send@V_1.0\");\nasm(\".symver new_send, send@@V_2.0\");\n";
    let script = format!("-Wl,--version-script={}", map.display());
    // lld's symbol table has no versions, unlike that of the exports.
    for (linker, strip) in [("bfd", false), ("bfd", true), ("lld", false), ("lld", true)] {
        let flags = ["-shared", "-fPIC", &format!("-fuse-ld={linker}"), &script];
        let path = compile(&format!("names-versions-{linker}.so"), "cc", source, &flags);
        if strip {
            run(Command::new("strip").arg(&path));
        }
        let bytes = fs::read(&path).unwrap();
        let image = Image::parse(&bytes).unwrap();
        let [old, new] = ["send@V_1.0", "send@@V_2.0"].map(|name| offsets(&image, name));
        assert!(old.len() == 1 && new.len() == 1 && old != new);
        assert_eq!(offsets(&image, "send@V_2.0"), new);
        assert_eq!(offsets(&image, "send"), &old | &new);
        let named: BTreeSet<String> =
            function_sites(&image, "send").unwrap().into_iter().map(|site| site.name).collect();
        assert_eq!(named, BTreeSet::from(["send@V_1.0".to_string(), "send@V_2.0".to_string()]));
        for glob in ["s*@V_1.0", "send@V_1.*", "*@@?_1.0"] {
            assert_eq!(offsets(&image, glob), old, "{glob}");
        }
        assert_eq!(offsets(&image, "sen?@V_*"), &old | &new);
        assert!(function_sites(&image, "send@V_3.*").is_err());
        assert!(function_sites(&image, "send@V_3.0").is_err());
    }
}

/// Like libm's `expf`: the name alone also refers to an IFUNC, which cannot be probed.
#[test]
fn old_ifunc_version_is_listed_with_its_version() {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let map = dir.join("names-ifunc.map");
    fs::write(&map, "V_1.0 { global: send; local: *; };\nV_2.0 { global: send; } V_1.0;\n").unwrap();
    let source = "int old_send(int x) { return x; }\nstatic int quick(int x) { return x + 1; }\n\
                  static int (*choose(void))(int) { return quick; }\n\
                  int new_send(int) __attribute__((ifunc(\"choose\")));\n\
                  asm(\".symver old_send, send@V_1.0\");\nasm(\".symver new_send, send@@V_2.0\");\n";
    let script = format!("-Wl,--version-script={}", map.display());
    let path = compile("names-ifunc.so", "cc", source, &["-shared", "-fPIC", &script]);
    run(Command::new("strip").arg(&path));
    let bytes = fs::read(&path).unwrap();
    let image = Image::parse(&bytes).unwrap();
    assert!(function_sites(&image, "send").is_err());
    let listed: Vec<_> = function_sites(&image, "s*").unwrap().into_iter().map(|site| site.name).collect();
    assert_eq!(listed, ["send@V_1.0"]);
    assert_eq!(offsets(&image, &listed[0]).len(), 1);
}

const INLINED: &str = r#"
volatile int sink;
int account(int x) { sink += x; return x * 3; }
__attribute__((noinline)) int hot(int i) { return account(i) + 1; }
__attribute__((noinline)) int warm(int i) { return account(i) + 2; }
__attribute__((noinline)) int cold(int i) { return i - 1; }
static int everywhere(int x) { sink += x; return x - 5; }
int (*volatile indirect)(int) = account;
int main(int n, char **v) { (void)v; return hot(n) + warm(n) + cold(n) + indirect(n) + everywhere(n) + everywhere(sink); }
"#;

#[test]
fn inlined_copies_are_counted_with_debug_info() {
    for (compiler, compressed) in [("cc", "none"), ("cc", "zlib-gnu"), ("c++", "zlib-gabi")] {
        let name = format!("names-inlined-{compressed}-{}", compiler.len());
        let flags = ["-O2", "-g"];
        let path = compile(&name, compiler, INLINED, &flags);
        run(Command::new("objcopy").arg(format!("--compress-debug-sections={compressed}")).arg(&path));
        let bytes = fs::read(&path).unwrap();
        let image = Image::parse(&bytes).unwrap();
        let copies = |name: &str| SymbolIndex::of(&image).inlined_copies(name);
        assert_eq!((copies("account"), copies("cold")), (2, 0), "{compiler} {compressed}");
        assert_eq!((copies("_start"), copies("nowhere")), (0, 0), "{compiler} {compressed}");
        assert!(
            SymbolIndex::of(&image).sites("everywhere").is_err(),
            "{compiler}: it has no code of its own"
        );
        assert_eq!(copies("everywhere"), 2, "{compiler} {compressed}");
        run(Command::new("strip").arg("--strip-debug").arg(&path));
        let bytes = fs::read(&path).unwrap();
        let image = Image::parse(&bytes).unwrap();
        assert_eq!(SymbolIndex::of(&image).inlined_copies("account"), 0);
    }
}

const ALIASES: &str = r#"
__attribute__((noinline)) int job_begin(int n) { return n + 1; }
extern int job_end(int) __attribute__((alias("job_begin")));
__attribute__((noinline)) int job_other(int n) { return n * 5; }
int main(int argc, char **argv) { (void)argv; return job_begin(argc) + job_other(argc) + job_end(argc) == 0; }
"#;

/// Two names of the same function: a hit does not show which end of the span it is.
#[test]
fn rejects_span_ends_at_the_same_address() {
    let path = compile("names-aliases", "cc", ALIASES, &["-O1"]);
    let bytes = fs::read(&path).unwrap();
    let index = SymbolIndex::of(&Image::parse(&bytes).unwrap());
    let ends = |from: &str, to: &str| {
        let span = format!("{{ span: job_seconds, from: 'function:{from}', to: 'function:{to}' }}");
        let yaml = format!("targets:\n- name: t\n  binary: {}\n  probes: [{span}]\n", path.display());
        let plan = plan_of(&yaml, false).unwrap();
        let resolved = |number| resolve(&index, number, &plan, &mut |_| 0);
        [resolved(0), resolved(1)].map(|end| match end {
            Ok(end) => Ok((end.sites.len(), end.unusable.len())),
            Err(err) => Err(err.to_string()),
        })
    };
    for end in ends("job_begin", "job_end") {
        assert!(
            end.as_ref().is_err_and(|err| err.contains("the span's other end is at the same")),
            "{end:?}"
        );
    }
    assert_eq!(ends("job_begin", "job_other"), [Ok((1, 0)), Ok((1, 0))]);
    let [from, to] = ends("job_*", "job_other");
    assert_eq!(from, Ok((1, 1)), "one bad place costs only that");
    assert!(to.is_err(), "{to:?}");
}

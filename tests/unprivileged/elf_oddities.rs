//! Files that linkers, compilers and packers produce in unusual ways.
//!
//! Needs `cc`, `clang-14` and `g++`.

use std::fs;
use std::process::Command;

use exporter::elf::{ElfError, Image, SymbolIndex, function_sites, lacks_variables, notes, usdt_sites};
use exporter::resolve::resolve;

use crate::assembly::{library, linked, symbols};
use crate::elf_names::offsets;
use crate::support::names::listed_names_are_accepted;
use crate::support::program::{compile as compile_in, compile_kept as compile, directory, run};
use crate::support::tracer::plan_of;

/// Functions for which the program chooses an implementation at startup.
#[test]
fn function_variants_chosen_at_startup() {
    let source = r#"
#include <cstring>
#define VARIANTS __attribute__((noinline, target_clones("avx2", "default")))
extern "C" VARIANTS int area(int n) { int all = 0; for (int i = 0; i < n; i++) all += i * n; return all; }
namespace shop { VARIANTS int sum(int n) { int all = 0; for (int i = 0; i < n; i++) all += i; return all; } }
extern "C" { int one(int n) { return n + 1; } int two(int n) { return n + 2; }
static int (*choose(void))(int) { return __builtin_cpu_supports("avx2") ? one : two; }
int chosen(int) __attribute__((ifunc("choose"))); }
int main(int argc, char **argv) { return area(argc) + shop::sum(argc) + chosen(argc) + std::strlen(argv[0]); }
"#;
    for (name, flags) in [
        ("names-ifunc", &["-O2", "-fPIE", "-pie"][..]),
        ("names-ifunc-fixed", &["-O2", "-no-pie", "-fno-pie"]),
        // Its unwind table has no index.
        ("names-ifunc-static", &["-O2", "-static"]),
    ] {
        let path = compile(name, "g++", source, flags);
        let bytes = fs::read(&path).unwrap();
        let image = Image::parse(&bytes).unwrap();
        let index = SymbolIndex::of(&image);
        let names = |pattern: &str| -> Vec<String> {
            let sites = index.sites(pattern).unwrap_or_else(|err| panic!("{name}: {pattern}: {err}"));
            let mut names: Vec<_> = sites.into_iter().map(|site| site.name).collect();
            names.sort();
            names
        };
        let variants = |symbol: &str| [".avx2", ".default"].map(|kind| format!("{symbol}{kind}"));
        let is_all = |found: Vec<String>, symbol: &str| {
            found.len() == 2
                && found.iter().zip(variants(symbol)).all(|(found, begin)| found.starts_with(&begin))
        };
        assert!(is_all(names("area"), "area"), "{name}: {:?}", names("area"));
        for pattern in ["_ZN4shop3sumEi", "shop::sum(int)", "shop::sum"] {
            assert!(is_all(names(pattern), "_ZN4shop3sumEi"), "{name}: {pattern}: {:?}", names(pattern));
        }
        let error = index.sites("chosen").unwrap_err().to_string();
        assert!(error.contains("IFUNC") && error.contains("one, two"), "{name}: {error}");
        if name == "names-ifunc-static" {
            continue;
        }
        let (_, remarks) = index.remarked_sites("*o*").unwrap();
        assert!(
            remarks.iter().any(|remark| remark.contains("chosen") && remark.contains("IFUNC")),
            "{remarks:?}"
        );
        // Imported functions are distinguished from functions that do not exist at all.
        for pattern in ["strlen", "strlen@plt"] {
            let error = index.sites(pattern).unwrap_err().to_string();
            assert!(error.contains("only imports it"), "{name}: {pattern}: {error}");
        }
    }
}

/// A library without section headers exports what the dynamic loader finds; a program packed by UPX is rejected.
#[test]
fn files_without_section_headers() {
    let source = "int work(int n) { return n * 3; } int more(int n) { return work(n) + 2; } static int own(int n) { return n; } int (*used)(int) = own;";
    for style in ["gnu", "sysv"] {
        let path = compile(
            &format!("names-{style}.so"),
            "cc",
            source,
            &["-shared", "-fPIC", &format!("-Wl,--hash-style={style}")],
        );
        let mut bytes = fs::read(&path).unwrap();
        let whole = Image::parse(&bytes).unwrap();
        let wanted: Vec<_> = ["work", "more"].map(|name| offsets(&whole, name)).into();
        let headers = usize::try_from(u64::from_le_bytes(bytes[40..48].try_into().unwrap())).unwrap();
        bytes.truncate(headers);
        bytes[40..48].fill(0);
        bytes[58..64].fill(0);
        let image = Image::parse(&bytes).unwrap();
        let found: Vec<_> = ["work", "more"].map(|name| offsets(&image, name)).into();
        assert_eq!(found, wanted, "{style}");
        assert!(function_sites(&image, "own").is_err());
        assert_eq!(notes(&image).unwrap_err(), ElfError::NoSections);
        let after = 64 + 56 * usize::from(u16::from_le_bytes(bytes[56..58].try_into().unwrap()));
        bytes[after + 4..after + 8].copy_from_slice(b"UPX!");
        assert_eq!(Image::parse(&bytes).unwrap_err(), ElfError::Packed);
    }
}

#[test]
fn long_names_are_accepted() {
    let name = "n".repeat(20_000);
    let source = format!(
        "int {name}(int n) {{ return n * 3; }} int main(int argc, char **argv) {{ (void)argv; return {name}(argc); }}"
    );
    let path = compile("names-long", "cc", &source, &["-O0"]);
    let bytes = fs::read(&path).unwrap();
    assert_eq!(offsets(&Image::parse(&bytes).unwrap(), &name).len(), 1);
}

/// The names of Crystal's methods contain what looks like a version: the class that they are inherited from.
#[test]
fn at_sign_in_a_name_is_not_a_version() {
    let [push, pop] =
        ["push<Int32>:Array(Int32)", "pop:Int32"].map(|method| format!("*Array(Int32)@Array(T)#{method}"));
    let source = format!(
        "static __attribute__((noinline)) int push(int) __asm__(\"{push}\"); static __attribute__((noinline)) int pop(int) \
         __asm__(\"{pop}\"); static int push(int n) {{ return n * 3; }} static int pop(int n) {{ return n * 5; }}\n\
         int main(int argc, char **argv) {{ (void)argv; return push(argc) + pop(argc) == 0; }}"
    );
    let path = compile("names-at", "clang-14", &source, &["-O1"]);
    listed_names_are_accepted(&path, 3);
    let bytes = fs::read(&path).unwrap();
    let image = Image::parse(&bytes).unwrap();
    assert_eq!([&push, &pop].map(|name| offsets(&image, name).len()), [1, 1]);
    assert_ne!(offsets(&image, &push), offsets(&image, &pop));
    assert_eq!(offsets(&image, "?Array(Int32)@*").len(), 2);
}

/// FIPS 140 cryptographic modules verify a checksum of their code at startup.
#[test]
fn self_checking_code_is_not_probed() {
    let of_boringssl = "aws_lc_0_1_BORINGSSL_bcm_text_start:\nbegin inside\n mov %edi, %eax\n ret\nend inside\n\
                        aws_lc_0_1_BORINGSSL_bcm_text_end:\nbegin outside\n mov %edi, %eax\n ret\nend outside\n";
    let of_go = "inside_from:\nbegin inside\n mov %edi, %eax\n ret\nend inside\ninside_to:\nbegin outside\n mov %edi, %eax\n ret\n\
                 end outside\n.section .go.fipsinfo, \"aw\"\n.zero 48\n.quad 0, inside_from, inside_to\n";
    for code in [of_boringssl, of_go] {
        let directory = directory();
        let bytes = fs::read(library(directory.path(), code)).unwrap();
        let image = Image::parse(&bytes).unwrap();
        let reason = |name: &str| {
            let sites = function_sites(&image, name).unwrap();
            assert_eq!(sites.len(), 1, "{name}");
            sites[0].site.shape.unprobeable()
        };
        assert!(reason("inside").is_some_and(|reason| reason.contains("FIPS 140")), "{code}");
        assert_eq!(reason("outside"), None, "{code}");
    }
}

/// The .NET runtime assembles its write barriers from others in its file, and would copy breakpoints.
#[test]
fn code_that_is_copied_elsewhere_is_refused() {
    let barrier = "begin JIT_WriteBarrier_PreGrow64\n mov %edi, %eax\n ret\nend JIT_WriteBarrier_PreGrow64\n\
                   begin JIT_New\n mov %edi, %eax\n ret\nend JIT_New\n";
    let patched = "begin JIT_PatchedCodeStart\n ret\nend JIT_PatchedCodeStart\n";
    for (code, is_copied) in [(barrier.to_string(), false), ([barrier, patched].concat(), true)] {
        let directory = directory();
        let bytes = fs::read(library(directory.path(), &code)).unwrap();
        let image = Image::parse(&bytes).unwrap();
        let reason = |name: &str| function_sites(&image, name).unwrap()[0].site.shape.unprobeable();
        let refused = reason("JIT_WriteBarrier_PreGrow64");
        assert_eq!(refused.is_some_and(|reason| reason.contains("copies this code")), is_copied);
        assert_eq!(reason("JIT_New"), None);
    }
}

/// Where a debug file is installed, but is of another build, the message does not ask to install it.
#[test]
fn stale_debug_file_is_named_where_names_are_missing() {
    let program = |factor: &str| {
        let source = format!(
            "static __attribute__((noinline)) int job(int x) {{ return x * {factor}; }} int main(int n, char **v) {{ (void)v; return job(n); }}"
        );
        compile(&format!("oddities-stale-{factor}"), "cc", &source, &["-O1", "-g", "-Wl,--build-id=none"])
    };
    let (path, other) = (program("3"), program("5"));
    let debug = path.with_extension("debug");
    run(Command::new("objcopy").arg("--only-keep-debug").args([&path, &debug]));
    run(Command::new("strip").arg(&path));
    run(Command::new("objcopy").arg(format!("--add-gnu-debuglink={}", debug.display())).arg(&path));
    let config = path.with_extension("yaml");
    let yaml = format!(
        "targets: [{{ name: t, binary: {}, probes: [{{ function: job, metrics: [{{ counter: c_total }}] }}] }}]",
        path.display()
    );
    fs::write(&config, yaml).unwrap();
    let checked = || {
        let program = env!("CARGO_BIN_EXE_exporter");
        let output = Command::new(program).arg("check").arg(&config).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let told = format!("{} is damaged or of another build", debug.display());
    assert!(!checked().contains("no function job"), "{}", checked());
    run(Command::new("objcopy").arg("--only-keep-debug").args([&other, &debug]));
    let text = checked();
    assert!(text.contains("no function job") && text.replace('\n', " ").contains(&told), "{text}");
    fs::remove_file(&debug).unwrap();
    assert!(
        checked().contains("the file is stripped, so only exported functions have names"),
        "{}",
        checked()
    );
}

/// Each place of a probe has a note of its own, and the compiler may give the argument another type in each.
#[test]
fn sites_of_a_probe_may_differ_in_sign() {
    for (name, notes, is_unsigned, warns) in [
        ("unsigned", ["4@%edi", "8@%rdi"], true, false),
        ("signed", ["-4@%edi", "-8@%rdi"], false, false),
        ("narrow", ["-4@%edi", "4@%edi"], false, false),
        ("mixed", ["-4@%edi", "8@%rdi"], false, true),
    ] {
        let mut source = ".text\n.globl main\nmain: xor %eax, %eax\n".to_owned();
        for note in notes {
            source.push_str(&format!(
                "990: nop\n.pushsection .note.stapsdt,\"\",\"note\"\n.balign 4\n.4byte 992f-991f, 994f-993f, 3\n991: .asciz \
                 \"stapsdt\"\n992: .balign 4\n993: .8byte 990b, 0, 0\n.asciz \"test\"\n.asciz \"step\"\n.asciz \
                 \"{note}\"\n994: .balign 4\n.popsection\n"
            ));
        }
        source.push_str("ret\n.section .note.GNU-stack,\"\",@progbits\n");
        let directory = directory();
        let path = compile_in("cc", &format!("{name}.s"), &source, &[], directory.path());
        let bytes = fs::read(&path).unwrap();
        let index = SymbolIndex::of(&Image::parse(&bytes).unwrap());
        let resolved = |argument: &str| {
            let yaml = format!(
                "targets: [{{ name: t, binary: {}, probes: [{{ on: 'usdt:test:step', args: {{ a: {argument} }}, metrics: [{{ \
                 counter: c_total, labels: {{ a: a }} }}] }}] }}]",
                path.display()
            );
            let plan = plan_of(&yaml, false).unwrap();
            resolve(&index, 0, &plan, &mut |_| 0).unwrap()
        };
        let of = resolved("0");
        assert_eq!(of.unsigned & 1 != 0, is_unsigned, "{name}");
        assert_eq!(
            of.warnings.iter().any(|warning| warning.contains("a is signed at some")),
            warns,
            "{:?}",
            of.warnings
        );
        assert!(resolved("{ index: 0, type: i64 }").warnings.is_empty());
    }
}

/// `llvm-strip` removes the notes of USDT probes, which are not loaded; the debug file retains them.
#[test]
fn notes_are_read_from_the_debug_file() {
    let source = r#"#include <sys/sdt.h>
static int height = 11;
int main(int n, char **v) { (void)v; DTRACE_PROBE2(app, step, n, height); return 0; }
"#;
    let path = compile("oddities-notes", "cc", source, &["-O1", "-g", "-Wl,--build-id=none"]);
    let whole = fs::read(&path).unwrap();
    let sites = |image: &Image<'_>| {
        usdt_sites(image, "app", "step").map(|sites| sites.iter().map(|site| site.offset).collect::<Vec<_>>())
    };
    let expected = sites(&Image::parse(&whole).unwrap()).unwrap();
    let debug = path.with_extension("debug");
    run(Command::new("objcopy").arg("--only-keep-debug").args([&path, &debug]));
    run(Command::new("strip").args(["-R", ".note.stapsdt"]).arg(&path));
    run(Command::new("objcopy").arg(format!("--add-gnu-debuglink={}", debug.display())).arg(&path));
    let [program, debug] = [&path, &debug].map(|path| fs::read(path).unwrap());
    let [program, debug] = [&program, &debug].map(|bytes| Image::parse(bytes).unwrap());
    assert_eq!(program.notes(), Err(ElfError::NoNotes));
    assert!(lacks_variables(&program), "a debug file is looked for");
    assert_eq!(sites(&program.with_debug_symbols(&debug).unwrap()), Ok(expected));
}

/// The loader changes the first instruction of `begins`, the second of `continues`, and the tail call of `leaves`. Its
/// table of changes has one of two forms.
#[test]
fn instructions_that_the_loader_changes_are_not_probed() {
    let code = ".p2align 4\nbegin begins\n movabs $table, %rax\nbehind: mov (%rax), %eax\n ret\nend begins\n\
                .p2align 4\nbegin argument\n movabs $table, %rdi\n mov (%rdi), %eax\n ret\nend argument\n\
                .p2align 4\nbegin continues\n mov %edi, %eax\n movabs $table, %rcx\n ret\nend continues\n\
                .p2align 4\nbegin leaves\n push %rbx\n pop %rbx\n movabs $table, %rax\n ret\nend leaves\n\
                .data\n.p2align 3\n.hidden table\n.globl table\ntable: .long 7\n\
                .section .note.GNU-stack, \"\", @progbits\n";
    let packed = ["-fuse-ld=lld", "-Wl,-z,notext,--pack-dyn-relocs=relr"];
    for flags in [&[][..], &packed] {
        let directory = directory();
        let library = linked(directory.path(), code, flags);
        let listed = run(Command::new("readelf").arg("-d").arg(&library));
        assert!(listed.contains("TEXTREL") && listed.contains("(RELR)") != flags.is_empty(), "{listed}");
        let bytes = fs::read(&library).unwrap();
        let image = Image::parse(&bytes).unwrap();
        let site = |name: &str| function_sites(&image, name).unwrap().remove(0);
        let symbols = symbols(&library);
        assert_eq!(site("begins").site.vaddr, symbols["behind"], "{flags:?}");
        assert_eq!(site("continues").site.vaddr, symbols["continues"]);
        for name in ["begins", "continues", "leaves"] {
            assert_eq!(site(name).site.shape.unprobeable(), None, "{name}");
        }
        let reason = site("argument").site.shape.unprobeable().unwrap();
        assert!(reason.contains("text relocation"), "{reason}");
    }
}

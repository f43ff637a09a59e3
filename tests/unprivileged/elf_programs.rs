//! Sites of programs that the test compiles, argument forms of third-party programs, and damaged files.
//!
//! Needs `cc`, `c++`, `objcopy`, `strip` and `sys/sdt.h` (Debian: build-essential, systemtap-sdt-dev).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use exporter::elf::{
    Arch, Cost, ElfError, Form, FunctionSite, Image, Site, SiteError, SiteShape, debug_file_candidates,
    function_sites, go_binary, lacks_variables, notes, parse_args, usdt_sites,
};

use crate::support::program::{compile_kept, run};
use crate::support::random::Xorshift;

const PROBES: &str = r#"
#define _SDT_HAS_SEMAPHORES 1
#include <sys/sdt.h>
__extension__ unsigned short demo_first_semaphore __attribute__((section(".probes"))) = 0x1111;
__extension__ unsigned short demo_second__part_semaphore __attribute__((section(".probes"))) = 0x2222;
struct { int zero, marked; } counters = {0, 0x5eed1234};
static int hidden[4] = {1, 2, 3, 0x0dd01234};
__attribute__((noinline)) int work(int x, long y) {
    STAP_PROBE2(demo, first, x, y);
    hidden[x & 3]++;
    if (demo_second__part_semaphore)
        STAP_PROBE3(demo, second__part, counters.marked, hidden[3], (unsigned char)x);
    return x + 1;
}
int main(int argc, char **argv) { (void)argv; return work(argc, 7L) == 9; }
"#;

const FUNCTIONS: &str = r#"
#include <stdio.h>
namespace shop {
__attribute__((cold, noreturn, noinline)) void shut() { puts("shut"); __builtin_trap(); }
struct Till { int sum; int add(int); int add(long); };
__attribute__((noinline)) int Till::add(int n) { return sum += n; }
__attribute__((noinline)) int Till::add(long n) { if (n > 99) shut(); return sum -= (int)n; }
}
extern "C" {
extern int many_callee(int *);
__attribute__((noinline, weak)) int many_callee(int *p) { return *p; }
__attribute__((noinline)) int pushes(int n) { int a = n; int b = many_callee(&a); return many_callee(&a) + b + n; }
extern int pushes_alias(int) __attribute__((alias("pushes")));
static int chosen(void) { return 3; }
static int (*choose(void))(void) { return chosen; }
int late(void) __attribute__((ifunc("choose")));
int data_only = 4;
}
int main(int argc, char **) { shop::Till t{0}; t.add(argc); t.add(5L); printf("%d\n", late()); return pushes(t.sum); }
"#;

fn compile(name: &str, compiler: &str, source: &str, flags: &[&str]) -> PathBuf {
    compile_kept(name, compiler, source, &[&["-O2"], flags].concat())
}

fn probes_program(name: &str, flags: &[&str]) -> Vec<u8> {
    fs::read(compile(name, "cc", PROBES, flags)).unwrap()
}

fn functions_program(name: &str) -> PathBuf {
    compile(name, "c++", FUNCTIONS, &["-fcf-protection=branch", "-fPIE", "-pie"])
}

fn word(bytes: &[u8], offset: u64) -> u32 {
    let at = offset as usize;
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Returns the word at a static argument's address, which must be what the source puts there.
fn static_value(image: &Image<'_>, bytes: &[u8], site: &Site, arg: usize) -> u32 {
    match site.args[arg].as_ref().unwrap().form {
        Form::Static { vaddr } => word(bytes, image.file_offset(vaddr).unwrap()),
        ref other => panic!("argument {arg} is {other:?}"),
    }
}

#[test]
fn sites_and_semaphores_in_pie_and_non_pie() {
    for (name, flags, pie) in
        [("probes-pie", &["-fPIE", "-pie"][..], true), ("probes-fixed", &["-fno-pie", "-no-pie"], false)]
    {
        let bytes = probes_program(name, flags);
        let image = Image::parse(&bytes).unwrap();
        assert_eq!((image.arch(), image.is_pie()), (Arch::X86_64, pie), "{name}");
        assert_eq!(notes(&image).unwrap().len(), 2, "{name}");

        let first = usdt_sites(&image, "demo", "first").unwrap();
        let second = usdt_sites(&image, "demo", "second__part").unwrap();
        for (sites, semaphore) in [(&first, 0x1111), (&second, 0x2222)] {
            assert_eq!(sites.len(), 1, "{name}");
            assert_eq!(bytes[sites[0].offset as usize], 0x90, "{name}: the site is a nop");
            assert_eq!(image.file_offset(sites[0].vaddr), Some(sites[0].offset));
            assert_eq!(image.code_vaddr(sites[0].offset), Some(sites[0].vaddr));
            assert_eq!((sites[0].shape, sites[0].cost()), (SiteShape::Nop, Cost::Cheap));
            assert_eq!(word(&bytes, sites[0].ref_ctr_offset) & 0xffff, semaphore, "{name}: the semaphore");
        }
        assert_eq!(first[0].args.len(), 2);
        assert_eq!(second[0].args.len(), 3);
        assert_eq!(static_value(&image, &bytes, &second[0], 0), 0x5eed1234, "{name}: an exported variable");
        assert_eq!(static_value(&image, &bytes, &second[0], 1), 0x0dd01234, "{name}: a static variable");
    }
}

#[test]
fn stripping_loses_only_arguments_named_by_symbol() {
    let path = compile("probes-stripped", "cc", PROBES, &["-fPIE", "-pie", "-Wl,--build-id=sha1"]);
    let debug_path = path.with_extension("debug");
    run(Command::new("objcopy").arg("--only-keep-debug").arg(&path).arg(&debug_path));
    run(Command::new("objcopy").args(["--strip-all", "--add-gnu-debuglink"]).arg(&debug_path).arg(&path));
    let (bytes, debug_bytes) = (fs::read(&path).unwrap(), fs::read(&debug_path).unwrap());

    let stripped = Image::parse(&bytes).unwrap();
    let site = &usdt_sites(&stripped, "demo", "second__part").unwrap()[0];
    let error = site.args[0].as_ref().unwrap_err().to_string();
    assert!(error.contains("counters") && error.contains("stripped"), "{error}");
    assert!(site.args[2].is_ok(), "a register needs no symbol");
    let error = function_sites(&stripped, "work").unwrap_err().to_string();
    assert!(error.contains("no function work") && error.contains("stripped"), "{error}");

    let debug = Image::parse(&debug_bytes).unwrap();
    let whole = stripped.with_debug_symbols(&debug).unwrap();
    assert!(lacks_variables(&stripped) && !lacks_variables(&whole));
    let site = &usdt_sites(&whole, "demo", "second__part").unwrap()[0];
    assert_eq!(static_value(&whole, &bytes, site, 0), 0x5eed1234);
    let work = &function_sites(&whole, "work").unwrap()[0];
    assert!(work.size > 0 && work.site.offset < site.offset && site.offset < work.site.offset + work.size);

    let candidates = debug_file_candidates(&stripped, &path);
    assert!(candidates.contains(&debug_path), "{candidates:?}");
    let id = stripped.build_id().unwrap();
    assert_eq!(id.len(), 20);
    let by_id = format!("/usr/lib/debug/.build-id/{:02x}", id[0]);
    assert!(candidates[0].starts_with(by_id), "{candidates:?}");

    let other = compile("probes-other", "cc", &PROBES.replace("7L", "8L"), &["-Wl,--build-id=sha1"]);
    let other = fs::read(other).unwrap();
    let other = Image::parse(&other).unwrap();
    assert_eq!(stripped.with_debug_symbols(&other).unwrap_err(), SiteError::OtherBuild);
}

#[test]
fn detects_a_semaphore_on_a_page_loaded_twice() {
    let twice = |name: &str, flags: &[&str]| {
        let bytes = probes_program(name, flags);
        let image = Image::parse(&bytes).unwrap();
        let site = &usdt_sites(&image, "demo", "first").unwrap()[0];
        image.semaphore(site.ref_ctr_offset).is_some_and(|of| of.is_on_shared_page)
    };
    assert!(twice("probes-lld", &["-fuse-ld=lld"]));
    assert!(!twice("probes-lld-apart", &["-fuse-ld=lld", "-Wl,-z,separate-loadable-segments"]));
    assert!(!twice("probes-bfd", &["-fuse-ld=bfd"]));
}

#[test]
fn missing_probe_suggests_similar_names() {
    let bytes = probes_program("probes-absent", &[]);
    let image = Image::parse(&bytes).unwrap();
    let error = usdt_sites(&image, "demo", "frist").unwrap_err();
    assert!(error.to_string().contains("demo:first"), "{error}");
    let nothing = fs::read("/bin/true").unwrap();
    let error = usdt_sites(&Image::parse(&nothing).unwrap(), "demo", "first").unwrap_err();
    assert_eq!(error, SiteError::Elf(ElfError::NoNotes));
}

fn names(found: &[FunctionSite]) -> Vec<&str> {
    found.iter().map(|f| f.demangled.as_deref().unwrap_or(&f.name)).collect()
}

#[test]
fn finds_functions_by_symbol_source_name_glob_and_offset() {
    let bytes = fs::read(functions_program("functions")).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let find = |pattern: &str| function_sites(&image, pattern).unwrap_or_else(|e| panic!("{pattern}: {e}"));

    let plain = find("pushes");
    assert_eq!(names(&plain), ["pushes"]);
    let pushes = &plain[0];
    assert!(pushes.at_entry && pushes.checked && !pushes.is_go && pushes.size > 4);
    assert_eq!(pushes.site.shape, SiteShape::Push, "the push after endbr64");
    assert_eq!(bytes[pushes.site.offset as usize - 4..][..4], [0xf3, 0x0f, 0x1e, 0xfa]);
    assert_eq!(find("pushes_alias")[0].site, pushes.site);
    assert_eq!(names(&find("pushes*")), ["pushes"], "two names of one address are one site");

    assert_eq!(names(&find("shop::Till::add")), ["shop::Till::add", "shop::Till::add"]);
    assert_eq!(find("shop::Till::add(int)").len(), 1);
    assert_eq!(find("_ZN4shop4Till3addEl"), find("shop::Till::add(long)"));
    assert_eq!(names(&find("shop::Till::*")), ["shop::Till::add", "shop::Till::add"]);

    let cold = "_ZN4shop4Till3addEl.cold";
    assert_eq!(
        find(cold)[0].name,
        cold,
        "the seldom part is there, and above it was not taken for the function"
    );

    let entry = pushes.site.offset - 4;
    assert_eq!(find("pushes+4")[0].site, pushes.site);
    assert!(!find("pushes+0x4")[0].at_entry);
    assert_eq!(find(&format!("{entry:#x}"))[0].site, pushes.site, "an offset of an entry is that entry");
    let inside = &find(&format!("{:#x}", entry + 4))[0];
    assert_eq!((inside.name.as_str(), inside.checked), ("pushes+0x4", true));
}

#[test]
fn unprobeable_locations_state_the_reason() {
    let path = functions_program("functions-refused");
    let bytes = fs::read(&path).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let error = |pattern: &str| function_sites(&image, pattern).expect_err(pattern).to_string();
    assert!(error("pushes+1").contains("inside an instruction"), "{}", error("pushes+1"));
    assert!(error("pushes+1").contains("+0x0 and +0x4"), "{}", error("pushes+1"));
    assert!(error("pushes+0x10000").contains("has only"), "{}", error("pushes+0x10000"));
    assert!(error("pushes*+4").contains("glob"), "{}", error("pushes*+4"));
    assert!(error("late").contains("chosen at program start"), "{}", error("late"));
    assert!(error("data_only").contains("not a function"), "{}", error("data_only"));
    assert!(error("printf").contains("shared library"), "{}", error("printf"));
    assert!(error("pushed").contains("nearest is pushes"), "{}", error("pushed"));
    assert!(error("0x7fffffff").contains("no code is loaded"), "{}", error("0x7fffffff"));
    assert!(error("0x0").contains("no code is loaded"), "the file header is not code");

    let entry = function_sites(&image, "pushes").unwrap()[0].site.offset - 4;
    run(Command::new("strip").arg(&path));
    let bytes = fs::read(&path).unwrap();
    let stripped = Image::parse(&bytes).unwrap();
    let unknown = &function_sites(&stripped, &format!("{:#x}", entry + 4)).unwrap()[0];
    assert!(!unknown.checked && unknown.site.offset == entry + 4);
}

#[test]
fn distinguishes_other_file_types() {
    let path = compile("kinds", "cc", PROBES, &[]);
    let bytes = fs::read(&path).unwrap();
    let patched = |at: usize, value: u8| {
        let mut copy = bytes.clone();
        copy[at] = value;
        copy
    };
    let error = |bytes: &[u8]| Image::parse(bytes).unwrap_err();
    assert_eq!(error(b"#!/bin/sh\nexec true\n"), ElfError::NotElf);
    assert_eq!(error(b""), ElfError::NotElf);
    // An x32 program, according to its machine field.
    assert_eq!(error(&patched(4, 1)), ElfError::Class32(62));
    assert_eq!(error(&patched(5, 2)), ElfError::BigEndian);
    assert_eq!(error(&patched(18, 40)), ElfError::Machine(40));
    assert_eq!(error(&patched(16, 1)), ElfError::NotLinked(1));
    let other = patched(18, 183);
    let other = Image::parse(&other).unwrap();
    assert_eq!(other.arch(), Arch::Aarch64);
    let error = function_sites(&other, "work+5").unwrap_err().to_string();
    assert!(error.contains("+0x4 and +0x8"), "instructions of aarch64 have four bytes: {error}");

    let image = Image::parse(&bytes).unwrap();
    assert!(!go_binary(&image));
    let go = path.with_extension("go");
    run(Command::new("objcopy")
        .arg("--add-section")
        .arg(format!(".go.buildinfo={}", path.display()))
        .args([&path, &go]));
    let go = fs::read(go).unwrap();
    assert!(go_binary(&Image::parse(&go).unwrap()));

    // The type and owner of the last note; the sizes of its owner and descriptor precede them.
    let last = bytes.windows(12).rposition(|w| w == b"\x03\0\0\0stapsdt\0").unwrap() - 8;
    let mut broken = bytes.clone();
    broken[last + 3] = 0xff;
    let error = notes(&Image::parse(&broken).unwrap()).unwrap_err();
    assert_eq!(
        error,
        ElfError::BadNote { offset: last as u64, reason: "its owner extends past the end" },
        "{error}"
    );
}

#[test]
fn parses_every_argument_of_shipped_programs() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/notes");
    let mut programs = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        programs += 1;
        for line in text.lines() {
            let mut parts = line.splitn(3, ' ');
            let probe = (parts.next().unwrap(), parts.next().expect("provider and name"));
            let args = parts.next().unwrap_or("");
            let read = parse_args(Arch::X86_64, args);
            assert_eq!(read.len(), args.matches('@').count(), "{}: {line}", path.display());
            for arg in read {
                let arg = arg.unwrap_or_else(|e| panic!("{} {probe:?}: {e}", path.display()));
                let (size, _) = arg.text.split_once('@').unwrap();
                let signed_size = if arg.signed { -i32::from(arg.size) } else { i32::from(arg.size) };
                assert_eq!(size.parse(), Ok(signed_size), "{line}");
            }
        }
    }
    assert_eq!(programs, 11, "one fixture for each program");
}

/// Calls everything that can parse a file.
fn ask_everything(bytes: &[u8]) {
    let Ok(image) = Image::parse(bytes) else { return };
    let _ = (image.build_id(), go_binary(&image), debug_file_candidates(&image, Path::new("/bin/true")));
    let _ = image.with_debug_symbols(&image);
    for note in notes(&image).into_iter().flatten().take(4) {
        let _ = usdt_sites(&image, &note.provider, &note.name);
    }
    let _ = usdt_sites(&image, "demo", "second__part");
    for pattern in ["work", "work+3", "*", "wrok", "0x1150", "shop::Till::add(int)"] {
        let _ = function_sites(&image, pattern);
    }
}

#[test]
fn survives_damaged_files() {
    let programs = [
        fs::read("/bin/true").unwrap(),
        probes_program("probes-damaged", &[]),
        fs::read(functions_program("functions-damaged")).unwrap(),
    ];
    for program in &programs {
        for length in (0..program.len()).step_by(program.len() / 200) {
            ask_everything(&program[..length]);
        }
        // Where damage matters most: file header, program headers, section headers, symbols, notes.
        let headers = usize::try_from(u64::from_le_bytes(program[40..48].try_into().unwrap())).unwrap();
        let notes = program.windows(8).position(|w| w == b"stapsdt\0").unwrap_or(0x400);
        let tables = headers.saturating_sub(4096);
        let regions = [0..64, 64..0x300, headers..program.len(), notes..notes + 0x100, tables..headers];
        let mut random = Xorshift(0x9e37_79b9_7f4a_7c15);
        for _ in 0..1500 {
            let mut copy = program.clone();
            for _ in 0..1 + random.below(6) {
                let region = match random.below(regions.len() + 1) {
                    i if i < regions.len() => regions[i].clone(),
                    _ => 0..program.len(),
                };
                let at = (region.start + random.below(region.len())).min(program.len() - 1);
                copy[at] = match random.below(4) {
                    0 => 0xff,
                    1 => 0,
                    2 => copy[at] ^ (1 << random.below(8)),
                    _ => random.below(256) as u8,
                };
            }
            ask_everything(&copy);
        }
    }
}

#[test]
fn hostile_notes_cost_no_more_than_their_size() {
    let bytes = probes_program("probes-hostile", &[]);
    let at = bytes.windows(8).position(|w| w == b"stapsdt\0").unwrap();
    let args_at = bytes[at..].windows(3).position(|w| w == b"-4@").unwrap() + at;
    for garbage in
        [&b"(((((((("[..], b"8@8@8@8@", b"        ", b"\xff\xfe\xfd\xfc\xff\xff\xff\xff", b"-@+-+-+-"]
    {
        let mut copy = bytes.clone();
        copy[args_at..args_at + 8].copy_from_slice(garbage);
        ask_everything(&copy);
        let image = Image::parse(&copy).unwrap();
        assert_eq!(usdt_sites(&image, "demo", "first").unwrap().len(), 1, "the probe itself is whole");
    }
    for huge in ["(".repeat(1 << 20), "( ".repeat(1 << 20), " ".repeat(1 << 20), "8@$1+".repeat(1 << 18)] {
        assert!(parse_args(Arch::X86_64, &huge).iter().all(Result::is_err));
        assert!(parse_args(Arch::Aarch64, &huge).iter().all(Result::is_err));
    }
}

/// Memory that is cleared at program start cannot hold a semaphore, because it is raised before that.
#[test]
fn rejects_a_semaphore_in_bss() {
    let source = PROBES.replace("__attribute__((section(\".probes\"))) = 0x1111", "");
    assert_ne!(source, PROBES);
    let path = compile("probes-bss", "cc", &source, &["-O2"]);
    let bytes = fs::read(path).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let error = usdt_sites(&image, "demo", "first").unwrap_err().to_string();
    assert!(error.contains("demo:first") && error.contains("cleared at program start"), "{error}");
    assert!(usdt_sites(&image, "demo", "second__part").is_ok());
}

#[test]
fn reads_notes_from_several_sections() {
    let other =
        PROBES.replace("demo", "twin").replace("struct {", "static struct {").replace(" work(", " more(");
    let (other, _) = other.split_once("int main").unwrap();
    let source = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("probes-twin.c");
    fs::write(&source, other).unwrap();
    let bytes = probes_program("probes-apart", &["-Wl,--unique=.note.stapsdt", source.to_str().unwrap()]);
    let notes = notes(&Image::parse(&bytes).unwrap()).unwrap();
    let of = |provider: &str| notes.iter().filter(|note| note.provider == provider).count();
    assert_eq!((of("demo"), of("twin")), (2, 2), "{notes:#?}");
}

#[test]
fn rejects_sites_in_writable_code() {
    let mut bytes = probes_program("probes-writable", &[]);
    let u64_at = |bytes: &[u8], at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().unwrap());
    let first = u64_at(&bytes, 0x20) as usize;
    let segments = usize::from(bytes[0x38]);
    // p_type PT_LOAD, p_flags R and X.
    let code = (0..segments).map(|n| first + 56 * n).find(|at| bytes[*at..][..8] == [1, 0, 0, 0, 5, 0, 0, 0]);
    bytes[code.unwrap() + 4] = 7;
    let image = Image::parse(&bytes).unwrap();
    for site in [
        usdt_sites(&image, "demo", "first").unwrap()[0].clone(),
        function_sites(&image, "work").unwrap()[0].site.clone(),
    ] {
        assert_eq!((site.shape, site.cost()), (SiteShape::Writable, Cost::NeverFires));
        assert!(site.shape.unprobeable().is_some_and(|err| err.contains("writable")));
    }
}

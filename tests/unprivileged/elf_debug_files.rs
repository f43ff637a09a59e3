//! Symbols from debug files and from symbols that are embedded in a program.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use exporter::elf::{Image, embedded_symbols, function_sites};

use crate::elf_names::offsets;
use crate::support::program::{compile_kept as compile, run};

const WORK: &str = "__attribute__((noinline)) int work(int x) { asm volatile(\"\"); return x * FACTOR; }\n\
                    int main(int n, char **v) { (void)v; return work(n); }\n";

#[test]
fn debug_file_of_another_build_is_ignored() {
    let build = |factor: &str| {
        let define = format!("-DFACTOR={factor}");
        compile(&format!("names-debug-{factor}"), "cc", WORK, &["-O1", &define, "-Wl,--build-id=none"])
    };
    let (path, other) = (build("3"), build("1234567"));
    let debug = path.with_extension("debug");
    run(Command::new("objcopy").arg("--only-keep-debug").arg(&path).arg(&debug));
    let stripped = path.with_extension("stripped");
    run(Command::new("objcopy")
        .arg("--strip-all")
        .arg(format!("--add-gnu-debuglink={}", debug.display()))
        .args([&path, &stripped]));
    let bytes = [&stripped, &debug, &other].map(|path| fs::read(path).unwrap());
    let [program, debug, other] = bytes.each_ref().map(|bytes| Image::parse(bytes).unwrap());
    assert!(program.build_id().is_none() && function_sites(&program, "work").is_err());
    let named = program.with_debug_symbols(&debug).expect("its checksum is right");
    assert_eq!(function_sites(&named, "work").unwrap().len(), 1);
    assert!(program.with_debug_symbols(&other).is_err());
    let mut changed = bytes[1].clone();
    *changed.last_mut().unwrap() ^= 1;
    assert!(program.with_debug_symbols(&Image::parse(&changed).unwrap()).is_err());
    // A program that does not refer to a debug file accepts none.
    assert!(other.with_debug_symbols(&debug).is_err());
}

#[test]
fn rejects_debug_symbols_inside_other_functions() {
    let path =
        compile("names-stale", "cc", WORK, &["-O1", "-DFACTOR=3", "-Wl,--build-id=0x0123456789abcdef"]);
    let bytes = fs::read(&path).unwrap();
    let entry = function_sites(&Image::parse(&bytes).unwrap(), "work").unwrap()[0].site.vaddr;
    // lea (%rdi,%rdi,2),%eax is three bytes long and is followed by ret.
    let debug = path.with_extension("debug");
    run(Command::new("objcopy")
        .args(["--add-symbol", &format!("torn={:#x},function,global", entry + 1)])
        .args(["--add-symbol", &format!("other={:#x},function,global", entry + 3)])
        .args(["--add-symbol", &format!("right={entry:#x},function,global")])
        .args([&path, &debug]));
    let stripped = path.with_extension("stripped");
    run(Command::new("strip").arg("-o").arg(&stripped).arg(&path));
    let [program, debug] = [&stripped, &debug].map(|path| fs::read(path).unwrap());
    let debug = Image::parse(&debug).unwrap();
    let named = Image::parse(&program).unwrap().with_debug_symbols(&debug).expect("the same build-id");
    assert_eq!(offsets(&named, "right"), offsets(&named, "work"));
    let error = |name: &str| function_sites(&named, name).unwrap_err().to_string();
    // An instruction begins two bytes after the wrong entry; that does not make the entry right.
    for (name, says) in [("torn", "inside an instruction"), ("torn+2", "inside an instruction")] {
        assert!(error(name).contains(says), "{}", error(name));
    }
    for name in ["other", "other+1"] {
        assert!(error(name).contains("another build"), "{}", error(name));
    }
    assert_eq!(offsets(&named, "*"), &offsets(&named, "*") - &BTreeSet::from([entry + 1, entry + 3]));
}

#[test]
fn decompression_bomb_is_not_unpacked() {
    let path = compile("names-bomb", "cc", WORK, &["-O1", "-DFACTOR=3"]);
    let packed = path.with_extension("xz");
    run(Command::new("sh")
        .arg("-c")
        .arg(format!("head -c 70000000 /dev/zero | xz -0 > {}", packed.display())));
    let carrying = path.with_extension("carrying");
    run(Command::new("objcopy")
        .arg(format!("--add-section=.gnu_debugdata={}", packed.display()))
        .args([&path, &carrying]));
    let bytes = fs::read(&carrying).unwrap();
    assert!(embedded_symbols(&Image::parse(&bytes).unwrap()).is_none());
}

/// Builds a stripped program with the symbol of one of its functions embedded, compressed by xz with these options;
/// returns it and the original program.
fn carrying(name: &str, packing: &[&str]) -> (Vec<u8>, Vec<u8>) {
    let path = compile(name, "cc", WORK, &["-O1", "-DFACTOR=3"]);
    let mini = path.with_extension("mini");
    run(Command::new("objcopy").args(["-S", "--keep-symbol=work"]).args([&path, &mini]));
    let packed = path.with_extension("mini.xz");
    run(Command::new("xz").args(["--keep", "--force"]).args(packing).arg(&mini));
    let carrying = path.with_extension("carrying");
    run(Command::new("objcopy")
        .arg("--strip-all")
        .arg(format!("--add-section=.gnu_debugdata={}", packed.display()))
        .args([&path, &carrying]));
    (fs::read(&carrying).unwrap(), fs::read(&path).unwrap())
}

#[test]
fn reads_compressed_embedded_symbols() {
    let (bytes, whole) = carrying("names-mini", &[]);
    let right = offsets(&Image::parse(&whole).unwrap(), "work");
    let image = Image::parse(&bytes).unwrap();
    assert!(function_sites(&image, "work").is_err());
    let embedded = embedded_symbols(&image).unwrap();
    let named = image.with_embedded_symbols(&Image::parse(&embedded).unwrap());
    assert_eq!(offsets(&named, "work"), right);
}

#[test]
fn unreadable_embedded_symbols_are_reported() {
    let (bytes, _) = carrying("names-filtered", &["--x86", "--lzma2"]);
    let image = Image::parse(&bytes).unwrap();
    assert_eq!(embedded_symbols(&image), None);
    let said = function_sites(&image, "work").unwrap_err().to_string();
    assert!(said.contains("its .gnu_debugdata is damaged, too large or packed otherwise"), "{said}");
}

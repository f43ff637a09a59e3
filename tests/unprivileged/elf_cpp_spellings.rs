//! Every spelling of a C++ name means the same function, and functions that the compiler adds are not taken for it.
//!
//! Needs `cc`, `c++`, `g++`, `clang++-14` and `strip`.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use exporter::elf::{Image, SymbolIndex, function_sites};

use crate::elf_names::offsets;
use crate::support::names::listed_names_are_accepted;
use crate::support::program::{compile_kept as compile, run};

const SHAPES: &str = r#"
#include <string>
template <unsigned N> __attribute__((noinline)) int lit(int x) { return x + (int)N; }
template <class T> __attribute__((noinline)) T conv(T x) { return x; }
struct Foo {
    virtual ~Foo();
    explicit operator bool() const;
    Foo &operator+=(const Foo &);
    int get(char) const;
    int v = 1;
};
Foo::~Foo() { v = 0; asm volatile("" ::: "memory"); }
Foo::operator bool() const { return v; }
Foo &Foo::operator+=(const Foo &o) { v += o.v; return *this; }
int Foo::get(char c) const { return c + v; }
std::string text(int n) { return std::string(n, 'x'); }
asm(".globl bare\nbare: ret\n");
extern "C" void bare();
int main(int n, char **) {
    Foo *f = new Foo; *f += *f; int r = f->get('a') + (bool)*f; delete f; bare();
    return r + lit<3u>(n) + (int)conv(1.5) + (int)text(n).size();
}
"#;

#[test]
fn every_spelling_of_a_cpp_name_is_accepted() {
    let bytes = fs::read(compile("names-cpp", "c++", SHAPES, &["-O1"])).unwrap();
    let image = Image::parse(&bytes).unwrap();
    for (ways, symbols) in [
        (&["text", "text(int)", "text[abi:cxx11]", "text[abi:cxx11](int)"][..], &["_Z4textB5cxx11i"][..]),
        (&["conv<double>", "conv<double>(double)", "double conv<double>(double)"], &["_Z4convIdET_S0_"]),
        (
            &["lit<3u>", "lit<3>", "lit<3u>(int)", "int lit<3u>(int)", "int lit<3u>( int )"],
            &["_Z3litILj3EEii"],
        ),
        (&["Foo::operator bool", "Foo::operator bool() const"], &["_ZNK3FoocvbEv"]),
        (&["Foo::operator+=", "Foo::operator+=(Foo const&)"], &["_ZN3FoopLERKS_"]),
        (&["Foo::get", "Foo::get(char) const"], &["_ZNK3Foo3getEc"]),
        (&["bare"], &["bare"]),
    ] {
        let right: BTreeSet<u64> = symbols.iter().flat_map(|symbol| offsets(&image, symbol)).collect();
        for way in ways {
            assert_eq!(offsets(&image, way), right, "{way}");
        }
    }
}

#[test]
fn deleting_destructor_is_not_counted_twice() {
    // A library calls its own functions through the PLT.
    for (name, flags) in [
        ("names-destructor", &["-O1"][..]),
        ("names-destructor.so", &["-O1", "-shared", "-fPIC"]),
        ("names-destructor-cet.so", &["-O1", "-shared", "-fPIC", "-fcf-protection", "-Wl,-z,now"]),
        ("names-destructor-no-plt.so", &["-O1", "-shared", "-fPIC", "-fno-plt"]),
        ("names-destructor-local.so", &["-O1", "-shared", "-fPIC", "-fno-plt", "-Wl,-Bsymbolic"]),
    ] {
        let bytes = fs::read(compile(name, "c++", SHAPES, flags)).unwrap();
        let image = Image::parse(&bytes).unwrap();
        let (complete, deleting) = (offsets(&image, "_ZN3FooD1Ev"), offsets(&image, "_ZN3FooD0Ev"));
        assert_ne!(complete, deleting);
        assert_eq!(offsets(&image, "Foo::~Foo"), complete, "{name}");
        assert_eq!(offsets(&image, "Foo::*"), &offsets(&image, "Foo::*") - &deleting, "{name}");
    }
}

const COROUTINES: &str = r"
#include <coroutine>
struct Turns {
    struct promise_type {
        Turns get_return_object() { return { std::coroutine_handle<promise_type>::from_promise(*this) }; }
        std::suspend_always initial_suspend() { return {}; }
        std::suspend_always final_suspend() noexcept { return {}; }
        std::suspend_always yield_value(int) { return {}; }
        void return_void() {}
        void unhandled_exception() {}
    };
    std::coroutine_handle<promise_type> handle;
};
Turns turns(int n) { for (int i = 0; i < n; i++) co_yield i; if (n > 5) throw n; }
struct Table { Turns rows(int n); };
Turns Table::rows(int n) { co_yield n; }
int main() { Table table; turns(2).handle.resume(); table.rows(1).handle.destroy(); }
";

/// The function that runs when a coroutine is resumed has the coroutine's name when demangled, but is not a call of it.
#[test]
fn coroutine_name_means_its_ramp_function() {
    let by_gcc = compile("coroutines-gcc", "g++", COROUTINES, &["-std=c++20", "-O1"]);
    let by_clang =
        compile("coroutines-clang", "clang++-14", COROUTINES, &["-std=c++20", "-fcoroutines-ts", "-O1"]);
    let with_cold_parts = compile("coroutines-cold", "g++", COROUTINES, &["-std=c++20", "-O2"]);
    let cold = "_Z5turnsPZ5turnsiE15_Z5turnsi.Frame.actor.cold";
    let bytes = fs::read(&with_cold_parts).unwrap();
    assert_eq!(function_sites(&Image::parse(&bytes).unwrap(), cold).unwrap().len(), 1);
    for (path, rest) in [(by_gcc, ".actor"), (with_cold_parts, ".actor"), (by_clang, ".resume")] {
        let bytes = fs::read(path).unwrap();
        let image = Image::parse(&bytes).unwrap();
        for (name, symbol) in
            [("turns", "_Z5turnsi"), ("Table::rows", "_ZN5Table4rowsEi"), ("Table::*", "_ZN5Table4rowsEi")]
        {
            let (sites, remarks) = SymbolIndex::of(&image).remarked_sites(name).unwrap();
            let names: Vec<_> = sites.iter().map(|site| site.name.as_str()).collect();
            assert_eq!(names, [symbol], "{name}");
            let is_told =
                remarks.iter().any(|remark| remark.contains("is a coroutine") && remark.contains(rest));
            assert_eq!(is_told, !name.contains('*'), "{name}: {remarks:?}");
        }
    }
    let bytes = fs::read(compile("coroutines-gcc", "g++", COROUTINES, &["-std=c++20", "-O1"])).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let part = "_Z5turnPZ5turnsiE15_Z5turnsi.Frame.actor".replace("_Z5turnP", "_Z5turnsP");
    assert_eq!(function_sites(&image, &part).unwrap().len(), 1, "by its own name");
}

const THUNKS: &str = r"
struct Left { virtual ~Left(); virtual int left(); int a = 1; };
struct Right { virtual ~Right(); virtual int right(); int b = 2; };
struct Both : Left, Right { ~Both(); int right() override; int left() override; };
struct Shared : virtual Right { int right() override; };
Left::~Left() {} Right::~Right() {} Both::~Both() {}
int Left::left() { return a; } int Right::right() { return b; } int Both::left() { return a + b; }
__attribute__((noinline)) int more(int n) { for (volatile int i = 0; i < n; i++) n += i; return n; }
int Both::right() { return more(b) + more(a) + more(a + b) + more(a * b); }
int Shared::right() { return more(b) + more(b + 1) + more(b + 2) + more(b + 3); }
int main() { Both both; Shared shared; Right *all[] = { &both, &shared }; return all[0]->right() + all[1]->right() == 0; }
";

/// A thunk has the name that `nm -C` prints, and is not counted as a separate call where its target function is
/// counted.
#[test]
fn virtual_function_thunks() {
    let path = compile("names-thunks", "g++", THUNKS, &["-O1", "-fno-inline"]);
    listed_names_are_accepted(&path, 10);
    let bytes = fs::read(&path).unwrap();
    let image = Image::parse(&bytes).unwrap();
    for (name, symbol) in [
        ("non-virtual thunk to Both::right()", "_ZThn16_N4Both5rightEv"),
        ("virtual thunk to Shared::right()", "_ZTv0_n32_N6Shared5rightEv"),
    ] {
        assert_eq!(offsets(&image, name), offsets(&image, symbol), "{name}");
        assert_eq!(offsets(&image, name).len(), 1);
    }
    let (sites, remarks) = SymbolIndex::of(&image).remarked_sites("*Both::right*").unwrap();
    assert_eq!(sites.iter().map(|site| site.name.as_str()).collect::<Vec<_>>(), ["_ZN4Both5rightEv"]);
    assert!(remarks.iter().any(|remark| remark.contains("without a thunk: it leads to")), "{remarks:?}");
}

const VERSIONED: &str = r#"
int old_first(int n) { return n + 2; }
int new_first(int n) { return n + 1; }
__asm__(".symver old_first, _ZN4shop5firstEi@SHOP_1");
__asm__(".symver new_first, _ZN4shop5firstEi@@SHOP_2");
"#;

/// `nm -DC` appends the version to the demangled name.
#[test]
fn versioned_cpp_names() {
    let script = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("names-versioned.map");
    fs::write(
        &script,
        "SHOP_1 { global: _ZN4shop5firstEi; local: *; }; SHOP_2 { global: _ZN4shop5firstEi; } SHOP_1;",
    )
    .unwrap();
    let flags = ["-O1", "-shared", "-fPIC", &format!("-Wl,--version-script={}", script.display())];
    let path = compile("names-versioned.so", "cc", VERSIONED, &flags);
    run(Command::new("strip").arg(&path));
    let bytes = fs::read(&path).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let all = offsets(&image, "shop::first");
    assert_eq!(all.len(), 2);
    for (name, symbol) in [
        ("shop::first(int)@SHOP_1", "_ZN4shop5firstEi@SHOP_1"),
        ("shop::first(int)@@SHOP_2", "_ZN4shop5firstEi@@SHOP_2"),
        ("shop::first@SHOP_2", "_ZN4shop5firstEi@SHOP_2"),
        ("shop::f*@SHOP_1", "_ZN4shop5firstEi@SHOP_1"),
    ] {
        let found = offsets(&image, name);
        assert_eq!((found.len(), &found), (1, &offsets(&image, symbol)), "{name}");
    }
    assert_ne!(offsets(&image, "shop::first@SHOP_1"), offsets(&image, "shop::first@SHOP_2"));
    assert!(function_sites(&image, "shop::first(int)@SHOP_3").is_err());
}

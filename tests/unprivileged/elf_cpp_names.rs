//! Every name that `nm -C` and stack traces show for a function refers to that function.
//!
//! Needs `c++`, `clang++-14`, `c++filt`, `go` and the shared libraries of a Debian with a JDK.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use exporter::elf::{Image, SymbolIndex, function_sites};

use crate::elf_names::offsets;
use crate::support::program::compile_kept as compile;

/// Returns the names of symbols as binutils write them.
fn by_cxxfilt(symbols: &[String]) -> Vec<String> {
    let mut filter = Command::new("c++filt").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = filter.stdin.take().unwrap();
    let text = symbols.join("\n") + "\n";
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()).unwrap());
    let output = filter.wait_with_output().unwrap();
    writer.join().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Looks up the name that `nm -C` prints for each C++ function of a file, and returns how many there were.
fn names_of_nm_are_accepted(path: &Path) -> usize {
    let bytes = fs::read(path).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let index = SymbolIndex::of(&image);
    let table = Command::new("readelf").args(["-sW"]).arg(path).output().unwrap().stdout;
    let symbols: BTreeSet<String> = String::from_utf8_lossy(&table)
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.len() >= 8 && fields[3] == "FUNC" && fields[6] != "UND")
        .map(|fields| fields[7].split('@').next().unwrap().to_owned())
        // A deleting destructor has the name of the complete one, which it calls.
        .filter(|name| name.starts_with("_Z") && !name.contains("D0Ev"))
        .collect();
    let symbols: Vec<String> = symbols.into_iter().collect();
    for (symbol, name) in symbols.iter().zip(by_cxxfilt(&symbols)) {
        let [by_name, by_symbol] = [name.as_str(), symbol].map(|pattern| {
            let sites = index.sites(pattern).unwrap_or_else(|error| panic!("{symbol}: {name}: {error}"));
            sites.iter().map(|site| site.site.offset).collect::<BTreeSet<u64>>()
        });
        // Of two thunks that lead to one function, one may call the other.
        if name.contains(" thunk to ") {
            assert!(!by_name.is_empty(), "{name}");
            continue;
        }
        assert!(by_symbol.is_subset(&by_name), "{name} is not found at {by_symbol:x?}, but at {by_name:x?}");
    }
    symbols.len()
}

#[test]
fn libstdcxx_names_of_nm_are_accepted() {
    assert!(names_of_nm_are_accepted(Path::new("/usr/lib/x86_64-linux-gnu/libstdc++.so.6")) > 4000);
}

const FORMS: &str = r#"
#include <string>
#include <type_traits>
volatile long sink;
#define FN __attribute__((noinline))
struct Server { struct Request { int x; }; FN void handle(Request *, const Request &); };
void Server::handle(Request *, const Request &) { sink++; }
struct Key {
    template <class A, class B> FN Key(A, B) { sink++; }
    template <class... A> FN void put(A &&...) { sink++; }
    template <class T> FN operator T() { sink++; return T(); }
    FN void put(std::nullptr_t) { sink++; }
};
template <class T> FN void (*handler(T))(int) { sink++; return nullptr; }
template <class T> FN int (*table(T))[3] { sink++; return nullptr; }
template <void (Server::*F)(Server::Request *, const Server::Request &)> FN void bound() { sink++; }
static int own(int x) { return x; }
template <int (*F)(int)> FN void applied() { sink++; }
template <class T> FN std::enable_if_t<std::is_integral<T>::value, T> whole(T x) { sink++; return x; }
template <class T> FN auto next(T x) -> decltype(x + 1) { sink++; return x + 1; }
template <int N, char C, decltype(nullptr) P> FN int constants() { sink++; return N + C; }
struct Base { virtual ~Base() {} virtual Base *copy(); };
struct Other { virtual ~Other() {} virtual Other *twin(); };
struct Both : Base, Other { Both *copy() override; Both *twin() override; };
Base *Base::copy() { return new Base; }
Other *Other::twin() { return new Other; }
FN Both *Both::copy() { sink++; return new Both; }
FN Both *Both::twin() { sink++; return new Both; }
int main() {
    Server server; Server::Request request{1}; server.handle(&request, request);
    Key key(1, 2.0); key.put(1, std::string("x"), "y"); key.put(); key.put(nullptr); (void)static_cast<long>(key);
    handler(1); table(1.5); bound<&Server::handle>(); applied<own>(); whole(1L); next(2); next(2.5);
    constants<-3, 'x', nullptr>();
    Both both; Base &base = both; Other &other = both; delete base.copy(); delete other.twin();
}
"#;

#[test]
fn names_of_nm_are_accepted_of_both_compilers() {
    let names = ["cpp-names-gcc", "cpp-names-clang"];
    for (name, compiler) in names.into_iter().zip(["g++", "clang++-14"]) {
        let path = compile(name, compiler, FORMS, &["-std=c++17", "-O1"]);
        assert!(names_of_nm_are_accepted(&path) > 20);
        let bytes = fs::read(&path).unwrap();
        let image = Image::parse(&bytes).unwrap();
        // The thunk that adjusts the result calls the function, which is counted once.
        assert_eq!(offsets(&image, "*Both::twin*"), offsets(&image, "_ZN4Both4twinEv"));
        assert_eq!(offsets(&image, "Key::Key<int, double>(int, double)").len(), 1);
        assert_eq!(offsets(&image, "whole<long>").len(), 1);
    }
}

const COPIES: &str = "
long sink;
namespace { __attribute__((noinline)) long scaled(long x, int mode) {
    for (int i = 0; i < 3; i++) { x = mode == 1 ? x * 7 + sink : mode == 2 ? x / 3 - sink : x ^ (sink * mode); sink = x; }
    return x;
} }
int main(int argc, char **) {
    long s = 0;
    for (int i = 0; i < 70; i++) s += scaled(i, 1);
    return (s + scaled(s, argc + 1)) == 1;
}
";

const COROUTINE: &str = "
#include <coroutine>
struct Turns {
    struct promise_type {
        Turns get_return_object() { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
        std::suspend_always initial_suspend() { return {}; }
        std::suspend_always final_suspend() noexcept { return {}; }
        void return_void() {}
        void unhandled_exception() {}
    };
    std::coroutine_handle<promise_type> handle;
};
int sink;
Turns turns(int n) { sink += n; co_await std::suspend_always{}; sink += n; }
int main() { Turns all = turns(3); all.handle.resume(); all.handle.destroy(); }
";

/// `nm -C` and `perf` distinguish a function's copies and parts by `[clone .SUFFIX]`.
#[test]
fn clone_suffix_selects_that_copy() {
    let copies = compile("cpp-names-copies", "g++", COPIES, &["-O3", "-fno-inline"]);
    let coroutine = compile("cpp-names-coroutine", "g++", COROUTINE, &["-std=c++20", "-O1"]);
    for (path, name, symbol) in [
        (
            &copies,
            "(anonymous namespace)::scaled(long, int) [clone .constprop.0]",
            "_ZN12_GLOBAL__N_16scaledEli.constprop.0",
        ),
        (
            &coroutine,
            "turns(turns(int)::_Z5turnsi.Frame*) [clone .actor]",
            "_Z5turnsPZ5turnsiE15_Z5turnsi.Frame.actor",
        ),
    ] {
        let bytes = fs::read(path).unwrap();
        let image = Image::parse(&bytes).unwrap();
        let own = offsets(&image, symbol);
        assert_eq!((own.len(), offsets(&image, name)), (1, own), "{name}");
        let other = name.replace("[clone .", "[clone .other");
        assert!(function_sites(&image, &other).is_err(), "{other}");
    }
}

const GENERIC: &str = r#"package main

type List[T any] struct{ items []T }

//go:noinline
func (l *List[T]) Push(x T) { l.items = append(l.items, x) }

//go:noinline
func Map[T, U any](all []T, f func(T) U) (r []U) {
	for _, x := range all {
		r = append(r, f(x))
	}
	return
}

func main() {
	words, numbers := &List[string]{}, &List[int]{}
	words.Push("x")
	numbers.Push(1)
	println(len(Map(words.items, func(s string) int { return len(s) })), len(Map(numbers.items, func(n int) string { return "y" })))
}
"#;

/// A stack trace shows `[...]` for the types of a generic function, also if the program has a symbol table.
#[test]
fn go_names_of_stack_traces_are_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("generic.go");
    fs::write(&source, GENERIC).unwrap();
    for (name, flags) in [("whole", ""), ("stripped", "-s -w")] {
        let path = directory.path().join(name);
        let mut go = Command::new("go");
        go.args(["build", "-ldflags", flags, "-o"]).args([&path, &source]).env("GOFLAGS", "");
        assert!(go.status().unwrap().success());
        let bytes = fs::read(&path).unwrap();
        let image = Image::parse(&bytes).unwrap();
        for function in ["main.Map[...]", "main.(*List[...]).Push"] {
            assert_eq!(offsets(&image, function).len(), 2, "{name}: {function}");
        }
    }
}

//! What debug information says about the parameters of functions, checked with programs of several compilers.
//!
//! Needs `cc`, `c++`, `clang-14`, `objcopy` and `rustc`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use exporter::elf::{
    Image, ParameterPlace, Parameters, Pointee, SymbolIndex, ValueType, shared_debug_candidates,
};

use crate::support::program::{compile_kept, run};

const SOURCE: &str = r#"
#include <string>
#include <string_view>
#include <cstdio>
struct Small { int a; int b; };
struct Mixed { double d; long n; };
struct Floats { float x, y, z; };
struct Packed { char c; long n; } __attribute__((packed));
struct Bits { unsigned a : 3; unsigned b : 7; };
struct Big { long a[4]; };
struct Empty {};
struct NonTrivial { int v; NonTrivial(const NonTrivial &); ~NonTrivial(); };
struct Holder { NonTrivial held; };
struct Virtual { virtual int f(); long n; };
int Virtual::f() { return 1; }
enum Color { red, green };
enum class Tiny : signed char { a = -1, b };
typedef unsigned short port_t;
namespace ns {
struct S { long sum; __attribute__((noinline)) int add(int n, unsigned char c, const char *who); };
int S::add(int n, unsigned char c, const char *who) { sum += n + c; return puts(who); }
}
extern "C" {
#define KEPT __attribute__((noinline))
KEPT int ints(int a, unsigned b, short c, unsigned char d, long e, unsigned long f, int g, const char *h)
{ return printf("%d %u %d %d %ld %lu %d %s\n", a, b, c, d, e, f, g, h); }
KEPT int floats(double x, int a, float y, long double z, int b) { return printf("%f %d %f %Lf %d\n", x, a, y, z, b); }
KEPT int structs(Small s, int a, Mixed m, int b, Big g, int c, Empty e, int d)
{ (void)e; return printf("%d %d %f %d %ld %d %d\n", s.a, a, m.d, b, g.a[0], c, d); }
KEPT int more(Floats f, port_t p, Packed q, Bits r, std::string_view t, Holder h, int a)
{ return printf("%f %d %ld %d %zu %d %d", f.x, p, q.n, r.b, t.size(), h.held.v, a); }
KEPT Big gives(int a) { printf("%d\n", a); return Big{{a}}; }
KEPT int enums(Color c, Tiny t, bool q, NonTrivial n, Virtual v, int a)
{ return printf("%d %d %d %d %ld %d", c, (int)t, q, n.v, v.n, a); }
KEPT int pointers(const std::string &s, void *p, int (*f)(int), __int128 w, char16_t ch, long ns::S::*m, int last)
{ ns::S with{3}; return printf("%s %p %d %ld %d", s.c_str(), p, f(3), with.*m, last + (int)w + ch); }
KEPT int open_ended(int a, ...) { return printf("%d", a); }
}
int main(int argc, char **) { return argc; }
"#;

fn compile(name: &str, compiler: &str, source: &str, flags: &[&str]) -> PathBuf {
    compile_kept(name, compiler, source, &[flags, &["-g"]].concat())
}

/// Returns the parameters of the only function with this name.
fn parameters_in(path: &Path, function: &str) -> Option<Parameters> {
    let bytes = fs::read(path).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let index = SymbolIndex::of(&image);
    let sites = index.sites(function).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    assert_eq!(sites.len(), 1, "{function}: {sites:?}");
    index.parameters(&sites[0])
}

/// Returns the parameters of GCC's copy of a function.
fn parameters_of_copy(path: &Path, function: &str) -> Parameters {
    let bytes = fs::read(path).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let index = SymbolIndex::of(&image);
    let sites = index.sites(function).unwrap();
    let copy = sites.iter().find(|site| site.name.contains(".constprop")).expect("GCC makes a copy");
    index.parameters(copy).unwrap()
}

/// Formats parameters as `a:0 x:- z:6-7`.
fn words(parameters: &Parameters) -> String {
    let one = |parameter: &exporter::elf::Parameter| {
        let words = match &parameter.words {
            None => "?".to_string(),
            Some(words) if words.is_empty() => "-".to_string(),
            Some(words) if words.len() == 1 => words.start.to_string(),
            Some(words) => format!("{}-{}", words.start, words.end - 1),
        };
        format!("{}:{words}", parameter.name)
    };
    parameters.all.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
fn parameters_follow_the_calling_convention() {
    for (name, compiler, flags) in [
        ("parameters-gcc-0", "c++", &["-O0"][..]),
        ("parameters-gcc-2", "c++", &["-O2"]),
        ("parameters-gcc-dwarf4", "c++", &["-O2", "-gdwarf-4"]),
        ("parameters-clang-dwarf4", "clang++-14", &["-O2", "-gdwarf-4", "-std=c++17", "-fstandalone-debug"]),
        ("parameters-gcc-lto", "c++", &["-O2", "-flto", "-fkeep-inline-functions", "-rdynamic"]),
        ("parameters-clang-0", "clang++-14", &["-O0", "-std=c++17", "-fstandalone-debug"]),
        ("parameters-clang-2", "clang++-14", &["-O2", "-std=c++17", "-fstandalone-debug"]),
    ] {
        // Some declarations have no definition.
        let path = compile(name, compiler, SOURCE, &[flags, &["-shared", "-fPIC"]].concat());
        for (function, expected, count) in [
            ("ints", "a:0 b:1 c:2 d:3 e:4 f:5 g:6 h:7", Some(8)),
            ("floats", "x:- a:0 y:- z:6-7 b:1", Some(8)),
            ("structs", "s:0 a:1 m:2 b:3 g:6-9 c:4 e:- d:5", Some(10)),
            ("more", "f:- p:0 q:6-7 r:1 t:2-3 h:4 a:5", Some(8)),
            ("gives", "a:1", Some(2)),
            ("enums", "c:0 t:1 q:2 n:3 v:4 a:5", Some(6)),
            ("pointers", "s:0 p:1 f:2 w:3-4 ch:5 m:6 last:7", Some(8)),
            ("ns::S::add", "this:0 n:1 c:2 who:3", Some(4)),
            ("open_ended", "a:0", None),
        ] {
            let found = parameters_in(&path, function).unwrap_or_else(|| panic!("{name}: {function}"));
            assert_eq!(words(&found), expected, "{name}: {function}: {found:#?}");
            // DWARF 4 does not say which classes are passed by reference.
            if !name.ends_with("dwarf4") || found.words.is_some() {
                assert_eq!(found.words, count, "{name}: {function}");
            }
        }
        let ints = parameters_in(&path, "ints").unwrap();
        let integer = |bytes, signed| ValueType::Integer { bytes, signed };
        let values: Vec<ValueType> = ints.all.iter().map(|parameter| parameter.value).collect();
        let text = ValueType::Address(Pointee::Text);
        let (wide, unsigned) = (integer(8, true), integer(8, false));
        let narrow = [integer(4, true), integer(4, false), integer(2, true), integer(1, false)];
        assert_eq!(values, [&narrow[..], &[wide, unsigned, integer(4, true), text]].concat(), "{name}");
        assert_eq!(ints.all[7].declared, "const char *");
        let enums = parameters_in(&path, "enums").unwrap();
        let values: Vec<ValueType> = enums.all[..3].iter().map(|parameter| parameter.value).collect();
        assert_eq!(values, [integer(4, false), integer(1, true), integer(1, false)], "{name}");
        let pointers = parameters_in(&path, "pointers").unwrap();
        assert_eq!(pointers.all[0].value, ValueType::Address(Pointee::Structure), "{name}");
        assert_eq!(
            enums.all[3].value,
            ValueType::Address(Pointee::Structure),
            "{name}: passed as its address"
        );
        assert_eq!(pointers.all[2].declared, "function *", "{name}");
    }
}

/// Parameters that are passed in unexpected ways, and what compilers do not record.
const ODD: &str = r#"
#include <complex>
#include <memory>
struct alignas(16) Aligned { long a[4]; };
struct alignas(16) Padded { int a; };
struct Doubles { long double a, b; };
struct Double { long double a; };
union Both { long double a; long b; };
struct Halves { std::complex<float> c; };
template <class T> struct Other { long v; Other(); Other(const Other<float> &); };
struct Base { long q; };
struct Built : virtual Base { long z; __attribute__((noinline)) Built(int a, long b); };
volatile long sink;
Built::Built(int a, long b) { sink += a + b; }
extern "C" {
#define KEPT __attribute__((noinline))
KEPT Aligned gives_aligned(int a) { sink += a; return Aligned{}; }
KEPT Doubles gives_doubles(int a) { sink += a; return Doubles{}; }
KEPT Double gives_double(int a) { sink += a; return Double{}; }
KEPT Both gives_both(int a) { sink += a; return Both{1}; }
KEPT int on_stack(long a, long b, long c, long d, long e, long f, Padded g, int h)
{ return sink += a + b + c + d + e + f + g.a + h; }
KEPT int classes(std::complex<double> a, Halves b, Other<int> c, int d) { return sink += a.real() + b.c.real() + c.v + d; }
KEPT int no_address(std::nullptr_t, long a) { return sink += a; }
}
KEPT int drops(bool b, std::unique_ptr<int> p, long c) { return sink += b + c; }
template <class... A> KEPT int any(int a, A... more, long b) { return sink += a + b + (more + ...); }
int main() { drops(true, {}, 3); Built made(1, 2); return any<int, short>(1, 2, 3, 4); }
"#;

#[test]
fn parameters_passed_in_unusual_ways() {
    for (name, compiler, flags) in [
        ("odd-gcc-0", "c++", &["-O0"][..]),
        ("odd-gcc-s", "c++", &["-Os"]),
        ("odd-gcc-dwarf4", "c++", &["-O0", "-gdwarf-4"]),
        ("odd-clang-0", "clang++-14", &["-O0", "-fstandalone-debug"]),
        ("odd-clang-2", "clang++-14", &["-O2", "-fstandalone-debug"]),
    ] {
        let path = compile(name, compiler, ODD, &[flags, &["-std=c++17"]].concat());
        let is_gcc = compiler == "c++";
        for (function, expected) in [
            ("gives_aligned", "a:1"),
            ("gives_doubles", "a:1"),
            ("gives_double", "a:0"),
            ("gives_both", "a:1"),
            ("on_stack", "a:0 b:1 c:2 d:3 e:4 f:5 g:6-7 h:8"),
            ("classes", "a:- b:- c:0 d:1"),
        ] {
            let found = words(&parameters_in(&path, function).unwrap());
            assert_eq!(found, expected, "{name}: {function}");
        }
        let last = |function: &str| words(&parameters_in(&path, function).unwrap()).pop().unwrap();
        assert!(matches!(last("no_address"), '1' | '?'), "{name}");
        // Clang may drop the unused parameter: then the place is unknown, but not wrong.
        assert!(matches!(last("drops"), '2' | '?'), "{name}");
        assert_eq!(
            words(&parameters_in(&path, "any<int, short>").unwrap()),
            match is_gcc {
                true => "a:0 :1 :2 b:3",
                false => "a:0 more:1 more:2 b:3",
            },
            "{name}"
        );
        // Only the variant for a base subobject is passed where its virtual base is.
        for (symbol, expected) in
            [("_ZN5BuiltC2Eil", "this:0 _:1 a:2 b:3"), ("_ZN5BuiltC1Eil", "this:0 a:1 b:2")]
        {
            let found = words(&parameters_in(&path, symbol).unwrap());
            let found = found.replace("__vtt_parm", "_").replace("vtt", "_");
            assert_eq!(found, expected, "{name}: {symbol}");
        }
    }
}

/// To save space, GCC makes all variants of a constructor jump to a shared one, whose calls are counted.
#[test]
fn shared_constructor_is_counted_once() {
    let path = compile("odd-gcc-shared", "c++", ODD, &["-Os", "-std=c++17"]);
    let bytes = fs::read(&path).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let index = SymbolIndex::of(&image);
    let (sites, remarks) = index.remarked_sites("Built::Built").unwrap();
    assert_eq!(sites.iter().map(|site| &*site.name).collect::<Vec<_>>(), ["_ZN5BuiltC4Eil"], "{remarks:?}");
    assert_eq!(remarks.len(), 2, "{remarks:?}");
    let found = index.parameters(&sites[0]).unwrap();
    assert_eq!(words(&found), "this:0 __in_chrg:1 __vtt_parm:2 a:3 b:4");
}

/// GCC makes copies in which a constant replaces an argument, and shifts the others up.
#[test]
fn arguments_of_clones_follow_debug_info() {
    let source = r#"
#include <stdio.h>
static __attribute__((noinline)) int calc(int mode, int n) { return printf("%d %d\n", mode, n) + printf("%d", n * mode); }
int main(int argc, char **argv) { (void)argv; return calc(7, argc) + calc(7, argc + 5) + calc(7, argc * 9); }
"#;
    let path = compile("parameters-clones", "c++", source, &["-O3"]);
    let found = parameters_of_copy(&path, "calc");
    assert_eq!(words(&found), "mode:0 n:1");
    assert_eq!(found.all[0].place, ParameterPlace::Constant(7));
    assert_eq!(found.all[1].place, ParameterPlace::Word(0));
}

/// Clang removes arguments without renaming the function.
#[test]
fn removed_arguments_are_not_confused_with_others() {
    let source = r#"
#include <stdio.h>
static __attribute__((noinline)) int calc(int unused, int n) { (void)unused; return printf("%d\n", n); }
int main(int argc, char **argv) { (void)argv; return calc(argc * 3, argc) + calc(argc * 5, argc + 5); }
"#;
    let path = compile("parameters-taken-away", "clang++-14", source, &["-O2"]);
    let found = parameters_in(&path, "calc").unwrap();
    assert_eq!(words(&found), "unused:0 n:1");
    assert_eq!(found.all[0].place, ParameterPlace::Nowhere);
    assert_eq!(found.all[1].place, ParameterPlace::Word(0));
}

/// A register in a copy does not correspond to an argument position of the original function, where that position holds
/// another parameter.
#[test]
fn clone_registers_are_not_function_positions() {
    let source = r#"
#include <stdio.h>
struct pair { double d; long n; };
static __attribute__((noinline)) int calc(long a, struct pair unused, long b, long c, long d, __int128 wide, long e)
{ (void)unused; (void)wide; return printf("%ld %ld %ld %ld %ld\n", a, b, c, d, e); }
int main(int argc, char **argv)
{ (void)argv; struct pair p = {1, 2}; return calc(argc, p, argc + 1, argc * 3, argc * 5, 7, argc * 7) + calc(1, p, 2, argc, 3, 7, argc); }
"#;
    let path = compile("parameters-copy", "gcc", source, &["-O2"]);
    let found = parameters_of_copy(&path, "calc");
    assert_eq!(words(&found), "a:0 unused:1 b:2 c:3 d:4 wide:? e:?", "{found:#?}");
    let places: Vec<_> = [0, 2, 3, 4].map(|number: usize| found.all[number].place).to_vec();
    let words = [ParameterPlace::Word(1), ParameterPlace::Word(2), ParameterPlace::Word(3)];
    assert_eq!(places, [&[ParameterPlace::AsDeclared][..], &words].concat());
}

/// Clang may have removed any parameter of a local function for which nothing is recorded.
#[test]
fn parameters_after_a_removable_one_need_debug_info() {
    let source = r#"
#include <stdbool.h>
#include <stdio.h>
struct pair { double d; long n; };
struct aligned { _Alignas(16) long a; };
static __attribute__((noinline)) int small(int a, struct pair unused, bool b) { (void)unused; return printf("%d %d\n", a, b); }
static __attribute__((noinline)) int far(long a, long b, long c, long d, long e, long f, struct aligned unused, int g)
{ (void)unused; return printf("%ld %d\n", a + b + c + d + e + f, g); }
int main(int argc, char **argv)
{ (void)argv; struct pair p = {1, 2}; struct aligned o = {3};
  return small(argc, p, argc > 3) + small(argc + 2, p, argc > 5) + far(argc, 2, argc, 4, argc, 6, o, argc) + far(1, argc, 3, argc, 5, argc, o, 9); }
"#;
    let path = compile("parameters-missing", "clang-14", source, &["-O2"]);
    let place = |function: &str| parameters_in(&path, function).unwrap().all.pop().unwrap().place;
    assert_eq!(place("small"), ParameterPlace::Word(1));
    assert_eq!(place("far"), ParameterPlace::Nowhere);
}

/// For other languages, no calling convention is assumed.
#[test]
fn rust_parameters_follow_debug_info() {
    let source = "#[inline(never)] #[no_mangle] pub fn weigh(n: u16, text: &str, last: i32) -> usize {\n    \
                  std::hint::black_box(n); text.len() + last as usize }\nfn main() { println!(\"{}\", weigh(3, \"x\", 4)); }\n";
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (input, output) = (dir.join("parameters.rs"), dir.join("parameters-rust"));
    fs::write(&input, source).unwrap();
    run(Command::new("rustc").args(["-O", "-g", "-o"]).arg(&output).arg(&input));
    let found = parameters_in(&output, "weigh").unwrap();
    assert_eq!(found.words, None, "{found:?}");
    let placed: Vec<_> = found.all.iter().filter_map(|one| Some((&*one.name, one.word()?))).collect();
    assert!(placed.contains(&("n", 0)), "{found:?}");
    assert!(found.all.iter().all(|one| one.place == ParameterPlace::AsDeclared), "{found:?}");
}

/// Types may be in their own units; and debug information may consist of line numbers only.
#[test]
fn other_debug_info_layouts() {
    let source = r#"
#include <string>
struct Two { int a; long b; };
extern "C" __attribute__((noinline)) int f(Two s, const std::string &n, const char &c, int last) { return s.a + n.size() + c + last; }
int main(int argc, char **argv) { return f({argc, 2}, argv[0], 'c', 4); }
"#;
    let shape = |name: &str, compiler: &str, flags: &[&str]| {
        let path = compile(name, compiler, source, &[&["-O0", "-std=c++17"], flags].concat());
        parameters_in(&path, "f")
    };
    let units = &["-fdebug-types-section"][..];
    for (name, compiler, flags) in [
        ("shape-gcc", "c++", &[][..]),
        ("shape-gcc-units", "c++", units),
        ("shape-gcc-64", "c++", &["-gdwarf64"]),
        ("shape-gcc-3", "c++", &["-gdwarf-3"]),
        ("shape-clang-units", "clang++-14", &["-fdebug-types-section", "-fstandalone-debug"]),
        ("shape-clang-simple", "clang++-14", &["-gsimple-template-names", "-fstandalone-debug"]),
    ] {
        let found = shape(name, compiler, flags).unwrap();
        assert_eq!(words(&found), "s:0-1 n:2 c:3 last:4", "{name}");
        assert_eq!(found.all[0].declared, "Two", "{name}");
        assert_eq!(
            found.all[2].value,
            ValueType::Address(Pointee::Other),
            "{name}: one character is no text"
        );
    }
    // The types are in another section, which is not read.
    let old = shape("shape-gcc-units-4", "c++", &["-gdwarf-4", "-fdebug-types-section"]).unwrap();
    assert_eq!((words(&old).as_str(), old.all[0].declared.as_str()), ("s:? n:? c:? last:?", "?"));
    let lines = compile_kept("shape-gcc-lines", "c++", source, &["-O0", "-g1"]);
    assert_eq!(parameters_in(&lines, "f"), None, "it does not say that there are none");
}

/// What dwz moved to a file shared by several programs is read from there, if it is the right file.
#[test]
fn reads_shared_debug_info() {
    let source = r#"
#include <string>
#include <vector>
struct Two { int a; long b; };
enum class Kind : unsigned char { A, B };
extern "C" __attribute__((noinline)) int f(Two s, const std::string &n, Kind k, const char *t, int last, unsigned short w)
{ return s.a + n.size() + (int)k + last + t[0] + w; }
int main(int n, char **v) { std::vector<std::string> all(v, v + n); return f({n, 2}, all[0], Kind::B, "x", NUMBER, 5); }
"#;
    let build =
        |name: &str, number: &str| compile(name, "c++", source, &["-O1", &format!("-DNUMBER={number}")]);
    let paths = [("shared-one", "1"), ("shared-two", "2")].map(|(name, number)| build(name, number));
    let whole = parameters_in(&paths[0], "f").unwrap();
    let shared = paths[0].with_extension("shared");
    let packed = paths.each_ref().map(|path| path.with_extension("packed"));
    paths.iter().zip(&packed).for_each(|(path, copy)| _ = fs::copy(path, copy).unwrap());
    run(Command::new("dwz").arg("-m").arg(&shared).args(&packed));
    let bytes = fs::read(&packed[0]).unwrap();
    let image = Image::parse(&bytes).unwrap();
    assert!(shared_debug_candidates(&image, &packed[0]).contains(&shared));
    let with = |shared: &Path| {
        let bytes = fs::read(shared).unwrap();
        let index = SymbolIndex::of(&image).with_shared_debug(Image::of_debug_information(&bytes).ok());
        let sites = index.sites("f").unwrap();
        (index.parameters(&sites[0]), index.debug_info_lacks().len())
    };
    assert_eq!(with(&shared), (Some(whole.clone()), 0));
    // From another build.
    let (found, lacks) = with(&paths[1]);
    assert!(found != Some(whole) && lacks == 1, "{found:?}");
}

/// Debug information is read with every kind of compression.
#[test]
fn reads_compressed_debug_info() {
    let plain = compile("parameters-plain", "c++", SOURCE, &["-O2", "-shared", "-fPIC"]);
    for how in ["zlib", "zlib-gnu", "zstd"] {
        let packed = plain.with_extension(how);
        run(Command::new("objcopy").arg(format!("--compress-debug-sections={how}")).args([&plain, &packed]));
        assert_eq!(words(&parameters_in(&packed, "gives").unwrap()), "a:1", "{how}");
    }
}

//! Go programs: each call counts once although stacks grow and move, arguments follow Go's calling convention, and
//! stripped or position-independent programs behave the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::harm;
use crate::support::program::directory;
use crate::support::tracer::{Series, Tracer};

/// Each goroutine begins with a small stack, and `deep` needs 2 KiB per call. `huge` needs so much that its stack check
/// has another form, `leaf` has none. The program prints what it computed, which must not depend on being traced.
const SOURCE: &str = r#"
package main

import (
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
)

type Peer struct {
	name string
	sent int64
}

//go:noinline
func (p *Peer) Handle(kind string, bytes int32, parts []uint64) int {
	sum := len(kind) + int(bytes)
	for _, part := range parts {
		sum += int(part)
	}
	atomic.AddInt64(&p.sent, int64(sum))
	return sum
}

//go:noinline
func deep(n int) int {
	var room [2048]byte
	room[n%2048] = byte(n)
	if n == 0 {
		return int(room[0])
	}
	return deep(n-1) + int(room[n%2048])
}

//go:noinline
func huge(n int) int {
	var room [300000]byte
	room[n%300000] = byte(n)
	return use(room[:], n)
}

//go:noinline
func use(room []byte, n int) int { return int(room[n%len(room)]) + len(room) }

//go:noinline
func leaf(a, b int) int { return 3*a + b }

//go:noinline
func many(a, b, c, d, e, f, g, h, i, j, k int) int {
	return a + b + c + d + e + f + g + h + i + j + k + use([]byte{0}, 0)
}

type number interface{ ~int | ~string }

//go:noinline
func Largest[T number](of ...T) T {
	most := of[0]
	for _, one := range of {
		if one > most {
			most = one
		}
	}
	return most
}

func main() {
	var total int64
	var group sync.WaitGroup
	peer := &Peer{name: "alice"}
	each := func(g int) {
		defer group.Done()
		sum := deep(g % 20)
		sum += huge(g)
		for i := 0; i < 10; i++ {
			sum += leaf(g, i)
			sum += peer.Handle("kind"+strconv.Itoa(i%3), int32(i-5), []uint64{uint64(g), 2}[:1+i%2])
		}
		sum += many(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
		sum += Largest(g, 7) + len(Largest("a", strconv.Itoa(g)))
		atomic.AddInt64(&total, int64(sum))
	}
	for g := 0; g < 200; g++ {
		group.Add(1)
		go each(g)
	}
	group.Wait()
	fmt.Println(total, peer.sent)
}
"#;

/// The ways to build a program.
const BUILDS: [&[&str]; 4] =
    [&[], &["-ldflags=-s -w"], &["-buildmode=pie"], &["-buildmode=pie", "-ldflags=-s -w"]];

fn build(directory: &Path, source: &str, flags: &[&str]) -> PathBuf {
    let (file, binary) = (directory.join("main.go"), directory.join("program"));
    fs::write(&file, source).unwrap();
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go");
    let built = Command::new("go")
        .arg("build")
        .args(flags)
        .arg("-o")
        .args([&binary, &file])
        .env("GOCACHE", cache)
        .envs([("GO111MODULE", "off"), ("GOFLAGS", ""), ("GOTOOLCHAIN", "local")])
        .status()
        .expect("run go; scripts/install-deps.sh --tests installs golang-go");
    assert!(built.success(), "{flags:?}");
    binary
}

fn run(binary: &Path) -> String {
    run_with(binary, &[])
}

fn run_with(binary: &Path, args: &[&str]) -> String {
    let output = Command::new(binary).args(args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn assert_is(series: &Series, name: &str, value: i64) {
    assert_eq!(series.get(name), Some(&value.to_string()), "{name} in {series:#?}");
}

/// Builds the program each way, alternating between the two ways to attach, and checks the counts of one run with these
/// probes.
fn in_each_build(source: &str, probes: &str, check: impl Fn(&Series)) {
    for (n, flags) in BUILDS.iter().enumerate() {
        let attach = if n % 2 == 0 { "auto" } else { "perf" };
        let directory = directory();
        let binary = build(directory.path(), source, flags);
        let untraced = run(&binary);
        let binary_path = binary.display();
        let tracer = Tracer::start(&format!(
            "node_name: test\nattach: {attach}\ntargets:\n- name: go\n  binary: {binary_path}\n  probes:{probes}"
        ));
        assert_eq!(run(&binary), untraced, "{flags:?}");
        check(&tracer.render());
        tracer
            .accounting_at_rest()
            .iter()
            .for_each(|accounting| assert_eq!(accounting.lost, 0, "{accounting:?}"));
    }
}

#[test]
fn calls_and_arguments() {
    const PROBES: &str = r#"
  - function: main.deep
    args: { n: 0 }
    metrics: [{ counter: deep_total }, { counter: deep_sum_total, value: n }]
  - function: main.huge
    metrics: [{ counter: huge_total }]
  - function: main.leaf
    args: { a: 0, b: 1 }
    metrics: [{ counter: leaf_a_total, value: a }, { counter: leaf_b_total, value: b }]
  - function: main.(*Peer).Handle
    args:
      peer: { index: 0, type: string_len, offset: 0, length: 2, max: 5 }
      kind: { index: 1, type: go_string }
      bytes: { index: 3, type: i32 }
      parts: 5
    metrics:
    - { counter: handled_total, labels: { kind: kind, parts: parts } }
    - { counter: of_total, labels: { peer: peer } }
    - { counter: received_total, value: bytes, when: bytes > 0 }
  - function: main.many
    args: { first: 0, ninth: 8 }
    metrics: [{ counter: many_total, labels: { a: first, i: ninth } }]
  - function: main.Largest[*]
    metrics: [{ counter: largest_total }]
  - function: main.main.func1
    metrics: [{ counter: closures_total }]
"#;
    in_each_build(SOURCE, PROBES, |series| {
        let deep: i64 = (0..200).map(|g| g % 20 + 1).sum();
        assert_is(series, "deep_total", deep);
        assert_is(series, "deep_sum_total", (0..200).map(|g| (0..=g % 20).sum::<i64>()).sum());
        assert_is(series, "huge_total", 200);
        assert_is(series, "leaf_a_total", 10 * (0..200).sum::<i64>());
        assert_is(series, "leaf_b_total", 200 * 45);
        for (kind, parts, calls) in
            [(0, 1, 400), (0, 2, 400), (1, 1, 200), (1, 2, 400), (2, 1, 400), (2, 2, 200)]
        {
            assert_is(series, &format!("handled_total{{kind=\"kind{kind}\",parts=\"{parts}\"}}"), calls);
        }
        assert_is(series, "of_total{peer=\"alice\"}", 2000);
        assert_is(series, "received_total", 200 * 10);
        assert_is(series, "many_total{a=\"1\",i=\"9\"}", 200);
        assert_is(series, "largest_total", 400);
        assert_is(series, "closures_total", 200);
    });
}

/// `slow` grows its stack between entry and return, and sleeps, so that it continues on another thread. `thrower`
/// panics through itself and `middle` for odd numbers; `risky` recovers. `quits` ends its goroutine.
const RETURNS: &str = r#"
package main

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

//go:noinline
func deep(n int) int {
	var room [1024]byte
	room[n%1024] = byte(n)
	if n == 0 {
		return int(room[0])
	}
	return deep(n-1) + int(room[n%1024])
}

//go:noinline
func slow(kind string, n int) int {
	before := deep(n)
	time.Sleep(2 * time.Millisecond)
	return before + deep(2*n) + len(kind)
}

//go:noinline
func fib(n int) int {
	if n < 2 {
		return n
	}
	return fib(n-1) + fib(n-2)
}

//go:noinline
func thrower(n int) int {
	if n%2 == 1 {
		panic(errors.New("odd"))
	}
	return n
}

//go:noinline
func middle(n int) int { return thrower(n) + 1 }

//go:noinline
func risky(n int) (result int) {
	defer func() {
		if recover() != nil {
			result = 7
		}
	}()
	return middle(n)
}

//go:noinline
func quits(n int) int {
	if n >= 0 {
		runtime.Goexit()
	}
	return n
}

type Shape interface{ Area(int) int }

type Base struct{ side int }

//go:noinline
func (b *Base) Area(n int) int { return b.side * n }

// Its Area is a jump to that of Base.
type Square struct{ *Base }

func main() {
	var total int64
	var group sync.WaitGroup
	var shape Shape = &Square{&Base{3}}
	for g := 0; g < 100; g++ {
		group.Add(2)
		go func(g int) {
			defer group.Done()
			sum := 0
			for i := 0; i < 3; i++ {
				sum += slow([]string{"even", "odd"}[g%2], g)
				runtime.Gosched()
			}
			sum += fib(10)
			for i := 0; i < 10; i++ {
				sum += risky(i) + shape.Area(i)
			}
			atomic.AddInt64(&total, int64(sum))
		}(g)
		go func(g int) {
			defer group.Done()
			quits(g)
		}(g)
	}
	group.Wait()
	fmt.Println(total)
}
"#;

#[test]
fn returns_and_durations() {
    const PROBES: &str = r#"
  - function: main.slow
    args: { kind: { index: 0, type: go_string }, n: 2 }
    metrics:
    - { histogram: slow_seconds, value: duration, labels: { kind: kind }, buckets: [1ms, 100] }
    - { counter: slow_n_total, value: n }
  - function: main.deep
    metrics: [{ histogram: deep_seconds, value: duration, buckets: [100] }]
  - function: main.fib
    metrics:
    - { histogram: fib_seconds, value: duration, buckets: [100] }
    - { counter: fib_total, value: retval }
  - function: main.risky
    args: { n: 0 }
    metrics: [{ histogram: risky_seconds, value: duration, buckets: [100] }, { counter: risky_total, labels: { n: n, r: retval } }]
  - function: main.middle
    metrics: [{ histogram: middle_seconds, value: duration, buckets: [100] }]
  - function: main.thrower
    metrics: [{ histogram: thrower_seconds, value: duration, buckets: [100] }]
  - function: main.quits
    metrics: [{ histogram: quits_seconds, value: duration, buckets: [100] }, { counter: quits_total }]
  - function: main.(*Base).Area
    metrics: [{ histogram: area_seconds, value: duration, buckets: [100] }]
"#;
    in_each_build(RETURNS, PROBES, |series| {
        for kind in ["even", "odd"] {
            assert_is(series, &format!("slow_seconds_count{{kind=\"{kind}\"}}"), 150);
            // No call took less than its two milliseconds.
            assert_is(series, &format!("slow_seconds_bucket{{kind=\"{kind}\",le=\"0.001\"}}"), 0);
        }
        assert_is(series, "slow_n_total", 3 * (0..100).sum::<i64>());
        assert_is(series, "deep_seconds_count", 3 * (0..100).map(|g| g + 1 + 2 * g + 1).sum::<i64>());
        assert_is(series, "fib_seconds_count", 100 * 177);
        // The return values of fib(10) and of each call that it makes.
        assert_is(series, "fib_total", 100 * fibs(10));
        assert_is(series, "risky_seconds_count", 1000);
        for n in 0..10 {
            let result = if n % 2 == 1 { 7 } else { n + 1 };
            assert_is(series, &format!("risky_total{{n=\"{n}\",r=\"{result}\"}}"), 100);
        }
        for name in ["middle", "thrower"] {
            assert_is(series, &format!("{name}_seconds_count"), 500);
        }
        assert_is(series, "quits_total", 100);
        assert_is(series, "quits_seconds_count", 0);
        assert_is(series, "area_seconds_count", 1000);
    });
}

/// Returns the sum of the return values of all calls that `fib(n)` makes, including itself.
fn fibs(n: u32) -> i64 {
    let value = |n| (0..n).fold((0, 1), |(a, b), _| (b, a + b)).0;
    if n < 2 { value(n) } else { value(n) + fibs(n - 1) + fibs(n - 2) }
}

/// Many calls from many goroutines, whose stacks grow in the middle of a call while the garbage collector shrinks them
/// and signals preempt them.
const MILLION: &str = r#"
package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
)

//go:noinline
func grow(depth int) int {
	var room [512]byte
	room[depth] = byte(depth)
	if depth == 0 {
		return 0
	}
	return grow(depth-1) + int(room[depth])
}

//go:noinline
func work(n int, text string) (int, string) {
	if n%100 == 0 {
		grow(n / 20)
	}
	if n%1000 == 0 {
		runtime.GC()
	}
	return 12*n + len(text), text
}

func main() {
	var total int64
	var wrong int64
	var group sync.WaitGroup
	goroutines, _ := strconv.Atoi(os.Args[1])
	for g := 0; g < goroutines; g++ {
		group.Add(1)
		go func(g int) {
			defer group.Done()
			sum := 0
			for i := 1; i <= 1000; i++ {
				result, text := work(i, "text")
				if result != 12*i+4 || text != "text" {
					atomic.AddInt64(&wrong, 1)
				}
				sum += result
			}
			atomic.AddInt64(&total, int64(sum))
		}(g)
	}
	group.Wait()
	fmt.Println(total, wrong)
}
"#;

#[test]
fn many_calls_cause_no_harm() {
    let directory = directory();
    let binary = build(directory.path(), MILLION, &[]);
    let each: i64 = (1..=1000).map(|n| 12 * n + 4).sum();
    for attach in ["auto", "perf"] {
        let goroutines = harm::calls(200_000) as i64 / 1000;
        let count = goroutines.to_string();
        let expected = format!("{} 0\n", goroutines * each);
        let tracer = Tracer::start(&format!(
            r#"
node_name: test
attach: {attach}
targets:
- name: go
  binary: {}
  probes:
  - function: main.work
    args: {{ n: 0 }}
    metrics:
    - {{ histogram: work_seconds, value: duration, buckets: [100] }}
    - {{ counter: returned_total, value: retval }}
    - {{ counter: n_total, value: n }}
  - function: main.grow
    metrics: [{{ histogram: grow_seconds, value: duration, buckets: [100] }}]
"#,
            binary.display()
        ));
        assert_eq!(run_with(&binary, &[&count]), expected, "{attach}");
        let series = tracer.render();
        assert_is(&series, "work_seconds_count", 1000 * goroutines);
        assert_is(&series, "returned_total", goroutines * each);
        assert_is(&series, "n_total", goroutines * (1..=1000).sum::<i64>());
        let grown: i64 = (1..=10).map(|n| n * 100 / 20 + 1).sum();
        assert_is(&series, "grow_seconds_count", goroutines * grown);
        tracer
            .accounting_at_rest()
            .iter()
            .for_each(|accounting| assert_eq!(accounting.lost, 0, "{accounting:?}"));
    }
}

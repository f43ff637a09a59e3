//! Go programs: each call counts once although stacks grow and move, arguments are Go's, and a stripped or
//! position-independent program is no other.

#[path = "common/tracer.rs"]
mod tracer;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tracer::{Series, Tracer, folder};

/// Each goroutine begins with a small stack, and `deep` wants 2 KiB for each call. `huge` wants so much that the stack
/// check has another form, `leaf` has none. Prints what it computed, which must not depend on being traced.
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

/// Ways to build a program.
const BUILDS: [&[&str]; 4] =
    [&[], &["-ldflags=-s -w"], &["-buildmode=pie"], &["-buildmode=pie", "-ldflags=-s -w"]];

fn build(folder: &Path, source: &str, flags: &[&str]) -> PathBuf {
    let (file, binary) = (folder.join("main.go"), folder.join("program"));
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
    let output = Command::new(binary).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn assert_is(series: &Series, name: &str, value: i64) {
    assert_eq!(series.get(name), Some(&value.to_string()), "{name} in {series:#?}");
}

#[test]
fn calls_and_arguments() {
    for (n, flags) in BUILDS.iter().enumerate() {
        let attach = if n % 2 == 0 { "auto" } else { "perf" };
        let folder = folder();
        let binary = build(folder.path(), SOURCE, flags);
        let untraced = run(&binary);
        let tracer = Tracer::start(&format!(
            r#"
node_name: test
attach: {attach}
targets:
- name: go
  binary: {}
  probes:
  - function: main.deep
    args: {{ n: 0 }}
    metrics: [{{ counter: deep_total }}, {{ counter: deep_sum_total, value: n }}]
  - function: main.huge
    metrics: [{{ counter: huge_total }}]
  - function: main.leaf
    args: {{ a: 0, b: 1 }}
    metrics: [{{ counter: leaf_a_total, value: a }}, {{ counter: leaf_b_total, value: b }}]
  - function: main.(*Peer).Handle
    args:
      peer: {{ index: 0, type: string_len, offset: 0, length: 2, max: 5 }}
      kind: {{ index: 1, type: go_string }}
      bytes: {{ index: 3, type: i32 }}
      parts: 5
    metrics:
    - {{ counter: handled_total, labels: {{ kind: kind, parts: parts }} }}
    - {{ counter: of_total, labels: {{ peer: peer }} }}
    - {{ counter: received_total, value: bytes, when: bytes > 0 }}
  - function: main.many
    args: {{ ninth: 8, tenth: 9, eleventh: 10 }}
    metrics: [{{ counter: many_total, labels: {{ i: ninth, j: tenth, k: eleventh }} }}]
  - function: main.Largest[*]
    metrics: [{{ counter: largest_total }}]
  - function: main.main.func1
    metrics: [{{ counter: closures_total }}]
"#,
            binary.display()
        ));
        assert_eq!(run(&binary), untraced, "{flags:?}");
        let series = tracer.render();
        let deep: i64 = (0..200).map(|g| g % 20 + 1).sum();
        assert_is(&series, "deep_total", deep);
        assert_is(&series, "deep_sum_total", (0..200).map(|g| (0..=g % 20).sum::<i64>()).sum());
        assert_is(&series, "huge_total", 200);
        assert_is(&series, "leaf_a_total", 10 * (0..200).sum::<i64>());
        assert_is(&series, "leaf_b_total", 200 * 45);
        for (kind, parts, calls) in
            [(0, 1, 400), (0, 2, 400), (1, 1, 200), (1, 2, 400), (2, 1, 400), (2, 2, 200)]
        {
            assert_is(&series, &format!("handled_total{{kind=\"kind{kind}\",parts=\"{parts}\"}}"), calls);
        }
        assert_is(&series, "of_total{peer=\"alice\"}", 2000);
        assert_is(&series, "received_total", 200 * 10);
        assert_is(&series, "many_total{i=\"9\",j=\"10\",k=\"11\"}", 200);
        assert_is(&series, "largest_total", 400);
        assert_is(&series, "closures_total", 200);
        tracer.books_at_rest().iter().for_each(|books| assert_eq!(books.lost, 0, "{books:?}"));
    }
}

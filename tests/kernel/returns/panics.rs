//! Panics through traced functions, caught and uncaught. Prints how often the functions were entered and how often they
//! returned.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

static ENTERED: AtomicU64 = AtomicU64::new(0);
static RETURNED: AtomicU64 = AtomicU64::new(0);
static DROPPED: AtomicU64 = AtomicU64::new(0);

struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        DROPPED.fetch_add(1, Relaxed);
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "Rust" fn may_panic(depth: u64, panics: bool) -> u64 {
    ENTERED.fetch_add(1, Relaxed);
    let _guard = Guard;
    if black_box(depth) == 0 {
        assert!(!black_box(panics), "as asked");
        RETURNED.fetch_add(1, Relaxed);
        return 1;
    }
    let below = may_panic(depth - 1, panics);
    RETURNED.fetch_add(1, Relaxed);
    black_box(below) + 1
}

fn main() {
    let calls: u64 = std::env::args().nth(1).unwrap().parse().unwrap();
    let uncaught = std::env::args().nth(2).is_some();
    std::panic::set_hook(Box::new(|_| {}));
    let mut caught = 0;
    for n in 0..calls {
        match std::panic::catch_unwind(|| may_panic(n % 4, n % 3 == 0)) {
            Ok(depth) => assert_eq!(depth, n % 4 + 1),
            Err(_) => caught += 1,
        }
        if n % 100 == 0 {
            assert!(std::thread::spawn(|| may_panic(2, true)).join().is_err());
        }
    }
    assert_eq!(caught, calls.div_ceil(3));
    assert_eq!(DROPPED.load(Relaxed), ENTERED.load(Relaxed));
    println!("may_panic {} {} 0", ENTERED.load(Relaxed), RETURNED.load(Relaxed));
    if uncaught {
        may_panic(3, true);
    }
}

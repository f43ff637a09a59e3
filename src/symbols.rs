//! Names of code addresses, by blazesym.

use std::collections::HashMap;
use std::sync::Arc;

use blazesym::Pid;
use blazesym::symbolize::source::{Process, Source};
use blazesym::symbolize::{Input, Symbolized, Symbolizer};

/// Addresses that are remembered. When there are more, all are looked up anew.
const REMEMBERED: usize = 16_384;

/// What an address is called that belongs to no function that is known.
const UNKNOWN: &str = "unknown";

/// Looks up names, and remembers them.
pub struct Symbols {
    symbolizer: Symbolizer,
    known: HashMap<(u32, u64), Arc<str>>,
}

impl Symbols {
    pub fn new() -> Self {
        Self { symbolizer: Symbolizer::new(), known: HashMap::new() }
    }

    /// The function that holds the address in this process, demangled; `unknown` if nothing says so, as for a process
    /// that has ended before it was looked at.
    pub fn name(&mut self, pid: u32, address: u64) -> Arc<str> {
        if let Some(name) = self.known.get(&(pid, address)) {
            return name.clone();
        }
        let mut process = Process::new(Pid::from(pid));
        // Following /proc/PID/map_files takes a right that the exporter has given up; the paths in maps will do.
        process.map_files = false;
        let found = self.symbolizer.symbolize_single(&Source::Process(process), Input::AbsAddr(address));
        let name: Arc<str> = match found {
            Ok(Symbolized::Sym(symbol)) => symbol.name.as_ref().into(),
            Ok(Symbolized::Unknown(_)) | Err(_) => UNKNOWN.into(),
        };
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        self.known.insert((pid, address), name.clone());
        name
    }
}

impl Default for Symbols {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    extern "C" fn a_function_of_the_test() -> u64 {
        std::hint::black_box(7)
    }

    #[test]
    fn a_function_of_this_process_has_its_name() {
        let mut symbols = Symbols::new();
        let address = a_function_of_the_test as *const () as u64;
        for _ in 0..2 {
            let name = symbols.name(std::process::id(), address + 1);
            assert!(name.contains("a_function_of_the_test"), "{name}");
        }
        assert_eq!(&*symbols.name(std::process::id(), 8), "unknown");
        assert_eq!(&*symbols.name(u32::MAX >> 1, address), "unknown");
    }
}

//! Everything that the exporter is compared with.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use libbpf_rs::{Link, MapCore, MapHandle, Object, ObjectBuilder, RingBufferBuilder, UprobeMultiOpts};

use crate::target::Target;

/// The loaded hand-written programs.
pub struct Rivals {
    object: Object,
    target: std::path::PathBuf,
}

impl Rivals {
    /// Compiles and loads the programs.
    pub fn load(directory: &Path, target: &Target) -> Result<Self, String> {
        let object = directory.join("rivals.bpf.o");
        let root = env!("CARGO_MANIFEST_DIR");
        let compiled = Command::new(env!("BPF_CLANG"))
            .args(["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror"])
            .arg(format!("-I{root}/bpf"))
            .arg(concat!("-I", env!("BPF_INCLUDE")))
            .arg("-c")
            .arg(format!("{root}/benches/compare/rivals.bpf.c"))
            .arg("-o")
            .arg(&object)
            .status();
        if !compiled.as_ref().is_ok_and(|status| status.success()) {
            return Err(format!("compiling rivals.bpf.c with {}: {compiled:?}", env!("BPF_CLANG")));
        }
        let object = ObjectBuilder::default()
            .open_file(&object)
            .and_then(|open| open.load())
            .map_err(|err| format!("loading rivals.bpf.c: {err:#}; run this as root"))?;
        Ok(Self { object, target: target.path.clone() })
    }

    /// Attaches one program to a probe's sites. Dropping the link detaches it.
    pub fn attach(&self, program: &str, sites: &[usize]) -> Result<Link, String> {
        let found = self.object.progs_mut().find(|found| found.name() == program);
        let session = program == "empty_session";
        let opts = UprobeMultiOpts { offsets: sites.to_vec(), session, ..UprobeMultiOpts::default() };
        found
            .ok_or(format!("no program {program}"))?
            .attach_uprobe_multi_with_opts(-1, &self.target, "", opts)
            .map_err(|err| format!("attaching {program}: {err:#}"))
    }

    /// Starts a thread that is woken for every event and takes events one by one.
    pub fn consume(&self) -> Result<Consumer, String> {
        let ring = self.object.maps().find(|map| map.name() == "events").ok_or("no ring buffer")?;
        let ring = MapHandle::try_from(&ring).map_err(|err| err.to_string())?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut builder = RingBufferBuilder::new();
            let ring = builder.add(&ring, |event| {
                std::hint::black_box(event);
                0
            });
            if ring.is_err() {
                return;
            }
            let Ok(ring) = builder.build() else { return };
            while !stopped.load(Ordering::Relaxed) {
                let _ = ring.poll(Duration::from_millis(20));
            }
        });
        Ok(Consumer { stop, thread: Some(thread) })
    }
}

/// The thread of a naive exporter. Dropping it stops the thread.
pub struct Consumer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A running bpftrace.
pub struct Bpftrace {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Bpftrace {
    /// Starts `usdt:PROBE { ACTION }` and waits until it is attached.
    pub fn start(target: &Target, probe: &str, action: &str) -> Result<Self, String> {
        // BEGIN would run before the probe is attached, but a timer that has fired twice means that everything is
        // attached.
        let script = format!(
            "interval:ms:100 {{ printf(\"running\\n\"); }} usdt:{}:bench:{probe} {{ {action} }}",
            target.path.display()
        );
        let mut child = Command::new("bpftrace")
            .args(["-B", "line", "-e", &script])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|err| format!("not run: {err}"))?;
        let stdout = child.stdout.take().ok_or("no output")?;
        let mut made = Self { child, output: BufReader::new(stdout) };
        let (mut line, mut fired) = (String::new(), 0);
        while fired < 2 {
            line.clear();
            match made.output.read_line(&mut line) {
                Ok(n) if n > 0 => fired += usize::from(line.starts_with("running")),
                _ => return Err("it cannot attach".to_string()),
            }
        }
        Ok(made)
    }

    /// Stops bpftrace and returns the sum of all counts that it printed.
    pub fn finish(mut self) -> u64 {
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-INT", &pid]).status();
        let mut text = String::new();
        let _ = self.output.read_to_string(&mut text);
        let _ = self.child.wait();
        // Lines such as "@: 5", "[2, 4)    5 |@@@   |" and "[0]    5 |@@@   |".
        text.lines()
            .filter_map(|line| {
                let count = line.strip_prefix("@: ").or_else(|| Some(line.split_once([')', ']'])?.1))?;
                count.split_whitespace().next()?.parse::<u64>().ok()
            })
            .sum()
    }
}

impl Drop for Bpftrace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

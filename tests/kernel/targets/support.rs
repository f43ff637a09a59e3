//! Programs that the tests build, start, and control by input lines.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

pub use exporter::kernel::can_make_wait;

/// The maximum time for which a program is held until the exporter has answered.
pub const MAX_HOLD: Duration = Duration::from_millis(500);

use crate::support::program::directory;
use crate::support::tracer::{Tracer, eventually};

/// Builds the program at a path with these compiler options.
pub fn build(at: &Path, options: &[&str]) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernel/targets/program.c");
    let built = Command::new("cc")
        .args(options)
        .arg("-o")
        .arg(at)
        .arg(source)
        .args(["-ldl", "-pthread"])
        .status()
        .unwrap();
    assert!(built.success());
}

/// Creates a directory with `first` and `second`, two builds of the program with different probe sites.
pub fn builds() -> tempfile::TempDir {
    let directory = directory();
    build(&directory.path().join("first"), &["-O1", "-DPAD=1"]);
    build(&directory.path().join("second"), &["-O3", "-fcf-protection=full", "-DPAD=40"]);
    directory
}

pub fn run(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).status().unwrap();
    assert!(done.success(), "{program} {arguments:?}: {done}");
}

/// Copies in another process: a descriptor that is open for writing here could leak into a child that another test
/// starts.
pub fn copy(from: &Path, to: &Path) {
    run("cp", &[from.to_str().unwrap(), to.to_str().unwrap()]);
}

/// A running program.
pub struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// Held while starting, so that forked children of one test do not inherit descriptors that another test is writing to.
static STARTING: Mutex<()> = Mutex::new(());

impl Program {
    pub fn start(path: &Path) -> Self {
        Self::of(&mut Command::new(path))
    }

    pub fn of(command: &mut Command) -> Self {
        let _one = STARTING.lock();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, output: BufReader::new(output) }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Starts the program as the process with this number; `None` if another process has the number.
    pub fn start_as(pid: u32, path: &Path) -> Option<Self> {
        (0..1000).find_map(|_| {
            fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
            let started = Some(Self::start(path)).filter(|program| program.pid() == pid);
            if started.is_none() {
                // It may end soon.
                std::thread::sleep(Duration::from_millis(10));
            }
            started
        })
    }

    /// Sends a line, and returns the program's answer when it is done.
    pub fn say(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").unwrap();
        self.input.flush().unwrap();
        self.answer()
    }

    /// Like [`Program::say`], for lines without an answer.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
        self.input.flush().unwrap();
    }

    /// Returns the program's answer to one line.
    pub fn answer(&mut self) -> String {
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        assert!(!answer.is_empty(), "the program has ended: {:?}", self.child.wait());
        answer.trim_end().to_string()
    }

    /// Waits until the program exits by itself.
    pub fn end(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    pub fn fire(&mut self, times: u64) {
        self.say(&times.to_string());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns a configuration of targets, each given by its name `T` and the text after `- name: T`; each counts its own
/// hits as `T_total`.
pub fn config(targets: &[(&str, &str)]) -> String {
    let mut text = "node_name: test\ntargets:\n".to_string();
    for (name, selector) in targets {
        text += &format!(
            "- name: {name}\n  {selector}\n  probes:\n  - on: usdt:t:hit\n    metrics: [{{ counter: {name}_total }}]\n"
        );
    }
    text
}

pub fn count(tracer: &Tracer, series: &str) -> u64 {
    tracer.render().get(series).map_or(0, |value| value.parse().unwrap())
}

/// Starts the program and makes it fire at once, from a shell as an operator would; it must exit successfully.
pub fn fire_at_once(path: &Path, times: u64) {
    run(path.to_str().unwrap(), &[&times.to_string()]);
}

/// Waits until a probe has this many sites, in all its files.
pub fn until_sites(tracer: &Tracer, probe: usize, sites: usize) {
    eventually(&format!("{sites} sites, {:?} now", tracer.state(probe)), || tracer.state(probe).1 == sites);
}

/// A cgroup that is removed when dropped, together with parents that have become empty.
pub struct Cgroup(pub PathBuf);

impl Cgroup {
    pub fn new(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn start(&self, program: &Path) -> Program {
        let script = "echo $$ > $0/cgroup.procs && exec $1";
        Program::of(Command::new("sh").args(["-c", script]).arg(&self.0).arg(program))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A cgroup is only empty once its processes have been waited for.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() || !self.0.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // The parents that were created for it.
        let _ = self.0.ancestors().skip(1).try_for_each(fs::remove_dir);
    }
}

/// A mount point, unmounted when dropped.
pub struct Mounted {
    pub at: PathBuf,
}

impl Mounted {
    /// Mounts with this command, to which the path is appended.
    pub fn at(at: &Path, mount: &[&str]) -> Self {
        fs::create_dir_all(at).unwrap();
        run(mount[0], &[&mount[1..], &[at.to_str().unwrap()]].concat());
        Self { at: at.to_path_buf() }
    }

    /// Mounts an overlay over `lower`.
    pub fn overlay(lower: &Path, work: &Path) -> Self {
        let [upper, inner] = ["upper", "work"].map(|name| work.join(name));
        for directory in [&upper, &inner] {
            fs::create_dir_all(directory).unwrap();
        }
        let options =
            format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), inner.display());
        Self::at(&work.join("merged"), &["mount", "-t", "overlay", "overlay", "-o", &options])
    }

    /// Mounts a hierarchy of cgroup version 1 without controllers.
    pub fn version_1(work: &Path) -> Self {
        let options = format!("none,name=exporter-test-{}", std::process::id());
        Self::at(&work.join("version_1"), &["mount", "-t", "cgroup", "-o", &options, "cgroup"])
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

/// Returns the mount point of cgroup version 2.
pub fn hierarchy() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let found = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    found.expect("control groups of version 2").split(' ').nth(1).unwrap().into()
}

/// In each round, code that was never seen before fires this often. All of it is counted where the kernel can hold the
/// process, unless the exporter gets no CPU time for longer than the process is held, which happens, but not always.
pub fn counted_from_the_first_hit(tracer: &Tracer, series: &str, hits: u64, mut turn: impl FnMut(u32)) {
    let mut whole = 0;
    for number in 0..30 {
        let before = count(tracer, series);
        turn(number);
        let counted = count(tracer, series) - before;
        assert!(counted <= hits, "{counted}");
        whole += u32::from(counted == hits);
        if whole == 4 || !can_make_wait() {
            return;
        }
    }
    panic!("{whole} times all was counted");
}

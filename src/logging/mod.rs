//! The log: standard output, and a file if configured.
//!
//! Lines pass through a bounded queue to a separate thread, so that a stopped terminal or a slow disk never delays
//! events; a line that finds the queue full is dropped and counted. The format is the one for which FIBRE operators
//! have filters: `2024-01-15 10:30:00 [INFO] exporter: text`. For systemd's journal, which adds the time and the name
//! itself, standard output is `<6>text` instead: the level is that of `sd-daemon(3)`, so that `journalctl --priority`
//! finds problems.

mod file;

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use chrono::{DateTime, Local};
use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::config::model::LogLevel;
pub use file::LogFile;

/// Lines that may be queued.
const QUEUE_LINES: usize = 4096;

/// How long [`Logging::flush`] waits for a reader that has stopped reading.
const FLUSH: Duration = Duration::from_millis(200);

/// The installed log.
#[derive(Debug, Clone)]
pub struct Logging {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Message {
    Line(Line),
    /// Answered when everything before it has been written.
    Flush(SyncSender<()>),
}

/// One event.
#[derive(Debug)]
struct Line {
    level: Level,
    at: DateTime<Local>,
    text: String,
}

impl Line {
    fn plain(&self) -> String {
        let level = match self.level {
            Level::Error => "ERROR",
            Level::Warn => "WARNING",
            Level::Info => "INFO",
            Level::Debug | Level::Trace => "DEBUG",
        };
        format!("{} [{level}] exporter: {}\n", self.at.format("%Y-%m-%d %H:%M:%S"), self.text)
    }

    /// The format for the journal, with the priority of `syslog(3)`.
    fn journal(&self) -> String {
        let priority = match self.level {
            Level::Error => 3,
            Level::Warn => 4,
            Level::Info => 6,
            Level::Debug | Level::Trace => 7,
        };
        format!("<{priority}>{}\n", self.text)
    }
}

/// Whether standard output is the journal: `systemd.exec(5)` gives its device and inode, because a redirected child
/// inherits the variable too.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(io::stdout()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

impl Logging {
    /// Installs the log for the whole process.
    ///
    /// # Errors
    /// If the log's thread cannot be created, or a log is already installed.
    pub fn install(level: LogLevel, file: Option<LogFile>) -> io::Result<Self> {
        let (queue, lines) = sync_channel(QUEUE_LINES);
        let logging = Self { queue, dropped: Arc::default(), failed: Arc::default() };
        let failed = logging.failed.clone();
        std::thread::Builder::new().name("log".to_string()).spawn(move || write(&lines, file, &failed))?;
        log::set_boxed_logger(Box::new(logging.clone())).map_err(io::Error::other)?;
        set_level(level);
        Ok(logging)
    }

    /// Number of lines that found the queue full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Number of lines that were not written, or not everywhere: the disk is full, or standard output is not read.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Waits a short time until everything logged so far has been written.
    pub fn wait(&self) {
        let (done, wait) = sync_channel(1);
        if self.queue.try_send(Message::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(FLUSH);
        }
    }
}

impl Log for Logging {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // For libraries only problems; for the exporter the configured level.
        metadata.target().starts_with("exporter") || metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // One event is one line, and moves no terminal's cursor, whatever the names of files and processes contain.
        let text = record.args().to_string().replace(char::is_control, " ");
        let line = Line { level: record.level(), at: Local::now(), text };
        if self.queue.try_send(Message::Line(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {
        self.wait();
    }
}

/// Sets the log level.
pub(crate) fn set_level(level: LogLevel) {
    log::set_max_level(match level {
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Warning => LevelFilter::Warn,
        LogLevel::Error => LevelFilter::Error,
    });
}

/// Logs libbpf's details at debug level; its errors are returned as values.
pub(crate) fn log_libbpf() {
    libbpf_rs::set_print(Some((libbpf_rs::PrintLevel::Info, |_, text| log::debug!("{}", text.trim_end()))));
}

/// Writes lines until the last sender is dropped. Errors are counted: the log itself is where they would be reported.
fn write(lines: &Receiver<Message>, mut file: Option<LogFile>, failed: &AtomicU64) {
    let mut stdout = io::stdout();
    let journal = is_journal();
    while let Ok(message) = lines.recv() {
        match message {
            Message::Line(line) => {
                let formatted = if journal { line.journal() } else { line.plain() };
                let to_stdout = stdout.write_all(formatted.as_bytes()).and_then(|()| stdout.flush());
                let to_file = file.as_mut().map_or(Ok(()), |file| file.write(&line.plain()));
                if to_stdout.and(to_file).is_err() {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            }
            Message::Flush(done) => {
                let _ = done.try_send(());
            }
        }
    }
}

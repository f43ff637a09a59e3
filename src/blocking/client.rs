//! `exporter block`, `unblock` and `blocklist`: the client of the control socket.

use std::fmt;
use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Duration;

use serde_json::{Value, json};

use super::PATH;
use crate::net::{BlockDirection, BlockScope, Prefix};
use crate::table::TextTable;
use crate::terminal;

/// Entries requested at once.
const PER_PAGE: usize = 10_000;

/// The response timeout: longer than the exporter's own.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(40);

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Block {
        prefix: Prefix,
        reason: String,
        ttl: Option<Duration>,
        direction: Option<BlockDirection>,
        scope: Option<BlockScope>,
        /// Undo it unless it is confirmed within this time.
        confirm: Option<Duration>,
    },
    Unblock(Prefix),
    /// Show all entries, or one of them.
    List {
        prefix: Option<Prefix>,
        json: bool,
    },
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum CommandError {
    /// Nothing answers on this socket.
    Unreachable(PathBuf, io::Error),
    /// The response is malformed.
    Answer(PathBuf, String),
    /// The exporter refused, with status and reason.
    Refused(u16, String),
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(path, error) => {
                write!(f, "failed to connect to the exporter at {}: {error}; ", path.display())?;
                match error.kind() {
                    ErrorKind::PermissionDenied => f.write_str("run this as root"),
                    _ => f.write_str(
                        "is it running with `network: { block: ... }`? Name its configuration with --config, or the socket \
                         with --socket",
                    ),
                }
            }
            Self::Answer(path, what) => {
                write!(f, "{} is not an exporter's control socket: {what}", path.display())
            }
            Self::Refused(_, text) => f.write_str(text),
        }
    }
}

impl CommandError {
    /// Whether the request itself is invalid.
    pub fn is_in_request(&self) -> bool {
        matches!(self, Self::Refused(400, _))
    }
}

/// Executes the command; returns the text to print. For a change that needs confirmation, `say` gets the text first,
/// and a line on standard input confirms it.
pub(crate) fn command(
    socket: &Path,
    command: &Command,
    say: &mut dyn FnMut(&str),
) -> Result<String, CommandError> {
    match command {
        Command::Block { prefix, reason, ttl, direction, scope, confirm } => {
            let mut asked = json!({ "prefix": prefix.to_string() });
            let mut set = |name: &str, value: Option<String>| {
                if let Some(value) = value {
                    asked[name] = value.into();
                }
            };
            set("reason", Some(reason.clone()).filter(|reason| !reason.is_empty()));
            set("ttl", ttl.map(|ttl| ttl.as_secs().to_string()));
            set("direction", direction.map(|direction| direction.word().to_string()));
            set("protocol", scope.map(|scope| scope.protocol.word().to_string()));
            set("ports", scope.and_then(|scope| scope.port_range()));
            let Some(within) = confirm else {
                return Ok(described(&ask(socket, "POST", PATH, Some(&asked))?));
            };
            let mut unconfirmed = asked.clone();
            unconfirmed["confirm"] = within.as_secs().to_string().into();
            say(&described(&ask(socket, "POST", PATH, Some(&unconfirmed))?));
            say(&format!("Press Enter within {} to keep it.\n", shown_time(within.as_secs_f64())));
            if !is_confirmed(*within) {
                let text = "Not confirmed: the entry is removed when this time has passed, or at once by `exporter unblock`.\n";
                return Ok(text.to_string());
            }
            ask(socket, "POST", PATH, Some(&asked))?;
            Ok(format!("{prefix} stays blocked.\n"))
        }
        Command::Unblock(prefix) => {
            let asked = json!({ "prefix": prefix.to_string() });
            let answer = ask(socket, "DELETE", PATH, Some(&asked))?;
            Ok(match answer["changed"].as_bool() {
                Some(true) => format!("{prefix} is not blocked any more.\n"),
                _ => format!("{prefix} was not blocked.\n"),
            })
        }
        Command::List { prefix: Some(prefix), json } => {
            let entry = ask(socket, "GET", &format!("{PATH}/{prefix}"), None)?;
            Ok(if *json { pretty(&entry) } else { table(&[entry], terminal::width()) })
        }
        Command::List { prefix: None, json } => {
            let mut entries: Vec<Value> = Vec::new();
            for page in 1.. {
                let path = format!("{PATH}?page={page}&per_page={PER_PAGE}");
                let Value::Array(more) = ask(socket, "GET", &path, None)?["entries"].take() else { break };
                let is_last = more.len() < PER_PAGE;
                entries.extend(more);
                if is_last {
                    break;
                }
            }
            Ok(if *json { pretty(&Value::Array(entries)) } else { table(&entries, terminal::width()) })
        }
    }
}

/// Whether a line arrives on standard input within this time.
fn is_confirmed(within: Duration) -> bool {
    let (sender, receiver) = channel();
    // Without input, the thread waits until the program exits.
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = io::stdin().lock().read_line(&mut line);
        sender.send(read.is_ok_and(|bytes| bytes > 0 && line.ends_with('\n')))
    });
    // Otherwise there was no line, or it is too late.
    receiver.recv_timeout(within).unwrap_or(false)
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Describes the outcome of a request to block.
fn described(answer: &Value) -> String {
    let prefix = answer["prefix"].as_str().unwrap_or_default();
    let mut text = match (answer["changed"].as_bool(), answer["enforced"].as_bool()) {
        (Some(false), _) => {
            format!("{prefix} was already blocked; its time, reason and ports are now those given.\n")
        }
        (_, Some(false)) => format!("{prefix} is listed; nothing is dropped, because of `mode: observe`.\n"),
        _ => format!("{prefix} is blocked.\n"),
    };
    for (except, reason) in answer["except"].as_object().into_iter().flatten() {
        text += &format!("  except {except}, {}\n", reason.as_str().unwrap_or_default());
    }
    text
}

/// Formats entries as a table. Rows wider than `screen` become blocks.
fn table(entries: &[Value], screen: Option<usize>) -> String {
    if entries.is_empty() {
        return "nothing is blocked\n".to_string();
    }
    let mut table = TextTable::new(
        0,
        &["PREFIX", "DIRECTION", "ONLY", "SOURCE", "EXPIRES", "PACKETS", "BYTES", "LAST", "REASON"],
    );
    for entry in entries {
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_string();
        let number = |name: &str| entry[name].as_u64().unwrap_or_default().to_string();
        let time = |name: &str, none: &str| entry[name].as_f64().map_or_else(|| none.to_string(), shown_time);
        let expires = time("expires_in", "never");
        let is_unconfirmed = entry["unconfirmed"].as_bool() == Some(true);
        table.row([
            text("prefix"),
            text("direction"),
            format!("{} {}", text("protocol"), text("ports")).trim().to_string(),
            format!("{} {}", text("source"), text("origin")).trim_end().to_string(),
            if is_unconfirmed { format!("{expires} (unconfirmed)") } else { expires },
            number("packets"),
            number("bytes"),
            time("last_seen", "-"),
            text("reason").replace(char::is_control, " "),
        ]);
    }
    table.fitted(screen)
}

/// Formats a time in its two largest units.
fn shown_time(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let at = units.iter().position(|(length, _)| seconds >= *length).unwrap_or(units.len() - 1);
    let (length, unit) = units[at];
    let rest = units.get(at + 1).map(|(next, name)| (seconds % length / next, name));
    match rest.filter(|(number, _)| *number > 0) {
        Some((number, name)) => format!("{}{unit}{number}{name}", seconds / length),
        None => format!("{}{unit}", seconds / length),
    }
}

fn ask(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> Result<Value, CommandError> {
    let unreachable = |error| CommandError::Unreachable(socket.to_owned(), error);
    let mut stream = UnixStream::connect(socket).map_err(unreachable)?;
    stream.set_read_timeout(Some(RESPONSE_TIMEOUT)).map_err(unreachable)?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).map_err(unreachable)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(unreachable)?;
    let wrong = |what: &str| CommandError::Answer(socket.to_owned(), what.to_string());
    let answer = String::from_utf8(answer).map_err(|_| wrong("its response is not text"))?;
    let (status, body) = parsed(&answer).ok_or_else(|| wrong("its response is not HTTP"))?;
    if status != 200 {
        return Err(CommandError::Refused(status, body.trim_end().to_string()));
    }
    serde_json::from_str(body).map_err(|err| wrong(&format!("its response is not JSON: {err}")))
}

/// Status and body of a complete response.
fn parsed(answer: &str) -> Option<(u16, &str)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    (length == Some(body.len())).then_some((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_abbreviated() {
        for (seconds, text) in [(0.0, "0s"), (59.6, "1m"), (61.0, "1m1s"), (3600.0, "1h"), (90_061.0, "1d1h")]
        {
            assert_eq!(shown_time(seconds), text);
        }
    }

    #[test]
    fn incomplete_responses_are_not_parsed() {
        let whole = "HTTP/1.1 409 Conflict\r\nContent-Length: 3\r\n\r\nno\n";
        assert_eq!(parsed(whole), Some((409, "no\n")));
        for cut in 0..whole.len() {
            assert_eq!(parsed(&whole[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn exceptions_are_reported() {
        let answer = json!({
            "prefix": "10.0.0.0/8", "changed": true, "enforced": true, "except": { "10.0.0.1/32": "protected (own address)" }
        });
        assert_eq!(
            described(&answer),
            "10.0.0.0/8 is blocked.\n  except 10.0.0.1/32, protected (own address)\n"
        );
        let entry = json!({ "prefix": "::1/128", "source": "api", "reason": "a\nb", "expires_in": null, "packets": 3 });
        let shown = table(std::slice::from_ref(&entry), None);
        assert!(shown.lines().count() == 2 && shown.contains("never"), "{shown}");
        let narrow = table(&[entry], Some(40));
        assert!(narrow.starts_with("::1/128\n") && narrow.lines().all(|line| line.len() <= 40), "{narrow}");
    }
}

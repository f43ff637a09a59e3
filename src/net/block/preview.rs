//! The lines of `check` about `network.block`.

use super::config::{BlockConfig, BlockFile, BlockMode};
use super::fetch::ContentCheck;
use super::file::read_list;

/// One line each: the mode, what is blocked, and the current state of its files.
pub(in super::super) fn describe(config: &BlockConfig) -> Vec<String> {
    let what = match config.mode {
        BlockMode::Enforce => "packets of its sources are dropped (mode enforce)",
        BlockMode::Observe => "nothing is dropped, packets of its sources are counted (mode observe)",
    };
    let mut lines = vec![format!("blocklist: {what}")];
    let of = |number: usize, one: &str| format!("{number} {one}{}", if number == 1 { "y" } else { "ies" });
    lines.push(format!(
        "  {} of the configuration; {} of the allowlist, besides what is always protected",
        of(config.entries.len(), "entr"),
        of(config.allow.len(), "entr")
    ));
    if let Some(crowdsec) = &config.crowdsec {
        let scopes: Vec<&str> = crowdsec.scopes.iter().map(|scope| scope.word()).collect();
        let origins =
            if crowdsec.origins.is_empty() { "all".to_string() } else { crowdsec.origins.join(", ") };
        lines.push(format!(
            "  decisions of CrowdSec at {}, requested every {} s (scopes: {}; origins: {origins})",
            crowdsec.url,
            crowdsec.interval.as_secs(),
            scopes.join(", ")
        ));
        if let Some(push) = &crowdsec.push {
            lines.push(format!("  bans by detection are reported to it as the machine {}", push.machine));
        }
    }
    for list in &config.urls {
        let check = match &list.check {
            ContentCheck::None => "not signed".to_string(),
            check => check.to_string(),
        };
        lines.push(format!(
            "  the list at {}, downloaded every {} s ({check})",
            list.url,
            list.interval.as_secs()
        ));
    }
    for BlockFile { path, .. } in &config.files {
        let reported = match read_list(path) {
            Err(error) => format!("cannot be read now ({error})"),
            Ok(list) if list.is_none() => {
                format!(
                    "is not a list: {} of {} lines are not entries",
                    list.invalid,
                    list.invalid + list.prefixes.len()
                )
            }
            Ok(list) => {
                let first = list.reported.first().map(|(line, text)| format!("; line {line}: {text}"));
                let mistakes = match list.invalid {
                    0 => String::new(),
                    1 => ", 1 invalid line".to_string(),
                    more => format!(", {more} invalid lines"),
                };
                format!("has {}{mistakes}{}", of(list.prefixes.len(), "entr"), first.unwrap_or_default())
            }
        };
        lines.push(format!("  {} {reported}", path.display()));
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn preview_describes_the_current_files() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = directory.path().join(name);
            fs::write(&path, content).unwrap();
            BlockFile { path, reason: String::new() }
        };
        let pipe = directory.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let files = vec![
            file("good", "192.0.2.0/24\nexample.org\n192.0.2.7\n"),
            file("page", "<html>\n<head>\n<title>\nNot found\n"),
            BlockFile { path: directory.path().join("none"), reason: String::new() },
            BlockFile { path: pipe, reason: String::new() },
        ];
        let lines = describe(&BlockConfig { files, ..BlockConfig::default() });
        assert!(
            lines[0].contains("nothing is dropped") && lines[1].contains("0 entries of the"),
            "{lines:?}"
        );
        assert!(lines[2].contains("good has 2 entries, 1 invalid line; line 2"), "{lines:?}");
        assert!(lines[3].contains("page is not a list") && lines[4].contains("No such file"), "{lines:?}");
        assert!(lines[5].contains("pipe cannot be read now (it is not a regular file)"), "{lines:?}");
    }
}

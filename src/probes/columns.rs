//! The human-readable listing.

use std::fmt::Write;

use super::functions::display_name;
use super::{Argument, File, Function, Listing, Provider, count};
use crate::table::{TextTable, wrapped};

/// Formats the listing in columns, one table for each provider. Rows wider than `screen` become blocks.
pub fn columns(listing: &Listing, screen: Option<usize>) -> String {
    let mut to = String::new();
    for (n, file) in listing.files.iter().enumerate() {
        if n > 0 {
            to.push('\n');
        }
        show_file(&mut to, file, screen);
    }
    let args =
        || listing.files.iter().flat_map(|f| &f.providers).flat_map(|p| &p.probes).flat_map(|p| &p.args);
    if args().any(|arg| arg.types.iter().any(|kind| kind.ends_with("64"))) {
        let about = "\nNotes only give width and signedness. A 64-bit argument may be a pointer to text (type: \
                     string) or bytes (type: hex);\nsee the program's documentation.\n";
        to.push_str(&wrapped(about, screen));
    }
    to
}

fn show_file(to: &mut String, file: &File, screen: Option<usize>) {
    let mut about = vec![file.architecture];
    about.push(if file.position_independent { "position independent" } else { "fixed address" });
    if file.stripped {
        about.push("stripped");
    }
    if file.go {
        about.push("Go");
    }
    let _ = writeln!(to, "{}: {}", file.file, about.join(", "));
    for remark in &file.remarks {
        to.push_str(&wrapped(&format!("note: {remark}\n"), screen));
    }
    for provider in &file.providers {
        show_provider(to, provider, screen);
    }
    if let Some(functions) = file.functions.as_ref().filter(|functions| !functions.is_empty()) {
        show_functions(to, functions, screen);
    }
}

fn show_provider(to: &mut String, provider: &Provider, screen: Option<usize>) {
    let sites = provider.probes.iter().map(|probe| probe.sites).sum();
    let _ = writeln!(
        to,
        "\n{}: {} at {}",
        provider.provider,
        count(provider.probes.len(), "USDT probe"),
        count(sites, "site")
    );
    let mut table = TextTable::new(2, &["PROBE", "SITES", "SEMAPHORE", "COST", "ARGUMENTS"]);
    for probe in &provider.probes {
        let semaphore = match probe.semaphores {
            0 => "no".to_string(),
            all if all == probe.sites => "yes".to_string(),
            some => format!("at {some}"),
        };
        let args = probe.args.iter().enumerate().map(|(index, arg)| in_words(index, arg));
        let args = args.collect::<Vec<_>>().join(", ");
        let cost = probe.cost.word().to_string();
        table.row([probe.name.clone(), probe.sites.to_string(), semaphore, cost, args]);
        if let Some(reason) = &probe.unusable {
            table.line(format!("cannot be used: {reason}"));
        }
        for (index, arg) in probe.args.iter().enumerate() {
            if let Some(reason) = &arg.unreadable {
                table.line(format!("arg{index} cannot be read: {reason}"));
            }
        }
    }
    to.push_str(&table.fitted(screen));
}

fn in_words(index: usize, arg: &Argument) -> String {
    let unreadable = if arg.unreadable.is_some() { " (unreadable)" } else { "" };
    format!("arg{index} {}{unreadable}", arg.type_word())
}

fn show_functions(to: &mut String, functions: &[Function], screen: Option<usize>) {
    let _ = writeln!(to, "\n{}", count(functions.len(), "function"));
    let mut table = TextTable::new(2, &["FUNCTION", "OFFSET", "BYTES", "COST", "RETURN", "LIMITS"]);
    for function in functions {
        table.row([
            display_name(function).to_string(),
            format!("{:#x}", function.offset),
            function.size.to_string(),
            function.cost.word().to_string(),
            function.returned.word(),
            function.limits.join("; "),
        ]);
        if let Some(reason) = &function.unusable {
            table.line(format!("cannot be used: {reason}"));
        } else if let Some(reason) = &function.returned.refused {
            table.line(format!("its return cannot be traced: {reason}"));
        }
    }
    to.push_str(&table.fitted(screen));
    let has_exits = functions.iter().any(|function| function.returned.exits > 0);
    let may_replace = |function: &Function| function.returned.trampoline_refused.is_none();
    if has_exits {
        let trampoline = match functions.iter().find(|function| !may_replace(function)) {
            None => "Where nothing unwinds through a function, `returns_by: trampoline` costs about 1 us."
                .to_owned(),
            Some(function) => format!(
                "Refused for {}: {}",
                display_name(function),
                function.returned.trampoline_refused.as_deref().unwrap_or_default()
            ),
        };
        let about = format!(
            "\nRETURN: a return is traced by probes where the code leaves the function, so exceptions and coroutines are \
             not disturbed; a single-stepped exit costs 5 to 15 us a call, any other less than 1.\n{trampoline}\n"
        );
        to.push_str(&wrapped(&about, screen));
    }
}

//! Every name that the exporter lists for a program resolves to the function that it is listed for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use exporter::elf::{FunctionSite, Image, SymbolIndex};
use serde_json::Value;

/// Looks up every function that `probes` lists by each of its names.
pub fn listed_names_are_accepted(path: &Path, at_least: usize) {
    let program = env!("CARGO_BIN_EXE_exporter");
    let output =
        Command::new(program).args(["probes", "--functions", "*", "--json"]).arg(path).output().unwrap();
    let listing: Value = serde_json::from_slice(&output.stdout).unwrap();
    let listed = listing["files"][0]["functions"].as_array().unwrap();
    assert!(listed.len() >= at_least, "{}: only {} functions", path.display(), listed.len());
    let mut by_name: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    for function in listed {
        for name in ["name", "source_name"].iter().filter_map(|name| function[name].as_str()) {
            by_name.entry(name).or_default().insert(function["offset"].as_u64().unwrap());
        }
    }
    let bytes = fs::read(path).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let index = SymbolIndex::of(&image);
    for (name, own) in &by_name {
        let found = index.sites(name).unwrap_or_else(|error| panic!("{}: {name}: {error}", path.display()));
        // A function's name also refers to the copies that the compiler made of it.
        let is_own = |site: &FunctionSite| {
            own.contains(&site.site.offset) || site.specialised || is_copy(&site.name, name)
        };
        let strangers: Vec<_> = found.iter().filter(|site| !is_own(site)).map(|site| &site.name).collect();
        assert!(strangers.is_empty(), "{}: {name} is also {strangers:?}", path.display());
        let found: BTreeSet<u64> = found.iter().map(|site| site.site.offset).collect();
        let lost: Vec<_> = own.difference(&found).collect();
        assert!(lost.is_empty(), "{}: {name} is not found at {lost:x?}, but at {found:x?}", path.display());
    }
}

fn is_copy(symbol: &str, name: &str) -> bool {
    symbol.strip_prefix(name).is_some_and(|suffix| suffix.starts_with('.'))
}

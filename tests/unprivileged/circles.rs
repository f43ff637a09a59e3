//! Sibling modules depend on each other in one direction only, at every level of the tree.
//!
//! This is read from the text: every path outside of tests that begins with `crate`, `super` or `self` is resolved to
//! the module that it leads to, through the re-exports of a `mod.rs`. A parent and its children count as one here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

type Module = Vec<String>;
/// The names that each module re-exports from its children, each with the child.
type Exports = BTreeMap<Module, BTreeMap<String, Module>>;
/// Where one module refers to another: `file:line`.
type Edges = BTreeMap<Module, BTreeMap<Module, String>>;

/// A crate's modules with their files and texts, without tests and comments.
struct Tree {
    files: BTreeMap<Module, (String, String)>,
}

impl Tree {
    fn read(root: &str) -> Tree {
        let mut tree = Tree { files: BTreeMap::new() };
        tree.add(Path::new(env!("CARGO_MANIFEST_DIR")).join(root).as_path(), root, &[]);
        assert!(!tree.files.is_empty(), "{root} has no modules");
        tree
    }

    fn add(&mut self, directory: &Path, shown: &str, module: &[String]) {
        for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap()) {
            let name = entry.file_name().into_string().unwrap();
            let shown = format!("{shown}/{name}");
            if entry.path().is_dir() {
                self.add(&entry.path(), &shown, &[module, std::slice::from_ref(&name)].concat());
            } else if let Some(stem) = name.strip_suffix(".rs").filter(|stem| *stem != "tests") {
                // The program's main.rs beside a lib.rs is a separate crate.
                if stem == "main" && directory.join("lib.rs").exists() {
                    continue;
                }
                let own = ["mod", "lib", "main"].contains(&stem);
                let stem: &[String] = if own { &[] } else { &[stem.to_owned()] };
                let text = code(&fs::read_to_string(entry.path()).unwrap());
                self.files.insert([module, stem].concat(), (shown, text));
            }
        }
    }

    fn edges(&self) -> Edges {
        let mut edges = Edges::new();
        let exports = self.files.keys().map(|module| (module.clone(), self.exports(module))).collect();
        for (module, (file, text)) in &self.files {
            for (line, path) in paths(text) {
                let Some(target) = self.resolve(module, &path, &exports) else { continue };
                let common = module.iter().zip(&target).take_while(|(a, b)| a == b).count();
                if module.len() > common && target.len() > common {
                    let (from, to) = (module[..=common].to_vec(), target[..=common].to_vec());
                    edges.entry(from).or_default().entry(to).or_insert(format!("{file}:{line}"));
                }
            }
        }
        edges
    }

    /// Returns the module that a path leads to.
    fn resolve(&self, from: &[String], path: &[String], exports: &Exports) -> Option<Module> {
        let mut at = from.to_vec();
        let mut rest = path;
        while let [first, more @ ..] = rest {
            match first.as_str() {
                "crate" => at.clear(),
                "self" => {}
                "super" => {
                    at.pop()?;
                }
                _ => break,
            }
            rest = more;
        }
        while let [name, more @ ..] = rest {
            let child = [&at[..], std::slice::from_ref(name)].concat();
            if self.files.keys().any(|module| module.starts_with(&child)) {
                at = child;
                rest = more;
            } else {
                // A name that the module re-exports from one of its children.
                let exported = exports.get(&at).and_then(|names| names.get(name));
                return Some(exported.cloned().unwrap_or(at));
            }
        }
        Some(at)
    }

    /// Returns the names that a module imports from its children, each with the child.
    fn exports(&self, module: &[String]) -> BTreeMap<String, Module> {
        let Some((_, text)) = self.files.get(module) else { return BTreeMap::new() };
        let uses = statements(text, "use");
        let taken = uses.iter().filter_map(|(_, path)| {
            let path = if path.first().is_some_and(|first| first == "self") { &path[1..] } else { path };
            let child = [module, path.get(..1)?].concat();
            (path.len() > 1 && self.files.contains_key(&child)).then(|| (path.last().unwrap().clone(), child))
        });
        taken.collect()
    }
}

/// Removes test modules from a text, wherever they are: declarations, and blocks whose closing brace begins a line.
fn without_tests(text: &str) -> String {
    let mut parts = text.split("\n#[cfg(test)]\nmod ");
    let mut kept = parts.next().unwrap().to_owned();
    for part in parts {
        let declared = part.find('\n').map_or(part, |end| &part[..end]).ends_with(';');
        let end = if declared { part.find('\n') } else { part.find("\n}").map(|at| at + 2) };
        kept.push_str(&part[end.unwrap_or(part.len())..]);
    }
    kept
}

/// Returns the text without tests, comments and the contents of strings; lines keep their numbers.
fn code(text: &str) -> String {
    let text = &without_tests(text);
    let mut kept = String::new();
    let mut rest = text.as_str();
    while let Some(c) = rest.chars().next() {
        let hashes = rest[1.min(rest.len())..].bytes().take_while(|byte| *byte == b'#').count();
        let is_raw = c == 'r' && rest[1 + hashes..].starts_with('"') && !kept.ends_with(is_part_of_a_name);
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if is_raw {
            let end = format!("\"{}", "#".repeat(hashes));
            let from = hashes + 2;
            rest[from..].find(&end).map_or(rest.len(), |at| from + at + end.len())
        } else if c == '"' {
            quoted(rest, '"')
        } else if c == '\'' && (rest.starts_with("'\\") || rest.chars().nth(2) == Some('\'')) {
            quoted(rest, '\'')
        } else {
            kept.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        kept.extend(rest[..skipped].chars().filter(|c| *c == '\n'));
        rest = &rest[skipped..];
    }
    kept
}

/// Returns the length in bytes of the string or character literal that begins here.
fn quoted(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn is_part_of_a_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Returns all paths in the text that begin with a keyword, with their lines; groups in braces are expanded.
fn paths(text: &str) -> Vec<(usize, Vec<String>)> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    for (n, (line, token)) in tokens.iter().enumerate() {
        let begins =
            ["crate", "super", "self"].contains(token) && tokens.get(n + 1).is_some_and(|t| t.1 == "::");
        if begins && (n == 0 || tokens[n - 1].1 != "::") {
            let mut all = Vec::new();
            group(&tokens, n, &[], &mut all);
            found.extend(all.into_iter().map(|path| (*line, path)));
        }
    }
    found
}

/// Returns the paths of all statements that begin with this word.
fn statements(text: &str, word: &str) -> Vec<(usize, Vec<String>)> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    for (n, (line, token)) in tokens.iter().enumerate() {
        if *token == word {
            let mut all = Vec::new();
            group(&tokens, n + 1, &[], &mut all);
            found.extend(all.into_iter().map(|path| (*line, path)));
        }
    }
    found
}

/// Reads a path or a group of paths from this position; returns the position after it.
fn group(tokens: &[(usize, &str)], mut at: usize, before: &[String], all: &mut Vec<Vec<String>>) -> usize {
    let mut path = before.to_vec();
    loop {
        match tokens.get(at).map(|token| token.1) {
            Some("{") => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token.1 != "}") {
                    let next = group(tokens, at, &path, all);
                    // Anything that is not a path: a comma, or the rest of a line.
                    at = next.max(at + 1);
                    while tokens.get(at).is_some_and(|token| ![",", "}"].contains(&token.1)) {
                        at += 1;
                    }
                    at += usize::from(tokens.get(at).is_some_and(|token| token.1 == ","));
                }
                return at + 1;
            }
            Some(word) if is_name(word) => {
                path.push(word.to_owned());
                at += 1;
            }
            _ => break,
        }
        if tokens.get(at).is_none_or(|token| token.1 != "::") {
            break;
        }
        at += 1;
    }
    if path.len() > before.len() {
        all.push(path);
    }
    at
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Splits the text into words, `::` and single characters, with their lines.
fn tokens(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut rest = line.trim_start();
        while !rest.is_empty() {
            let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let end = match word {
                0 if rest.starts_with("::") => 2,
                0 => rest.chars().next().map_or(1, char::len_utf8),
                word => word,
            };
            found.push((number + 1, &rest[..end]));
            rest = rest[end..].trim_start();
        }
    }
    found
}

/// Returns the modules of each cycle, and one path around it with the places of its references.
fn circles(edges: &Edges) -> Vec<(BTreeSet<String>, String)> {
    let name = |module: &Module| module.join("::");
    let reach = |from: &Module| {
        // Each reachable module, with its predecessor.
        let mut seen: BTreeMap<Module, Module> = BTreeMap::new();
        let mut next = vec![from.clone()];
        while let Some(module) = next.pop() {
            for to in edges.get(&module).into_iter().flat_map(BTreeMap::keys) {
                if !seen.contains_key(to) {
                    seen.insert(to.clone(), module.clone());
                    next.push(to.clone());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<_, _> = edges.keys().map(|module| (module, reach(module))).collect();
    let mut done = BTreeSet::new();
    let mut found = Vec::new();
    for (module, seen) in &reached {
        if done.contains(*module) || !seen.contains_key(*module) {
            continue;
        }
        let members: BTreeSet<_> = seen
            .keys()
            .filter(|other| reached.get(other).is_some_and(|back| back.contains_key(*module)))
            .collect();
        done.extend(members.iter().map(|module| (*module).clone()));
        let mut way = String::new();
        let mut at = *module;
        loop {
            let before = &seen[at];
            way = format!("  {} -> {} at {}\n{way}", name(before), name(at), edges[before][at]);
            at = before;
            if at == *module {
                break;
            }
        }
        found.push((members.into_iter().map(name).collect(), way));
    }
    found
}

/// Returns the source directories of the program, of every benchmark and test program that has modules, and of their
/// shared modules.
fn roots() -> Vec<String> {
    let mut roots = vec!["src".to_owned()];
    for above in ["benches", "tests"] {
        let inside = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(above)).unwrap();
        let paths = inside.map(|entry| entry.unwrap().path());
        let own = paths.filter(|path| ["main.rs", "mod.rs"].iter().any(|name| path.join(name).exists()));
        roots.extend(own.map(|path| format!("{above}/{}", path.file_name().unwrap().to_str().unwrap())));
    }
    assert!(roots.len() >= 9, "{roots:?}");
    roots
}

#[test]
fn module_dependencies_are_acyclic() {
    let mut found = String::new();
    for root in roots() {
        for (members, way) in circles(&Tree::read(&root).edges()) {
            found += &format!("{root}: {members:?}\n{way}");
        }
    }
    assert!(found.is_empty(), "modules in a circle; move what both need below both:\n{found}");
}

/// Modules that could be separate crates: they refer to no other module of the program.
const INDEPENDENT: &[&str] = &["elf", "exposition", "glob", "http", "mapping", "procfs", "regular", "table"];

#[test]
fn independent_modules_have_no_dependencies() {
    let edges = Tree::read("src").edges();
    for part in INDEPENDENT {
        let others = edges.get(&vec![(*part).to_owned()]).into_iter().flatten();
        let others: Vec<_> = others.map(|(other, at)| format!("{} at {at}", other.join("::"))).collect();
        assert!(others.is_empty(), "{part} depends on {others:?}");
    }
}

/// Tests the search itself on texts.
#[test]
fn finds_cycles_in_every_notation() {
    let circle = |files: &[(&str, &str)]| {
        let files = files.iter().map(|(module, text)| {
            let module =
                module.split("::").filter(|part| !part.is_empty()).map(ToString::to_string).collect();
            (module, (String::from("text"), code(text)))
        });
        let found = circles(&Tree { files: files.collect() }.edges());
        found
            .into_iter()
            .map(|(members, _)| members.into_iter().collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>()
    };
    let none: [&str; 0] = [];
    // A use declaration, a group over several lines, a path within the code.
    assert_eq!(circle(&[("a", "use crate::b::X;"), ("b", "use crate::{\n c,\n a::{Y, Z},\n};")]), ["a b"]);
    assert_eq!(
        circle(&[("a", "fn f() { crate::b::g() }"), ("b", "use crate::c;"), ("c", "use super::a;")]),
        ["a b c"]
    );
    // Children of one directory, through their parent's re-exports.
    assert_eq!(
        circle(&[("p", "pub use x::One;"), ("p::x", "use super::y::Two;"), ("p::y", "use super::One;")]),
        ["p::x p::y"]
    );
    // Directories, through files deep inside them.
    assert_eq!(
        circle(&[("a::k::m", "use crate::b;"), ("b::n", "use crate::a::k;"), ("a", ""), ("b", "")]),
        ["a b"]
    );
    // After a multi-line string, and after a quote character that does not begin a string.
    assert_eq!(
        circle(&[
            ("a", "f(\"x \\\n y\", crate::b::X)"),
            ("b", "if c == '\"' || c == '\\'' { crate::c::f(r#\"a \"\"#) }"),
            ("c", "use crate::a;"),
        ]),
        ["a b c"]
    );
    // A single direction, a parent, comments, strings and tests are not cycles.
    assert_eq!(
        circle(&[("a", "use crate::b;"), ("b", "// crate::a\nlet x = \"crate::a\";\nr#\"\"crate::a\"#;")]),
        none
    );
    assert_eq!(circle(&[("p", "use x::X;"), ("p::x", "use super::Thing;")]), none);
    assert_eq!(circle(&[("a", "use crate::b;"), ("b", "\n#[cfg(test)]\nmod tests { use crate::a; }")]), none);
    // What follows the tests is code again.
    for tests in ["mod tests;\n", "mod tests {\n    f();\n}\n"] {
        let text = format!("\n#[cfg(test)]\n{tests}\nuse crate::a;");
        assert_eq!(circle(&[("a", "use crate::b;"), ("b", text.as_str())]), ["a b"], "{tests}");
    }
}

//! An index of a file's names, built once for all lookups.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::names::{
    RequiredWords, Signature, canonical, clone_of, demangle, has_abbreviated_path, identifiers, is_fragment,
    literal_words,
};
use super::parameters::{Parameters, parameters};
use super::symbol_table::{Symbol, SymbolKind, versioned};
use super::symbols::{relocated, symbols};
use super::{Convention, DebugInfo, FunctionSite, Functions, Image, go_binary};

/// The symbols of a file, indexed by name, demangled name and address.
///
/// Looking up a name costs about the same whatever the number of symbols. Anything that only some lookups need
/// (demangled names, unwind tables) is computed when first used.
pub struct SymbolIndex<'a> {
    image: Image<'a>,
    is_go: bool,
    symbols: Vec<Symbol<'a>>,
    /// By name; copies made by the compiler also by the name of their function.
    by_name: Lookup,
    /// Functions by address, each with the highest end of all functions up to it.
    by_address: Vec<(u32, u64)>,
    /// Functions by the identifiers in their mangled names.
    by_identifier: OnceCell<Lookup>,
    /// Source names without parameters.
    plain: Vec<OnceCell<Option<Box<str>>>>,
    /// See [`SymbolIndex::canonical`]; without and with parameters.
    canonical: [Vec<OnceCell<Box<[u64]>>>; 2],
    /// Functions by source name, for groups that share an identifier.
    demangled: RefCell<HashMap<(Group, bool), Rc<Demangled>>>,
    code: OnceCell<Functions<'a>>,
    stubs: OnceCell<HashMap<u64, &'a str>>,
    /// Whether a function jumps to its first instruction: a cache by entry.
    pub(super) jumped_to: RefCell<HashMap<u64, bool>>,
    debug_file: Option<Image<'a>>,
    shared_debug: Option<Image<'a>>,
    /// A debug file that is not used, since it is of another build.
    misfit: Option<PathBuf>,
    debug_info: OnceCell<Option<Result<DebugInfo<'a>, &'static str>>>,
}

/// Functions by the hash of their canonical name.
type Demangled = HashMap<u64, Vec<u32>>;

/// A subset of a file's functions with mangled names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Group {
    All,
    /// Those that contain the identifier with this hash.
    Identifier(u64),
    /// Those whose own path is abbreviated, so that it has fewer identifiers than the source name.
    Abbreviated,
}

impl<'a> SymbolIndex<'a> {
    /// Reads the symbol tables of the file, and of the debug symbols added to it.
    pub fn of(image: &Image<'a>) -> SymbolIndex<'a> {
        let symbols: Vec<Symbol<'a>> = symbols(image).collect();
        let mut names = Vec::with_capacity(symbols.len());
        let mut by_address = Vec::new();
        for (number, symbol) in (0..).zip(&symbols) {
            names.push((hash(symbol.name), number));
            if let Some(clone) = clone_of(symbol.name) {
                names.push((hash(clone.base), number));
            }
            if symbol.kind == SymbolKind::Function && symbol.defined {
                by_address.push((number, 0));
            }
        }
        by_address.sort_by_key(|(number, _)| symbols[*number as usize].vaddr);
        let mut reach = 0;
        for (number, farthest) in &mut by_address {
            let symbol = &symbols[*number as usize];
            reach = symbol.vaddr.saturating_add(symbol.size).max(reach);
            *farthest = reach;
        }
        SymbolIndex {
            image: *image,
            is_go: go_binary(image),
            plain: vec![OnceCell::new(); symbols.len()],
            canonical: [vec![OnceCell::new(); symbols.len()], vec![OnceCell::new(); symbols.len()]],
            symbols,
            by_name: Lookup::new(names),
            by_address,
            by_identifier: OnceCell::new(),
            demangled: RefCell::default(),
            code: OnceCell::new(),
            stubs: OnceCell::new(),
            jumped_to: RefCell::default(),
            debug_file: None,
            shared_debug: None,
            misfit: None,
            debug_info: OnceCell::new(),
        }
    }

    /// Adds a separate debug file, which is known to belong to this build.
    pub fn with_debug_file(self, debug_file: Option<Image<'a>>) -> SymbolIndex<'a> {
        SymbolIndex { debug_file, ..self }
    }

    /// Adds a file of debug information that the program, or its debug file, shares with others; see
    /// [`super::shared_debug_candidates`]. A file that does not match is ignored.
    pub fn with_shared_debug(self, shared_debug: Option<Image<'a>>) -> SymbolIndex<'a> {
        SymbolIndex { shared_debug, ..self }
    }

    /// Adds the path of a debug file that is of another build: messages about missing names mention it.
    pub fn with_misfit(self, misfit: Option<PathBuf>) -> SymbolIndex<'a> {
        SymbolIndex { misfit, ..self }
    }

    pub(super) fn misfit(&self) -> Option<&Path> {
        self.misfit.as_deref()
    }

    /// Returns the file.
    pub fn image(&self) -> &Image<'a> {
        &self.image
    }

    /// Returns whether the Go toolchain built the file.
    pub fn is_go(&self) -> bool {
        self.is_go
    }

    /// Returns the code of the file, with the tables that tell where its functions begin and end.
    pub fn code(&self) -> &Functions<'a> {
        self.code.get_or_init(|| Functions::of(&self.image))
    }

    /// Returns the debug information of the file, or of its debug file.
    pub fn debug_info(&self) -> Option<&DebugInfo<'a>> {
        self.read_debug_info()?.as_ref().ok()
    }

    /// Returns why the debug information is incomplete: sentences without a full stop.
    pub fn debug_info_lacks(&self) -> Vec<&'static str> {
        match self.read_debug_info() {
            Some(Ok(debug_info)) => debug_info.lacks().collect(),
            Some(Err(err)) => vec![*err],
            None => Vec::new(),
        }
    }

    /// Returns the description of a function's parameters in the debug information.
    pub fn parameters(&self, function: &FunctionSite) -> Option<Parameters> {
        if function.convention != Convention::SystemV || !function.at_entry {
            return None;
        }
        let (name, _) = versioned(&function.name);
        let mut symbols = self.functions_at(function.entry).peekable();
        let is_local = symbols.peek().is_some() && !symbols.any(|symbol| symbol.global);
        parameters(self.debug_info()?, &self.image, function.entry, name, is_local)
    }

    fn read_debug_info(&self) -> Option<&Result<DebugInfo<'a>, &'static str>> {
        let files = || [Some(self.image), self.debug_file].into_iter().flatten();
        self.debug_info
            .get_or_init(|| files().find_map(|file| DebugInfo::of(&file, self.shared_debug.as_ref())))
            .as_ref()
    }

    /// Iterates over the symbols of this name, ignoring versions, and the copies of the function of this name.
    pub(super) fn named(&self, name: &str) -> impl Iterator<Item = &Symbol<'a>> {
        let found = self.by_name.with(hash(name)).iter().map(|(_, number)| self.symbol(*number));
        found.filter(move |symbol| {
            symbol.name == name || clone_of(symbol.name).is_some_and(|clone| clone.base == name)
        })
    }

    /// Iterates over the functions that begin at this address.
    pub(super) fn functions_at(&self, vaddr: u64) -> impl Iterator<Item = &Symbol<'a>> {
        let first = self.by_address.partition_point(|(number, _)| self.symbol(*number).vaddr < vaddr);
        let from_first = self.by_address[first..].iter().map(|(number, _)| self.symbol(*number));
        from_first.take_while(move |symbol| symbol.vaddr == vaddr)
    }

    /// Returns the function whose code contains the address; of several, the one that begins last.
    pub(super) fn function_around(&self, vaddr: u64) -> Option<&Symbol<'a>> {
        /// Overlapping functions that are examined at most: only files built to take time have more.
        const MAX_OVERLAPPING: usize = 4096;
        let after = self.by_address.partition_point(|(number, _)| self.symbol(*number).vaddr <= vaddr);
        let before = self.by_address[..after].iter().rev().take(MAX_OVERLAPPING);
        let mut covering = before
            .take_while(|(_, reach)| *reach > vaddr)
            .map(|(number, _)| self.symbol(*number))
            .filter(|symbol| vaddr - symbol.vaddr < symbol.size);
        let first = covering.next()?;
        let aliases = covering.take_while(|symbol| symbol.vaddr == first.vaddr);
        Some(aliases.fold(first, |best, symbol| if symbol.global && !best.global { symbol } else { best }))
    }

    /// Returns the source name of a C++ or Rust function, without parameters.
    pub(super) fn source_name(&self, symbol: &Symbol<'_>) -> Option<String> {
        let first = self.by_address.partition_point(|(number, _)| self.symbol(*number).vaddr < symbol.vaddr);
        let here = self.by_address[first..].iter().map(|(number, _)| *number);
        let mut here = here.take_while(|number| self.symbol(*number).vaddr == symbol.vaddr);
        match here.find(|number| self.symbol(*number).name == symbol.name) {
            Some(number) => self.plain(number).map(str::to_owned),
            None => demangle(symbol.name, Signature::Name),
        }
    }

    /// Iterates over the functions, by address.
    pub(super) fn functions(&self) -> impl Iterator<Item = &Symbol<'a>> {
        self.by_address.iter().map(|(number, _)| self.symbol(*number))
    }

    /// Iterates over the functions and their source names, without parameters; `None` if the name is not mangled.
    pub(super) fn plain_names(&self) -> impl Iterator<Item = (&Symbol<'a>, Option<&str>)> {
        self.by_address.iter().map(|(number, _)| (self.symbol(*number), self.plain(*number)))
    }

    /// Like [`SymbolIndex::plain_names`], but demangles only symbols whose name can contain these words.
    pub(super) fn plain_names_with(
        &self,
        words: &RequiredWords,
    ) -> impl Iterator<Item = (&Symbol<'a>, Option<&str>)> {
        self.by_address.iter().map(|(number, _)| {
            let symbol = self.symbol(*number);
            (symbol, if words.may_be_in(symbol.name) { self.plain(*number) } else { None })
        })
    }

    /// Returns the functions with this source name, with parameters if `signature` is set. Fragments are excluded.
    pub(super) fn called(&self, name: &str, signature: bool) -> Vec<&Symbol<'a>> {
        let wanted = hash(&canonical(name));
        let identifiers = self.by_identifier();
        let rarest = literal_words(name)
            .whole
            .iter()
            .map(|word| hash(word))
            .min_by_key(|word| identifiers.with(*word).len());
        let groups = match rarest {
            Some(word) => vec![Group::Identifier(word), Group::Abbreviated],
            None => vec![Group::All],
        };
        let mut found: Vec<u32> = Vec::new();
        for group in groups {
            found.extend(self.demangled(group, signature).get(&wanted).into_iter().flatten());
        }
        found.sort_unstable();
        found.dedup();
        let found: Vec<_> = found.into_iter().map(|number| self.symbol(number)).collect();
        // `f[abi:cxx11](int)` also matches `f(int)`, unless an exact match exists; `f<3u>` matches `f<3>`.
        let is_exact = |symbol: &&Symbol<'a>| {
            [Signature::Parameters, Signature::Whole]
                .iter()
                .any(|how| demangle(symbol.name, *how).as_deref() == Some(name))
        };
        let exact: Vec<_> = match signature && found.len() > 1 {
            true => found.iter().copied().filter(is_exact).collect(),
            false => Vec::new(),
        };
        if exact.is_empty() { found } else { exact }
    }

    /// Returns whether the file imports a C++ or Rust function of this name from another file.
    pub(super) fn imports(&self, name: &str) -> bool {
        let wanted = canonical(name);
        let is_called = |symbol: &Symbol<'_>| {
            let mut ways = [Signature::Name, Signature::Parameters].into_iter();
            ways.any(|how| demangle(symbol.name, how).is_some_and(|name| canonical(&name) == wanted))
        };
        self.symbols.iter().any(|symbol| !symbol.defined && symbol.name.starts_with('_') && is_called(symbol))
    }

    /// Iterates over the names of functions whose implementation the program chooses at startup.
    pub(super) fn ifuncs(&self) -> impl Iterator<Item = &'a str> {
        self.symbols
            .iter()
            .filter(|symbol| symbol.kind == SymbolKind::Ifunc && symbol.defined)
            .map(|symbol| symbol.name)
    }

    /// Returns the target of the linker's stub that jumps through this slot: the symbol of a relocation.
    pub(super) fn stub(&self, slot: u64) -> Option<&'a str> {
        self.stubs.get_or_init(|| relocated(&self.image)).get(&slot).copied()
    }

    fn symbol(&self, number: u32) -> &Symbol<'a> {
        &self.symbols[number as usize]
    }

    fn plain(&self, number: u32) -> Option<&str> {
        let name = || demangle(self.symbol(number).name, Signature::Name).map(String::into_boxed_str);
        self.plain[number as usize].get_or_init(name).as_deref()
    }

    /// Returns the functions with a mangled name, except fragments, by identifier; those with an abbreviated path also
    /// by the empty identifier.
    fn by_identifier(&self) -> &Lookup {
        self.by_identifier.get_or_init(|| {
            let mut found = Vec::new();
            for (number, symbol) in self.mangled() {
                found.extend(identifiers(symbol.name).map(|identifier| (hash_bytes(identifier), number)));
                if has_abbreviated_path(symbol.name) {
                    found.push((hash(""), number));
                }
            }
            Lookup::new(found)
        })
    }

    fn mangled(&self) -> impl Iterator<Item = (u32, &Symbol<'a>)> {
        let all = self.by_address.iter().map(|(number, _)| (*number, self.symbol(*number)));
        all.filter(|(_, symbol)| symbol.name.starts_with('_') && !is_fragment(symbol.name))
    }

    /// Returns the hashes of the canonical forms of a function's source name; empty if the name is not mangled.
    fn canonical(&self, number: u32, signature: bool) -> Vec<u64> {
        let hashes = self.canonical[usize::from(signature)][number as usize].get_or_init(|| {
            let Some(plain) = self.plain(number) else { return Box::default() };
            let name = self.symbol(number).name;
            let whole =
                [Signature::Parameters, Signature::Whole].iter().filter_map(|how| demangle(name, *how));
            let whole = whole.map(|name| hash(&canonical(&name)));
            match signature {
                true => whole.chain([hash(&canonical(plain))]).collect(),
                false => Box::new([hash(&canonical(plain))]),
            }
        });
        hashes.to_vec()
    }

    fn demangled(&self, group: Group, signature: bool) -> Rc<Demangled> {
        if let Some(known) = self.demangled.borrow().get(&(group, signature)) {
            return known.clone();
        }
        let numbers: Vec<u32> = match group {
            Group::All => self.mangled().map(|(number, _)| number).collect(),
            Group::Identifier(word) => self.by_identifier().with(word).iter().map(|(_, n)| *n).collect(),
            Group::Abbreviated => self.by_identifier().with(hash("")).iter().map(|(_, n)| *n).collect(),
        };
        let mut result = Demangled::new();
        for number in numbers {
            for name in self.canonical(number, signature) {
                let numbers = result.entry(name).or_default();
                if numbers.last() != Some(&number) {
                    numbers.push(number);
                }
            }
        }
        let result = Rc::new(result);
        self.demangled.borrow_mut().insert((group, signature), result.clone());
        result
    }
}

impl std::fmt::Debug for SymbolIndex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SymbolIndex").field("symbols", &self.symbols.len()).finish_non_exhaustive()
    }
}

/// Symbol numbers by the hash of a text, sorted by both. A result may have a different text of the same hash.
#[derive(Debug)]
struct Lookup(Vec<(u64, u32)>);

impl Lookup {
    fn new(mut pairs: Vec<(u64, u32)>) -> Self {
        pairs.sort_unstable();
        pairs.dedup();
        Self(pairs)
    }

    fn with(&self, hash: u64) -> &[(u64, u32)] {
        let first = self.0.partition_point(|(known, _)| *known < hash);
        let after = self.0[first..].partition_point(|(known, _)| *known == hash);
        &self.0[first..first + after]
    }
}

fn hash(text: &str) -> u64 {
    hash_bytes(text.as_bytes())
}

fn hash_bytes(text: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(text);
    hasher.finish()
}

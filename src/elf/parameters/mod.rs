//! A function's parameters according to debug information: their types, and the argument words that hold them.
//!
//! Words are numbered in the order in which C passes integers and addresses: the six general-purpose registers, then
//! those on the stack.

mod location;

use std::cell::OnceCell;
use std::collections::HashMap;
use std::ops::Range;

use gimli::{DebugInfoOffset, Unit};

use super::Image;
use super::debug_info::{DebugInfo, Finder, Node, Slice};
use super::names::{CloneKind, clone_of, parameter_count};
use super::types::{ArgumentWords, Passed, Pointee, ValueType, passed, value, written};
use location::EntryLocation;

/// The parameters and the result of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    pub all: Vec<Parameter>,
    /// How many argument words the function takes; `None` if unknown, or if the number is variable.
    pub words: Option<usize>,
    /// The content of the words that hold none of them.
    pub others: OtherWords,
    /// The function's result; `None` if unknown.
    pub result: Option<FunctionResult>,
}

/// The content of the argument words that hold no parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherWords {
    /// What C passes there, if anything.
    AsInC,
    /// The same, as far as is known: the language guarantees no convention.
    Unpromised,
    /// No argument: arguments are not where C passes them, only where debug information locates them.
    Nothing,
}

/// The result of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionResult {
    /// Its type as in the source; `void` if there is none.
    pub declared: String,
    pub value: ValueType,
    /// Whether the result, or its first word, is in `%rax`.
    pub in_register: bool,
}

/// One parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Empty if it has none.
    pub name: String,
    /// Its type as in the source.
    pub declared: String,
    pub value: ValueType,
    /// The words in which it is passed according to its declaration, empty if in vector registers; `None` if unknown.
    pub words: Option<Range<usize>>,
    pub place: ParameterPlace,
}

/// Where a parameter is at the function's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterPlace {
    /// In the words that follow from its declaration.
    AsDeclared,
    /// The compiler changed the function's parameters, and this is the first word of this one.
    Word(usize),
    /// The compiler knows its value, and no longer passes it.
    Constant(i64),
    /// The compiler changed the function's parameters, and does not say where this one is, if anywhere.
    Nowhere,
}

impl Parameter {
    /// Returns the first word in which it is passed.
    fn first(&self) -> Option<usize> {
        self.words.as_ref().filter(|words| !words.is_empty()).map(|words| words.start)
    }

    /// Returns the only word in which it is passed.
    pub fn word(&self) -> Option<usize> {
        self.words.as_ref().filter(|words| words.len() == 1).map(|words| words.start)
    }
}

/// Returns the parameters of the function that begins at `entry` and has this symbol, which is `is_local` if no other
/// file can call it.
pub(super) fn parameters<'d>(
    debug_info: &'d DebugInfo<'_>,
    image: &'d Image<'d>,
    entry: u64,
    symbol: &'d str,
    is_local: bool,
) -> Option<Parameters> {
    let finder = debug_info.finder();
    let function = finder.node(described(&finder, &debug_info.functions_at(&finder, entry), symbol)?)?;
    let origin = finder.follow(&function, gimli::DW_AT_abstract_origin);
    let is_changed = clone_of(symbol).is_some_and(|clone| clone.kind == CloneKind::Specialised)
        || is_called_otherwise(&finder, &function);
    // With link-time optimization, a function that the source exports may be local after all.
    let is_external =
        !is_local && finder.declarations(function.clone()).any(|node| node.is_set(gimli::DW_AT_external));
    let stored = OnceCell::new();
    Reader { finder, image, symbol, function, entry, is_external, is_changed, stored }.read(origin)
}

/// Returns the entry that describes the function with this symbol: several functions may have been folded into one.
fn described(finder: &Finder<'_>, all: &[DebugInfoOffset], symbol: &str) -> Option<DebugInfoOffset> {
    if let [one] = all {
        return Some(*one);
    }
    let base = clone_of(symbol).map_or(symbol, |clone| clone.base);
    let is_meant = |at: &DebugInfoOffset| {
        let known = finder.symbol(*at);
        known == Some(symbol.as_bytes()) || known == Some(base.as_bytes())
    };
    all.iter().copied().find(is_meant)
}

/// Returns whether debug information says that the function does not use C's calling convention: `ms_abi`, `regcall`,
/// or arguments that the compiler removed (`DW_CC_nocall`).
fn is_called_otherwise<'d>(finder: &Finder<'d>, function: &Node<'d>) -> bool {
    /// LLVM's numbers of the conventions that pass arguments in C's registers: System V, those of Swift, and those that
    /// merely preserve more registers.
    const AS_IN_C: [u64; 5] = [0xc2, 0xc8, 0xc9, 0xca, 0xcf];
    let normal = [gimli::DW_CC_normal, gimli::DW_CC_program].map(|known| u64::from(known.0));
    let told =
        finder.declarations(function.clone()).find_map(|at| at.number(gimli::DW_AT_calling_convention));
    told.is_some_and(|told| !normal.contains(&told) && !AS_IN_C.contains(&told))
}

/// A parameter's location according to debug information.
#[derive(Debug, Clone, Copy)]
struct Found {
    known: Option<EntryLocation>,
    /// Its position follows from its declaration.
    is_declared: bool,
    /// It has no location, not even for later instructions.
    is_untold: bool,
    /// It is at a fixed offset from the frame pointer as long as the function runs, as in unoptimized code.
    is_on_frame: bool,
}

impl Found {
    fn first(&self) -> Option<usize> {
        Some(self.known?.words()?.start)
    }
}

/// Returns whether a unit describes types and parameters, and not only lines.
fn tells_types(unit: &Unit<Slice<'_>>) -> bool {
    let mut entries = unit.entries();
    std::iter::from_fn(|| entries.next_dfs().ok().flatten().map(|entry| entry.tag()))
        .any(|tag| matches!(tag, gimli::DW_TAG_base_type | gimli::DW_TAG_formal_parameter))
}

/// Clears the declared words of parameters after the last one whose location confirms its declaration. Without
/// optimization, Clang does not describe an unused parameter that is passed by reference, and only the symbol of a C++
/// function tells how many there are. With optimization, all are described, though possibly without a location.
fn drop_unconfirmed(all: &mut [Parameter], found: &[Found]) {
    let is_confirmed = |(parameter, found): (&Parameter, &Found)| {
        parameter.first().is_some() && parameter.first() == found.first()
    };
    let confirmed = all.iter().zip(found).rposition(is_confirmed).map_or(0, |last| last + 1);
    for (parameter, found) in all.iter_mut().zip(found).skip(confirmed) {
        if found.known.is_none() && found.is_on_frame && parameter.first().is_some() {
            parameter.words = None;
        }
    }
}

/// Returns whether more parameters of any type follow (varargs).
fn is_open(child: &Node<'_>) -> bool {
    child.entry.tag() == gimli::DW_TAG_unspecified_parameters
}

struct Reader<'d> {
    finder: Finder<'d>,
    image: &'d Image<'d>,
    symbol: &'d str,
    function: Node<'d>,
    entry: u64,
    is_external: bool,
    /// The symbol reveals that arguments may be missing.
    is_changed: bool,
    /// See [`super::stored_arguments`].
    stored: OnceCell<HashMap<i64, usize>>,
}

impl<'d> Reader<'d> {
    fn read(&self, origin: Option<Node<'d>>) -> Option<Parameters> {
        let finder = &self.finder;
        let declared = origin.as_ref().unwrap_or(&self.function);
        let own = self.taken(&self.function);
        let taken = self.taken(declared);
        if taken.is_empty() && !declared.is_set(gimli::DW_AT_prototyped) && !tells_types(&declared.unit) {
            return None;
        }
        let mut words = ArgumentWords::of(finder, &self.function, declared)?;
        words.is_open = finder.children(declared).iter().any(is_open);
        words.is_lost |= words.is_cpp && self.is_incomplete(&taken);
        let result = self.result(declared, &words);
        let mut all = Vec::new();
        let mut found = Vec::new();
        for child in taken {
            let kind = finder.follow(&child, gimli::DW_AT_type);
            let here = own.iter().find(|own| self.is_of(own, &child));
            // Information that a constructor gets by way of its symbol rather than an argument: whether its class is a
            // base of another one.
            if here.is_none() && origin.is_some() && child.is_set(gimli::DW_AT_artificial) {
                continue;
            }
            let how = passed(finder, kind.clone(), words.is_cpp);
            let stored = || self.stored(here?, how);
            let known = here.and_then(|here| self.known(here)).or_else(stored);
            let how = match how {
                // The register holds the parameter itself, or its address, whatever its class suggests.
                Passed::ByReference | Passed::Unknown if matches!(known, Some(EntryLocation::Words(..))) => {
                    passed(finder, kind.clone(), false)
                }
                Passed::Unknown if matches!(known, Some(EntryLocation::Address(_))) => Passed::ByReference,
                how => how,
            };
            let declared = words.take(how);
            let is_declared = declared.is_some();
            let name = finder.text(&child, gimli::DW_AT_name).unwrap_or_default();
            all.push(Parameter {
                name: String::from_utf8_lossy(name).into_owned(),
                declared: written(finder, &child),
                value: match how {
                    Passed::ByReference => ValueType::Address(Pointee::Structure),
                    _ => value(finder, kind),
                },
                words: declared.or_else(|| known?.words()),
                place: ParameterPlace::AsDeclared,
            });
            let is_untold = !here.is_some_and(is_told);
            let is_on_frame = here.is_some_and(|here| self.on_frame(here).is_some());
            found.push(Found { known, is_declared, is_untold, is_on_frame });
        }
        if words.is_cpp && !self.is_by_gcc() && parameter_count(self.symbol).is_none() {
            drop_unconfirmed(&mut all, &found);
        }
        let is_elsewhere = self.place(&mut all, &found);
        let others = match words.is_c {
            _ if is_elsewhere || (words.is_own && !self.is_external) => OtherWords::Nothing,
            true => OtherWords::AsInC,
            false => OtherWords::Unpromised,
        };
        Some(Parameters { all, words: words.count(), others, result })
    }

    fn result(&self, declared: &Node<'d>, words: &ArgumentWords) -> Option<FunctionResult> {
        let finder = &self.finder;
        let typed =
            finder.declarations(declared.clone()).find(|at| at.entry.attr(gimli::DW_AT_type).is_some());
        let Some(typed) = typed else {
            let void =
                FunctionResult { declared: "void".to_owned(), value: ValueType::Other, in_register: false };
            return words.is_c.then_some(void);
        };
        let kind = finder.follow(&typed, gimli::DW_AT_type)?;
        let value = value(finder, Some(kind.clone()));
        let in_register = match passed(finder, Some(kind), words.is_cpp) {
            Passed::Registers { general, .. } => general > 0,
            Passed::Stack { in_x87, .. } => !in_x87,
            Passed::Nothing => false,
            Passed::Wide | Passed::ByReference | Passed::Unknown => true,
        };
        // For other languages, no calling convention is assumed, except that integers are returned in a register.
        let is_known = words.is_c || matches!(value, ValueType::Integer { .. });
        is_known.then(|| FunctionResult { declared: written(finder, &typed), value, in_register })
    }

    /// Returns the parameter entries of a function.
    fn taken(&self, function: &Node<'d>) -> Vec<Node<'d>> {
        let mut taken = Vec::new();
        for child in self.finder.children(function) {
            match child.entry.tag() {
                gimli::DW_TAG_formal_parameter => taken.push(child),
                gimli::DW_TAG_GNU_formal_parameter_pack => {
                    let all = self.finder.children(&child).into_iter();
                    taken.extend(all.filter(|one| one.entry.tag() == gimli::DW_TAG_formal_parameter));
                }
                _ => {}
            }
        }
        taken
    }

    /// Returns whether the number of parameters differs from that in the function's symbol: Clang omits some that are
    /// unused and passed by reference.
    fn is_incomplete(&self, taken: &[Node<'_>]) -> bool {
        let written = taken.iter().filter(|one| !one.is_set(gimli::DW_AT_artificial)).count();
        parameter_count(self.symbol).is_some_and(|count| count != written)
    }

    /// Returns whether an entry of this instance of the function belongs to a declared parameter.
    fn is_of(&self, own: &Node<'d>, declared: &Node<'d>) -> bool {
        own.at == declared.at
            || self
                .finder
                .follow(own, gimli::DW_AT_abstract_origin)
                .is_some_and(|origin| origin.at == declared.at)
    }

    /// Compares the locations of parameters with those that follow from their declarations. Returns whether only the
    /// former are known.
    fn place(&self, all: &mut [Parameter], found: &[Found]) -> bool {
        let differs = |(parameter, found): (&Parameter, &Found)| match (parameter.first(), found.first()) {
            (Some(declared), Some(found)) => declared != found,
            _ => false,
        };
        let moved = all.iter().zip(found).any(differs) || share_a_word(all);
        // Functions that others may call are called as declared: if the locations differ, the declaration was
        // misunderstood.
        if moved && self.is_external && !self.is_changed {
            for (parameter, found) in all.iter_mut().zip(found) {
                parameter.words = found.known.and_then(EntryLocation::words);
            }
            return true;
        }
        let is_changed = self.is_changed || moved;
        // GCC renames a function from which it removed arguments.
        let may_be_changed = !self.is_external && !self.is_by_gcc();
        let mut is_unsure = is_changed;
        for (parameter, found) in all.iter_mut().zip(found) {
            if is_changed && !found.is_declared {
                // Its location here does not correspond to a position in the source's function.
                parameter.words = None;
            }
            let takes_words = parameter.words.as_ref().is_none_or(|words| !words.is_empty());
            is_unsure |= may_be_changed && found.is_untold && takes_words;
            parameter.place = match found.known {
                Some(EntryLocation::Constant(value)) => ParameterPlace::Constant(value),
                Some(_) if found.first() == parameter.first() => ParameterPlace::AsDeclared,
                Some(_) => found.first().map_or(ParameterPlace::Nowhere, ParameterPlace::Word),
                None if is_unsure => ParameterPlace::Nowhere,
                None => ParameterPlace::AsDeclared,
            };
        }
        false
    }

    fn is_by_gcc(&self) -> bool {
        let unit = &self.function.unit;
        let mut entries = unit.entries();
        let producer =
            entries.next_dfs().ok().flatten().and_then(|root| root.attr_value(gimli::DW_AT_producer));
        let producer = producer.and_then(|name| self.finder.dwarf_of(unit).attr_string(&***unit, name).ok());
        producer.is_some_and(|name| name.slice().starts_with(b"GNU "))
    }
}

/// Returns whether the instance describes a parameter's value anywhere.
fn is_told(here: &Node<'_>) -> bool {
    [gimli::DW_AT_location, gimli::DW_AT_const_value].iter().any(|told| here.entry.attr(*told).is_some())
}

/// Returns whether two parameters would be at the same position.
fn share_a_word(all: &[Parameter]) -> bool {
    let mut taken: Vec<&Range<usize>> = all
        .iter()
        .filter_map(|parameter| parameter.words.as_ref())
        .filter(|words| !words.is_empty())
        .collect();
    taken.sort_unstable_by_key(|words| words.start);
    taken.windows(2).any(|two| two[1].start < two[0].end)
}

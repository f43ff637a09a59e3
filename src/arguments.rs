//! A function's arguments at its entry: where the calling convention puts them, and how wide they are. Pure.

use std::collections::BTreeSet;

use crate::config::model::{ArgKind, IntType};
use crate::elf::{
    Arch, ArgForm, Convention, FormError, FunctionResult, FunctionSite, OtherWords, Parameter,
    ParameterPlace, Parameters, Pointee, Site, SymbolIndex, ValueType, parse_args,
};
use crate::plan::{ValueKind, ValuePlan, ValueSource};

/// Number of argument words that can be read.
const WORDS: usize = 32;

/// General-purpose registers that hold arguments.
const REGISTERS: [&str; 6] = ["%rdi", "%rsi", "%rdx", "%rcx", "%r8", "%r9"];

/// Parameters that a message lists at most.
const MAX_LISTED: usize = 12;

/// Whether a probe reads arguments by position.
pub(crate) fn reads(values: &[ValuePlan]) -> bool {
    values.iter().any(|value| position(value).is_some())
}

/// The position of the argument that a value is, or is read from.
pub(crate) fn position(value: &ValuePlan) -> Option<usize> {
    match value.source {
        ValueSource::Arg(index) | ValueSource::Field { index, .. } => Some(index),
        _ => None,
    }
}

/// The arguments of a function where its calling convention puts them: as wide as debug information says, or else
/// signed 64-bit integers.
pub(crate) fn with_calling_convention(
    index: &SymbolIndex<'_>,
    function: FunctionSite,
    wanted: bool,
) -> (Site, Option<Parameters>) {
    if !function.at_entry {
        return (function.site, None);
    }
    let parameters = if wanted { index.parameters(&function) } else { None };
    let mut site = function.site;
    let unknown = |word: usize, reason: &str| Err(FormError::new(&word.to_string(), reason));
    site.args = match function.convention {
        Convention::SystemV => {
            let mut args =
                parse_args(Arch::X86_64, &(0..WORDS).map(|word| form("-8", word)).collect::<String>());
            let declared = parameters.iter().flat_map(|parameters| &parameters.all);
            declared.for_each(|parameter| place(&mut args, parameter));
            let alone = parameters.iter().filter(|parameters| parameters.others == OtherWords::Nothing);
            for parameters in alone {
                let reason = format!(
                    "the function is not called as in C, and no parameter is there; {}",
                    listed(parameters)
                );
                let others = args.iter_mut().enumerate().filter(|(word, _)| !holds_word(parameters, *word));
                others.for_each(|(word, arg)| *arg = unknown(word, &reason));
            }
            args
        }
        Convention::GoRegisters => {
            let registers = "-8@%rax -8@%rbx -8@%rcx -8@%rdi -8@%rsi -8@%r8 -8@%r9 -8@%r10 -8@%r11";
            let mut args = parse_args(Arch::X86_64, registers);
            let reason = "only the first nine argument words of a Go function are in registers; the location of \
                       others depends on their types";
            args.extend((args.len()..WORDS).map(|word| unknown(word, reason)));
            args
        }
        Convention::OCaml => {
            let registers = "-8@%rax -8@%rbx -8@%rdi -8@%rsi -8@%rdx -8@%rcx -8@%r8 -8@%r9 -8@%r12 -8@%r13";
            let mut args = parse_args(Arch::X86_64, registers);
            let reason = "only the first ten arguments of an OCaml function are in registers";
            args.extend((args.len()..WORDS).map(|word| unknown(word, reason)));
            args
        }
        Convention::Own(reason) => (0..WORDS).map(|word| unknown(word, reason)).collect(),
        Convention::GoStack => {
            let forms: String = (1..=WORDS).map(|word| format!(" -8@{}(%rsp)", 8 * word)).collect();
            parse_args(Arch::X86_64, &forms)
        }
        Convention::Unknown => {
            let reason = "the function is assembly, or has no stack check that tells Go 1.16 from Go 1.17; its arguments may \
                       be in registers or on the stack";
            (0..WORDS).map(|word| unknown(word, reason)).collect()
        }
    };
    (site, parameters)
}

/// An argument word of the C calling convention, in the notation of USDT notes.
fn form(width: &str, word: usize) -> String {
    match REGISTERS.get(word) {
        Some(register) => format!(" {width}@{register}"),
        // Above the return address.
        None => format!(" {width}@{}(%rsp)", 8 * (word - REGISTERS.len() + 1)),
    }
}

/// Puts a parameter into the words that its declaration assigns to it.
fn place(args: &mut [Result<ArgForm, FormError>], parameter: &Parameter) {
    let width = match parameter.value {
        ValueType::Integer { bytes, signed: true } => format!("-{bytes}"),
        ValueType::Integer { bytes, signed: false } => bytes.to_string(),
        ValueType::Address(_) => "8".to_string(),
        ValueType::Other => "-8".to_string(),
    };
    let is_one = parameter.word().is_some();
    let width = if is_one { width } else { "-8".to_string() };
    for (into, word) in parameter.words.clone().into_iter().flatten().enumerate() {
        let Some(arg) = args.get_mut(word) else { return };
        let form = match parameter.place {
            ParameterPlace::AsDeclared => form(&width, word),
            ParameterPlace::Word(first) => form(&width, first + into),
            ParameterPlace::Constant(value) if is_one => format!("{width}@${value}"),
            ParameterPlace::Constant(_) | ParameterPlace::Nowhere => {
                let reason = "the compiler may have changed what this function takes, and its debug information does not say where this is";
                *arg = Err(FormError::new(&described(parameter), reason));
                continue;
            }
        };
        if let Some(made) = parse_args(Arch::X86_64, &form).into_iter().next() {
            *arg = made;
        }
    }
}

/// The name of the argument in the configuration, also if it is carried to the return.
pub(crate) fn name(value: &ValuePlan) -> &str {
    value.name.strip_prefix(CARRIED_PREFIX).unwrap_or(&value.name)
}

/// Whether a value is carried from a start to its end.
pub(crate) fn is_kept(value: &ValuePlan) -> bool {
    value.name.starts_with(CARRIED_PREFIX)
}

/// Prefix of the names of values that are read at the entry and carried to the return.
const CARRIED_PREFIX: &str = "start:";

/// The parameter as declared in the source: `int n`.
pub(crate) fn described(parameter: &Parameter) -> String {
    format!("{} {}", parameter.declared, parameter.name).trim_end().to_string()
}

/// The parameter that occupies exactly this word.
pub(crate) fn in_word(parameters: &Parameters, word: usize) -> Option<&Parameter> {
    parameters.all.iter().find(|parameter| parameter.word() == Some(word))
}

/// Returns whether a parameter, or a part of one, is in this word.
fn holds_word(parameters: &Parameters, word: usize) -> bool {
    parameters.all.iter().filter_map(|one| one.words.as_ref()).any(|words| words.contains(&word))
}

/// The parameters with the positions that a configuration uses: a sentence without a period.
pub(crate) fn listed(parameters: &Parameters) -> String {
    let one = |parameter: &Parameter| match &parameter.words {
        None => format!("{} (location unknown)", described(parameter)),
        Some(words) if words.is_empty() => format!("{} (in no general register)", described(parameter)),
        Some(words) if words.len() == 1 => format!("{}: {}", words.start, described(parameter)),
        Some(words) => format!("{}-{}: {}", words.start, words.end - 1, described(parameter)),
    };
    let mut all: Vec<String> = parameters.all.iter().take(MAX_LISTED).map(one).collect();
    if parameters.all.len() > MAX_LISTED {
        all.push(format!("and {} more", parameters.all.len() - MAX_LISTED));
    }
    match all.is_empty() {
        true => "by its debug information it has no parameters".to_string(),
        false => format!("its parameters, by its debug information: {}", all.join(", ")),
    }
}

/// Contradictions between what is requested and what the function takes: sentences without a period.
pub(crate) fn contradictions(values: &[ValuePlan], parameters: &Parameters) -> BTreeSet<String> {
    values.iter().filter_map(|value| contradiction(value, parameters)).collect()
}

fn contradiction(value: &ValuePlan, parameters: &Parameters) -> Option<String> {
    let index = position(value)?;
    let name = name(value);
    let Some(parameter) = in_word(parameters, index) else {
        if parameters.others == OtherWords::Unpromised && !holds_word(parameters, index) {
            return Some(format!(
                "{name} is read at position {index} as in C, but debug information has no parameter there, and the language promises no \
                 convention"
            ));
        }
        let words = parameters.words.filter(|words| index >= *words)?;
        return Some(format!(
            "{name} is read at position {index}, but by its debug information the function takes {words} word{} of arguments",
            if words == 1 { "" } else { "s" }
        ));
    };
    let is = |what: &str| Some(format!("{name} is read as {what}, but it is `{}`", described(parameter)));
    let is_wide = matches!(
        parameter.value,
        ValueType::Address(_) | ValueType::Integer { bytes: 8, .. } | ValueType::Other
    );
    if matches!(value.source, ValueSource::Field { .. }) {
        return if is_wide { None } else { is("an address") };
    }
    match (&value.kind, parameter.value) {
        (ValueKind::Arg(ArgKind::Int(Some(asked))), ValueType::Integer { bytes, signed })
            if (asked.bytes, asked.signed) != (bytes, signed) =>
        {
            is(&word_of(*asked))
        }
        (ValueKind::Arg(ArgKind::Int(Some(asked))), ValueType::Address(_)) if asked.bytes != 8 => {
            is(&word_of(*asked))
        }
        (ValueKind::Arg(ArgKind::Str { .. } | ArgKind::StrLen { .. }) | ValueKind::StrLen { .. }, found)
            if !is_wide || found == ValueType::Address(Pointee::Structure) =>
        {
            is("text")
        }
        (kind, _) if kind.is_text() && !is_wide => is("what is at an address"),
        _ => None,
    }
}

/// The contradiction between what is read of a function's result and what it returns: a sentence that ends before the
/// function's name.
pub(crate) fn contradicted_result(value: &ValuePlan, result: &FunctionResult) -> Option<String> {
    let ValueSource::Retval(asked) = value.source else { return None };
    let declared = &result.declared;
    match (asked, result.value) {
        _ if declared == "void" => {
            Some("retval is not valid here: by debug information the function returns nothing".to_string())
        }
        _ if !result.in_register => Some(format!(
            "retval is not valid here: by debug information the result is a `{declared}`, which is not in a general register"
        )),
        (_, ValueType::Other) => Some(format!(
            "retval is the first word in a general register, or the address, of what is `{declared}` by debug information"
        )),
        (Some(asked), ValueType::Integer { bytes, signed })
            if (asked.bytes, asked.signed) != (bytes, signed) =>
        {
            Some(format!("retval is read as {}, but it is `{declared}` by debug information", word_of(asked)))
        }
        (Some(asked), ValueType::Address(_)) if asked.bytes != 8 => {
            Some(format!("retval is read as {}, but it is `{declared}` by debug information", word_of(asked)))
        }
        _ => None,
    }
}

fn word_of(asked: IntType) -> String {
    format!("{}{}", if asked.signed { "i" } else { "u" }, 8 * asked.bytes)
}

/// Addresses of text that are read as numbers: sentences without a period.
pub(crate) fn suggestions(values: &[ValuePlan], parameters: &Parameters) -> BTreeSet<String> {
    let suggestion = |value: &ValuePlan| {
        let ValueSource::Arg(index) = value.source else { return None };
        let parameter = in_word(parameters, index)?;
        // What is read at the return, and may be text there, is carried as an address, which has a type.
        let is_number = match value.kind {
            ValueKind::Arg(ArgKind::Int(asked)) => !is_kept(value) || asked.is_none(),
            _ => false,
        };
        (is_number && parameter.value == ValueType::Address(Pointee::Text)).then(|| {
            let (name, declared) = (name(value), described(parameter));
            format!("{name} is `{declared}`, read as an address; `type: string` reads the text")
        })
    };
    values.iter().filter_map(suggestion).collect()
}

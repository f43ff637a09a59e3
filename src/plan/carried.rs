//! What the end of a span, or the return of a function, needs from its start.

use super::{ValueKind, ValuePlan, ValueSource};
use crate::abi::{CARRIED_TEXTS, MAX_BYTES, MAX_CARRIED};
use crate::config::diagnose::Diagnostics;
use crate::config::model::{Arg, ArgKind, ArgOf, IntType, Unit};
use crate::config::place::Place;

/// An address is an unsigned number.
const ADDRESS: IntType = IntType { bytes: 8, signed: false };

/// What a span's end gets from its start: each argument that is not read at the end itself. An argument is its value at
/// the time of the call: registers, and the memory that they point to, are reused before the function returns.
#[derive(Debug, Default)]
pub(super) struct CarriedValues {
    /// The return of a function, where no argument can be read anymore and `retval` is known.
    pub is_return: bool,
    /// Values that the start carries, in order. For text with a length, `len` is an index into `lengths`.
    pub carried: Vec<ValuePlan>,
    /// Additional values that the start must read.
    pub lengths: Vec<ValuePlan>,
    pub uses_duration: bool,
}

impl CarriedValues {
    /// Where the end finds an argument that the start reads.
    pub(super) fn source(&mut self, arg: &Arg, args: &[Arg], diags: &Diagnostics) -> Option<ValueSource> {
        if arg.of == ArgOf::Result {
            return Some(ValueSource::of(arg, arg.of));
        }
        if arg.at_return {
            let kind = ArgKind::Int(Some(ADDRESS));
            let pointer = Arg { offset: None, kind, ..arg.clone() };
            let number = self.carry(raw(&pointer, arg.of), diags)?;
            let is_text = ValueKind::Arg(arg.kind.clone()).is_text();
            let offset = if is_text { arg.offset } else { Some(arg.offset.unwrap_or(0)) };
            return Some(ValueSource::CarriedAddress { number, offset });
        }
        let kind = match &arg.kind {
            ArgKind::StrLen { length, max } => {
                let len = self.length(arg, *length, args, diags)?;
                ValueKind::StrLen { len, max: *max }
            }
            kind if ValueKind::Arg(kind.clone()).is_text() => ValueKind::Arg(kind.clone()),
            _ => raw(arg, arg.of).kind,
        };
        let value = ValuePlan { kind, ..raw(arg, arg.of) };
        Some(ValueSource::Carried(self.carry(value, diags)?))
    }

    fn carry(&mut self, value: ValuePlan, diags: &Diagnostics) -> Option<usize> {
        let alike = |known: &ValuePlan| (known.source, &known.kind) == (value.source, &value.kind);
        if let Some(known) = self.carried.iter().position(alike) {
            return Some(known);
        }
        if self.carried.len() == MAX_CARRIED {
            let message = format!("more than {MAX_CARRIED} arguments of the start are needed at the end");
            diags
                .error(&value.at, message)
                .help("use fewer arguments of the start, or read them at the end (at: return, to_index)");
            return None;
        }
        self.carried.push(value);
        Some(self.carried.len() - 1)
    }

    /// The index, in the lengths, of the argument at this position.
    fn length(&mut self, text: &Arg, of: ArgOf, args: &[Arg], diags: &Diagnostics) -> Option<usize> {
        let named = args.iter().find(|arg| arg.of == of && arg.offset.is_none());
        if of == ArgOf::Result || named.is_some_and(|arg| arg.at_return) {
            let message = format!("\"{}\" is read at the entry but its length at the return", text.name);
            diags.error(&text.at, message).help("read the text at the return too: at: return");
            return None;
        }
        let length = named.cloned().unwrap_or_else(|| Arg { of, ..unnamed_length(text) });
        let value = raw(&length, of);
        let known = self.lengths.iter().position(|known| known.source == value.source);
        Some(known.unwrap_or_else(|| {
            self.lengths.push(value);
            self.lengths.len() - 1
        }))
    }

    pub(super) fn has_texts(&self) -> bool {
        self.carried.iter().any(|value| value.kind.is_text())
    }

    /// Reports texts that are too long. In the carried data, a text starts only where the longest possible one would
    /// fit.
    pub(super) fn refuse_long(&self, at: &Place, diags: &Diagnostics) {
        let texts = self.carried.iter().map(|value| value.kind.max_bytes() as usize).filter(|max| *max > 0);
        let before_last: usize = texts.rev().skip(1).sum();
        let room = CARRIED_TEXTS - MAX_BYTES;
        if before_last > room {
            diags
                .error(
                    at,
                    format!(
                        "the texts of the start that are needed at the end, except the last, can have \
                         {before_last} bytes; the limit is {room}"
                    ),
                )
                .help("lower their `max`, or split the metrics over two entries of this probe");
        }
    }

    /// Adds what the start reads to its values, which may begin with the span's key.
    pub(super) fn read_at_start(self, values: &mut Vec<ValuePlan>) {
        let first_length = values.len() + self.carried.len();
        values.extend(self.carried.into_iter().map(|mut value| {
            if let ValueKind::StrLen { len, .. } = &mut value.kind {
                *len += first_length;
            }
            value
        }));
        values.extend(self.lengths);
    }
}

/// The length of a text, at a position without a name. Its place is that of the text.
pub(super) fn unnamed_length(text: &Arg) -> Arg {
    Arg {
        name: format!("length of {}", text.name),
        to_index: None,
        offset: None,
        kind: ArgKind::Int(None),
        unit: Unit::None,
        ..text.clone()
    }
}

/// An argument as its raw 64 bits: a number, or the address of a text.
pub(super) fn raw(arg: &Arg, of: ArgOf) -> ValuePlan {
    let kind = match &arg.kind {
        ArgKind::Int(asked) => ArgKind::Int(*asked),
        // Memory behind an address has no inherent width.
        ArgKind::Bool if arg.offset.is_some() => ArgKind::Int(Some(IntType { bytes: 1, signed: false })),
        _ => ArgKind::Int(None),
    };
    ValuePlan {
        at: arg.at.clone(),
        name: format!("start:{}", arg.name),
        source: ValueSource::of(arg, of),
        kind: ValueKind::Arg(kind),
        unit: Unit::None,
    }
}

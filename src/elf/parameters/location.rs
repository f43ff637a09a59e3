//! The location of a parameter at the function's entry, according to debug information.

use std::ops::Range;

use gimli::{Operation, Register};

use super::Reader;
use crate::elf::debug_info::{Node, Slice};
use crate::elf::stored_arguments::stored_arguments;
use crate::elf::types::{Passed, REGISTERS};

/// The location of a parameter at the function's entry, according to debug information.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryLocation {
    /// The first word, and the number of words.
    Words(usize, usize),
    /// This word holds its address.
    Address(usize),
    Constant(i64),
}

impl EntryLocation {
    pub(super) fn words(self) -> Option<Range<usize>> {
        match self {
            EntryLocation::Words(first, count) => Some(first..first.saturating_add(count)),
            EntryLocation::Address(word) => Some(word..word + 1),
            EntryLocation::Constant(_) => None,
        }
    }
}

/// DWARF's number of `%rbp`.
const FRAME_POINTER: Register = Register(6);

impl<'d> Reader<'d> {
    /// Returns the location of the parameter at the function's first instruction, as an entry of this instance
    /// describes it.
    pub(super) fn known(&self, parameter: &Node<'d>) -> Option<EntryLocation> {
        let dwarf = self.finder.dwarf_of(&parameter.unit);
        if let Some(constant) = parameter.entry.attr(gimli::DW_AT_const_value) {
            return constant.sdata_value().map(EntryLocation::Constant);
        }
        let location = parameter.entry.attr(gimli::DW_AT_location)?;
        if let Some(expression) = location.exprloc_value() {
            return self.evaluated(parameter, expression);
        }
        let mut list = dwarf.attr_locations(&**parameter.unit, location.value()).ok()??;
        while let Ok(Some(part)) = list.next() {
            if part.range.begin <= self.entry && self.entry < part.range.end {
                return self.evaluated(parameter, part.data);
            }
        }
        None
    }

    /// Returns the words that are stored at the parameter's location by the time the function's own code runs.
    pub(super) fn stored(&self, parameter: &Node<'d>, how: Passed) -> Option<EntryLocation> {
        let Passed::Registers { general: count @ 1.., vector: 0, .. } = how else { return None };
        let offset = self.on_frame(parameter)?;
        self.stored_at(offset).map(|word| EntryLocation::Words(word, count))
    }

    /// Returns the argument word that is stored at this offset from the frame pointer.
    fn stored_at(&self, offset: i64) -> Option<usize> {
        let stored = self.stored.get_or_init(|| stored_arguments(self.image, self.entry));
        stored.get(&offset).copied()
    }

    /// Returns the parameter's offset from the frame pointer, once that is set.
    pub(super) fn on_frame(&self, parameter: &Node<'d>) -> Option<i64> {
        let expression = parameter.entry.attr(gimli::DW_AT_location)?.exprloc_value()?;
        let mut operations = expression.operations(parameter.unit.encoding());
        let (Operation::FrameOffset { offset }, None) =
            (operations.next().ok()??, operations.next().ok().flatten())
        else {
            return None;
        };
        let base = self.function.entry.attr(gimli::DW_AT_frame_base)?.exprloc_value()?;
        let base = base.operations(parameter.unit.encoding()).next().ok()??;
        matches!(base, Operation::Register { register: FRAME_POINTER }).then_some(offset)
    }

    fn evaluated(
        &self,
        parameter: &Node<'d>,
        expression: gimli::Expression<Slice<'d>>,
    ) -> Option<EntryLocation> {
        let mut operations = expression.operations(parameter.unit.encoding());
        let mut next = || operations.next().ok().flatten();
        match (next()?, next(), next(), next()) {
            (Operation::Register { register }, None, ..) => Some(EntryLocation::Words(word_in(register)?, 1)),
            // A structure in registers starts in the first of them.
            (
                Operation::Register { register },
                Some(Operation::Piece { .. }),
                second,
                Some(Operation::Piece { .. }) | None,
            ) => {
                let is_second =
                    matches!(second, Some(Operation::Register { register }) if word_in(register).is_some());
                Some(EntryLocation::Words(word_in(register)?, 1 + usize::from(is_second)))
            }
            (Operation::RegisterOffset { register, offset: 0, .. }, None, ..) => {
                word_in(register).map(EntryLocation::Address)
            }
            (Operation::RegisterOffset { register, offset: 0, .. }, second, third, fourth) => {
                let others = std::iter::from_fn(next);
                let rest = [second, third, fourth].into_iter().flatten().chain(others).collect::<Vec<_>>();
                is_low_part(&rest).then(|| word_in(register))?.map(|word| EntryLocation::Words(word, 1))
            }
            (Operation::FrameOffset { offset }, None, ..) => {
                self.on_stack(parameter, offset).map(|word| EntryLocation::Words(word, 1))
            }
            (Operation::UnsignedConstant { value }, Some(Operation::StackValue), None, _) => {
                Some(EntryLocation::Constant(value as i64))
            }
            (Operation::SignedConstant { value }, Some(Operation::StackValue), None, _) => {
                Some(EntryLocation::Constant(value))
            }
            _ => None,
        }
    }

    /// Returns the word of the stack arguments at this offset from the function's frame base.
    fn on_stack(&self, parameter: &Node<'d>, offset: i64) -> Option<usize> {
        let base = self.function.entry.attr(gimli::DW_AT_frame_base)?.exprloc_value()?;
        let above = match base.operations(parameter.unit.encoding()).next().ok()?? {
            Operation::CallFrameCFA => offset,
            // The frame pointer, once it is set: above it are its old value and the return address.
            Operation::Register { register: FRAME_POINTER } => offset.checked_sub(16)?,
            _ => return None,
        };
        let above = usize::try_from(above).ok().filter(|above| above % 8 == 0)?;
        // The Windows convention reserves room there for the arguments that are in registers.
        if let Some(word) = self.stored_at(above as i64 + 16) {
            return Some(word);
        }
        Some(REGISTERS + above / 8)
    }
}

/// Returns whether the operations on a word only truncate it, which is how Clang describes small integers.
fn is_low_part(operations: &[Operation<Slice<'_>>]) -> bool {
    let is_cut = |operation: &Operation<Slice<'_>>| match operation {
        Operation::UnsignedConstant { value } => matches!(value, 0xff | 0xffff | 0xffff_ffff),
        Operation::And | Operation::Convert { .. } => true,
        _ => false,
    };
    matches!(operations, [cuts @ .., Operation::StackValue] if cuts.iter().all(is_cut))
}

/// Returns the argument word that is in a register, given DWARF's number of it.
fn word_in(register: Register) -> Option<usize> {
    const ORDER: [u16; REGISTERS] = [5, 4, 1, 2, 8, 9];
    ORDER.iter().position(|known| *known == register.0)
}

//! Where a value is located at a site.

use std::borrow::Cow;

use super::ResolveError;
use crate::abi::{location, location_op};
use crate::arguments::name;
use crate::config::model::{ArgKind, IntType};
use crate::elf::{ArgForm, Form, FormError, FunctionResult, Reg, Site, ValueType};
use crate::plan::{ValueKind, ValuePlan, ValueSource};

/// Register indices in the x86-64 `struct pt_regs`.
const RETURN_REGISTER: u8 = 10;
const STACK_POINTER: u8 = 19;
/// Not a register, so that it is read as 0.
const NO_REGISTER: u8 = u8::MAX;

/// A function's boolean is one byte: the higher bits of the register are stale. The note of a USDT probe gives the
/// width. The width of a result comes from debug information if it is not configured.
pub(super) fn narrowed<'v>(
    value: &'v ValuePlan,
    is_function: bool,
    result: Option<&FunctionResult>,
) -> Cow<'v, ValuePlan> {
    if let (ValueSource::Retval(None), Some(result)) = (&value.source, result) {
        let source = ValueSource::Retval(match result.value {
            ValueType::Integer { bytes, signed } => Some(IntType { bytes, signed }),
            ValueType::Address(_) => Some(IntType { bytes: 8, signed: false }),
            ValueType::Other => None,
        });
        return Cow::Owned(ValuePlan { source, ..value.clone() });
    }
    match value.kind {
        ValueKind::Arg(ArgKind::Bool) if is_function => {
            let kind = ValueKind::Arg(ArgKind::Int(Some(IntType { bytes: 1, signed: false })));
            Cow::Owned(ValuePlan { kind, ..value.clone() })
        }
        _ => Cow::Borrowed(value),
    }
}

pub(super) fn locate(site: &Site, value: &ValuePlan, function: u32) -> Result<location, ResolveError> {
    let mut to = location { bytes: 8, is_signed: 1, ..location::default() };
    let op = match value.source {
        ValueSource::Arg(index) => return locate_argument(site, value, index),
        ValueSource::Field { index, offset } => return locate_field(site, value, index, offset),
        ValueSource::Retval(kind) => {
            let kind = kind.unwrap_or(IntType { bytes: 8, signed: true });
            (to.reg, to.bytes, to.is_signed) = (RETURN_REGISTER, kind.bytes, u8::from(kind.signed));
            location_op::LOC_REGISTER
        }
        ValueSource::ResultField { offset } => {
            let IntType { bytes, signed } = width_in_memory(&value.kind);
            to.reg = RETURN_REGISTER;
            (to.offset, to.bytes, to.is_signed) = (i64::from(offset), bytes, u8::from(signed));
            location_op::LOC_MEMORY
        }
        ValueSource::Duration => location_op::LOC_DURATION,
        ValueSource::Carried(number) | ValueSource::CarriedAddress { number, offset: None } => {
            to.index = u8::try_from(number).unwrap_or(u8::MAX);
            location_op::LOC_CARRIED
        }
        ValueSource::CarriedAddress { number, offset: Some(offset) } => {
            let IntType { bytes, signed } = width_in_memory(&value.kind);
            to.index = u8::try_from(number).unwrap_or(u8::MAX);
            (to.offset, to.bytes, to.is_signed) = (i64::from(offset), bytes, u8::from(signed));
            location_op::LOC_CARRIED_MEMORY
        }
        // At the entry, the return address is on top of the stack.
        ValueSource::Caller | ValueSource::ReturnAddress => {
            to.reg = STACK_POINTER;
            location_op::LOC_MEMORY
        }
        ValueSource::Function => {
            to.offset = i64::from(function);
            location_op::LOC_CONST
        }
        ValueSource::Pid => location_op::LOC_PID,
        ValueSource::Tid => location_op::LOC_TID,
        ValueSource::Cpu => location_op::LOC_CPU,
        ValueSource::Cgroup => location_op::LOC_CGROUP,
        ValueSource::Comm => location_op::LOC_COMM,
        ValueSource::Exe => location_op::LOC_EXE,
        ValueSource::Cmdline => location_op::LOC_CMDLINE,
        // Read when the event is created.
        ValueSource::Time | ValueSource::Stack => location_op::LOC_CONST,
    };
    to.op = op.0 as u8;
    Ok(to)
}

/// The data at `offset` in the structure that the argument points to: a number, or the address of a text.
fn locate_field(site: &Site, value: &ValuePlan, index: usize, offset: i32) -> Result<location, ResolveError> {
    let kind = ValueKind::Arg(ArgKind::Int(None));
    let mut to = locate_argument(site, &ValuePlan { kind, ..value.clone() }, index)?;
    if to.op != location_op::LOC_REGISTER.0 as u8 || to.bytes != 8 {
        let text = site.args.get(index).and_then(|form| form.as_ref().ok()).map_or("", |form| &form.text);
        let reason = format!("`{text}` is not a pointer in a register, so `offset` cannot be applied to it");
        return Err(ResolveError::Value { name: name(value).to_string(), reason });
    }
    let IntType { bytes, signed } = width_in_memory(&value.kind);
    (to.op, to.offset) = (location_op::LOC_MEMORY.0 as u8, i64::from(offset));
    (to.bytes, to.is_signed) = (bytes, u8::from(signed));
    Ok(to)
}

/// The width in memory of a value of this kind; for text, that of its address.
fn width_in_memory(kind: &ValueKind) -> IntType {
    match kind {
        ValueKind::Arg(ArgKind::Int(Some(asked))) => *asked,
        ValueKind::Arg(ArgKind::Bool) => IntType { bytes: 1, signed: false },
        _ => IntType { bytes: 8, signed: true },
    }
}

fn locate_argument(site: &Site, value: &ValuePlan, index: usize) -> Result<location, ResolveError> {
    let name = || name(value).to_string();
    let form = match site.args.get(index) {
        None => return Err(ResolveError::Missing { name: name(), index, has: site.args.len() }),
        Some(Err(error)) => return Err(unreadable(name(), error)),
        Some(Ok(form)) => form,
    };
    if let Some(reason) = form.unreadable() {
        return Err(ResolveError::Value { name: name(), reason });
    }
    let asked = match &value.kind {
        ValueKind::Arg(ArgKind::Int(asked)) => *asked,
        _ => None,
    };
    let IntType { bytes, signed } = width_as_read(asked, form);
    let mut to = location { bytes, is_signed: u8::from(signed), ..location::default() };
    match &form.form {
        Form::Const(number) => {
            (to.op, to.offset) = (location_op::LOC_CONST.0 as u8, extended(*number, bytes, signed));
        }
        Form::Reg(reg) => {
            (to.op, to.reg) = (location_op::LOC_REGISTER.0 as u8, reg.pt_regs_index());
        }
        Form::Mem { base, offset } => {
            to.op = location_op::LOC_MEMORY.0 as u8;
            (to.reg, to.offset) = (base.pt_regs_index(), *offset);
        }
        Form::Indexed { base, index, scale, offset } => {
            to.op = location_op::LOC_INDEXED.0 as u8;
            let base = base.map_or(NO_REGISTER, Reg::pt_regs_index);
            (to.reg, to.index, to.offset) = (base, index.pt_regs_index(), *offset);
            to.scale = scale.trailing_zeros() as u8;
        }
        // Its distance from the instruction is the same wherever the file is loaded.
        Form::Static { vaddr } => {
            to.op = location_op::LOC_MEMORY.0 as u8;
            to.reg = Reg::X86_64_IP.pt_regs_index();
            to.offset = vaddr.wrapping_sub(site.vaddr) as i64;
        }
        Form::Symbol { .. } | Form::Absolute { .. } | Form::Float { .. } => {
            let reason = format!("the operand `{}` is not supported", form.text);
            return Err(ResolveError::Value { name: name(), reason });
        }
    }
    Ok(to)
}

/// The width and signedness with which an argument is read. Bits beyond the width that its note gives do not belong to
/// the argument: in memory it is the data that follows, in a register they are often zero instead of the sign.
fn width_as_read(asked: Option<IntType>, form: &ArgForm) -> IntType {
    let noted = IntType { bytes: form.size, signed: form.signed };
    asked.filter(|asked| asked.bytes <= noted.bytes).unwrap_or(noted)
}

/// The low bytes of a number, sign-extended or zero-extended.
fn extended(number: i64, bytes: u8, signed: bool) -> i64 {
    let unused = 64 - 8 * u32::from(bytes);
    let high = number << unused;
    if signed { high >> unused } else { ((high as u64) >> unused) as i64 }
}

fn unreadable(name: String, error: &FormError) -> ResolveError {
    ResolveError::Value { name, reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::{Arch, SiteShape, parse_args};

    fn located(note: &str, asked: Option<IntType>) -> location {
        let args = parse_args(Arch::X86_64, note);
        let value = ValuePlan {
            at: crate::config::place::Place::none(),
            name: "a".to_string(),
            source: ValueSource::Arg(0),
            kind: ValueKind::Arg(ArgKind::Int(asked)),
            unit: crate::config::model::Unit::None,
        };
        let site = Site { offset: 0, vaddr: 0, ref_ctr_offset: 0, shape: SiteShape::Nop, args };
        locate(&site, &value, 0).unwrap()
    }

    #[test]
    fn argument_is_never_read_wider_than_its_note() {
        let int = |bytes, signed| Some(IntType { bytes, signed });
        for (note, asked, bytes, signed) in [
            ("-4@-20(%rbp)", int(8, true), 4, true),
            ("-4@-20(%rbp)", int(8, false), 4, true),
            ("4@%eax", int(8, true), 4, false),
            ("1@%al", int(4, true), 1, false),
            ("-4@%eax", int(4, false), 4, false),
            ("8@%rax", int(2, true), 2, true),
            ("%rax", None, 8, false),
        ] {
            let at = located(note, asked);
            assert_eq!((at.bytes, at.is_signed), (bytes, u8::from(signed)), "{note} as {asked:?}");
        }
    }

    #[test]
    fn constant_has_the_requested_width() {
        let int = |bytes, signed| Some(IntType { bytes, signed });
        for (note, asked, number) in [
            ("-4@$-1", None, -1),
            ("-4@$-1", int(4, false), 0xffff_ffff),
            ("4@$-1", int(4, true), -1),
            ("8@$-1", int(1, false), 255),
            ("-8@$300", int(1, true), 44),
            ("8@$18446744073709551615", int(8, false), -1),
            ("-4@$-1", int(8, false), -1),
        ] {
            assert_eq!(located(note, asked).offset, number, "{note} as {asked:?}");
        }
    }
}

//! Operands in the syntax that GCC and Clang write for aarch64.

use super::{Form, Reg, sum};

pub(super) fn operand(text: &str) -> Result<Form, String> {
    if let Some(rest) = text.strip_prefix('[') {
        let inner = rest.strip_suffix(']').ok_or("its bracket is not closed")?;
        return memory(inner);
    }
    if let Some(reg) = Reg::aarch64(text) {
        return Ok(Form::Reg(reg));
    }
    if text == "xzr" || text == "wzr" {
        return Ok(Form::Const(0));
    }
    if text
        .strip_prefix(['v', 'q', 'd', 's', 'h', 'b'])
        .is_some_and(|n| n.starts_with(|c: char| c.is_ascii_digit()))
    {
        return Ok(Form::Float { register: text.to_owned() });
    }
    let value = sum(immediate(text))?;
    match value.symbol {
        None => Ok(Form::Const(value.offset)),
        Some(symbol) => Err(format!("`{symbol}` is not an aarch64 register that a probe can read")),
    }
}

/// Parses the text between the brackets: `base`, `base, offset`, `base, index` or `base, index, lsl shift`.
fn memory(inner: &str) -> Result<Form, String> {
    let mut parts = inner.split(',').map(str::trim);
    let base = address_register(parts.next().unwrap_or(""))?;
    let Some(second) = parts.next() else { return Ok(Form::Mem { base, offset: 0 }) };
    let form = if second.starts_with(['x', 'w']) {
        let index = address_register(second)?;
        let scale = parts.next().map_or(Ok(1), shift)?;
        Form::Indexed { base: Some(base), index, scale, offset: 0 }
    } else {
        let place = sum(immediate(second))?;
        match place.symbol {
            Some(symbol) => return Err(format!("it combines `{symbol}` with a register")),
            None if second.is_empty() => return Err("no offset follows the comma".to_owned()),
            None => Form::Mem { base, offset: place.offset },
        }
    };
    match parts.next() {
        None => Ok(form),
        Some(more) => Err(format!("`{more}` is not expected in its brackets")),
    }
}

fn address_register(name: &str) -> Result<Reg, String> {
    let reg = Reg::aarch64(name).filter(|_| !name.starts_with('w'));
    reg.ok_or_else(|| format!("`{name}` is not a 64-bit register"))
}

/// Parses `lsl 3` into a factor.
fn shift(text: &str) -> Result<u8, String> {
    match text.strip_prefix("lsl").map(|n| immediate(n.trim_start())) {
        Some("0") => Ok(1),
        Some("1") => Ok(2),
        Some("2") => Ok(4),
        Some("3") => Ok(8),
        _ => Err(format!("its index is changed by `{text}`, and only lsl by 0 to 3 can be read")),
    }
}

/// Strips the `#` that may precede a number.
fn immediate(text: &str) -> &str {
    text.strip_prefix('#').unwrap_or(text)
}

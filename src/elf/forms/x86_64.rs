//! Operands in AT&T syntax, as GCC and Clang write them for x86_64.

use super::{Form, Reg, sum};

pub(super) fn operand(text: &str) -> Result<Form, String> {
    if let Some(constant) = text.strip_prefix('$') {
        let value = sum(constant)?;
        return match value.symbol {
            None if constant.trim().is_empty() => Err("no number follows the $".to_owned()),
            None => Ok(Form::Const(value.offset)),
            // A compiler-generated label, such as that of a string literal.
            Some(symbol) if symbol.starts_with(".L") => {
                Err(format!("it is the address of `{symbol}`, a label that no symbol table has"))
            }
            Some(symbol) => Ok(absolute(symbol, Form::Const(value.offset))),
        };
    }
    if text.contains(':') {
        return Err("it is relative to a segment register (thread-local data)".to_owned());
    }
    if text.starts_with("%st(") {
        return register(&text[1..]);
    }
    if let Some(open) = text.find('(') {
        let inner = text[open + 1..].strip_suffix(')').ok_or("its parenthesis is not closed")?;
        return memory(&text[..open], inner);
    }
    if let Some(name) = text.strip_prefix('%') {
        return register(name);
    }
    match sum(text)? {
        super::Sum { symbol: Some(name), offset } => symbol(name, offset),
        _ => Err("it is an absolute address".to_owned()),
    }
}

fn register(name: &str) -> Result<Form, String> {
    if let Some(reg) = Reg::x86_64(name) {
        return Ok(Form::Reg(reg));
    }
    if ["xmm", "ymm", "zmm", "mm", "st"].iter().any(|kind| name.starts_with(kind)) {
        return Ok(Form::Float { register: name.to_owned() });
    }
    Err(match name {
        "ah" | "bh" | "ch" | "dh" => "it is the second byte of a register".to_owned(),
        _ => format!("`%{name}` is not an x86_64 register that a probe can read"),
    })
}

/// Parses `displacement(base,index,scale)`.
fn memory(displacement: &str, inner: &str) -> Result<Form, String> {
    let place = sum(displacement)?;
    let mut parts = inner.split(',').map(str::trim);
    let base = match parts.next() {
        None | Some("") => None,
        Some(name) => Some(address_register(name)?),
    };
    let index = parts.next().map(address_register).transpose()?;
    let scale = match parts.next() {
        None => 1,
        Some("1") => 1,
        Some("2") => 2,
        Some("4") => 4,
        Some("8") => 8,
        Some(other) => return Err(format!("its scale is `{other}`; only 1, 2, 4 and 8 are valid")),
    };
    if parts.next().is_some() {
        return Err("there are more than three parts in its parentheses".to_owned());
    }
    let offset = place.offset;
    let form = match (place.symbol, base, index) {
        (Some(name), Some(Reg::X86_64_IP), None) => return symbol(name, offset),
        (_, Some(Reg::X86_64_IP), _) | (_, _, Some(Reg::X86_64_IP)) => {
            return Err("it is relative to an instruction that is not in the note".to_owned());
        }
        (_, Some(base), None) => Form::Mem { base, offset },
        (_, base, Some(index)) => Form::Indexed { base, index, scale, offset },
        (_, None, None) => return Err("there is no register in its parentheses".to_owned()),
    };
    Ok(match place.symbol {
        Some(name) => absolute(name, form),
        None => form,
    })
}

/// Parses a register in an address, which must be a full 64-bit register.
fn address_register(name: &str) -> Result<Reg, String> {
    let reg = name.strip_prefix('%').and_then(Reg::x86_64);
    reg.filter(|_| Reg::x86_64_bytes(name) == 8).ok_or_else(|| format!("`{name}` is not a 64-bit register"))
}

fn absolute(name: &str, form: Form) -> Form {
    Form::Absolute { name: name.to_owned(), form: Box::new(form) }
}

fn symbol(name: &str, offset: i64) -> Result<Form, String> {
    match name.split_once('@') {
        // foo@GOTPCREL, foo@TPOFF, foo@PLT: an entry of a linker table rather than the symbol itself.
        Some((symbol, table)) => Err(format!("it goes through the {table} entry of `{symbol}`")),
        None => Ok(Form::Symbol { name: name.to_owned(), offset }),
    }
}

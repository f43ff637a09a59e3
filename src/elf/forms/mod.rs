//! Argument forms: the text that describes in a USDT note where an argument is.
//!
//! Each argument is `SIZE@OPERAND`: SIZE is 1, 2, 4 or 8 bytes, with `-` before it for a signed integer and `f` after
//! it for a floating-point number; OPERAND is an operand in assembler syntax. Without `SIZE@`, the argument is an
//! unsigned machine word, as in SystemTap.

mod aarch64;
mod reg;
mod x86_64;

pub use reg::Reg;

use super::{Arch, FormError};

/// The place of one argument, and how to read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgForm {
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// Whether the value is to be sign-extended from `size`.
    pub signed: bool,
    /// Whether the bytes are an IEEE 754 number rather than an integer.
    pub float: bool,
    pub form: Form,
    /// The argument as written in the note.
    pub text: String,
}

impl ArgForm {
    /// Returns the place of the argument as written in the note, without its size.
    pub fn place(&self) -> &str {
        self.text.split_once('@').map_or(&self.text, |(_, place)| place)
    }

    /// Returns why no probe program can read the argument, phrased to follow a colon; `None` if it can be read.
    pub fn unreadable(&self) -> Option<String> {
        match &self.form {
            _ if self.float => Some(format!("`{}` is a floating-point number", self.text)),
            Form::Symbol { .. } | Form::Absolute { .. } | Form::Float { .. } => {
                Some(format!("the operand `{}` is not supported", self.text))
            }
            Form::Const(_) | Form::Reg(_) | Form::Mem { .. } | Form::Indexed { .. } | Form::Static { .. } => {
                None
            }
        }
    }
}

/// The place of an argument when its probe fires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// The value itself, already truncated to the argument's size and sign-extended: `4@$-1` is 4294967295 and `-4@$-1`
    /// is -1. For an unsigned argument of 8 bytes, these are the value's bits.
    Const(i64),
    /// In a register, in its low bytes.
    Reg(Reg),
    /// In memory at `base + offset`.
    Mem { base: Reg, offset: i64 },
    /// In memory at `base + index * scale + offset`; `scale` is 1, 2, 4 or 8.
    Indexed { base: Option<Reg>, index: Reg, scale: u8, offset: i64 },
    /// In memory at the named symbol's address plus `offset`. In a [`super::Site`], resolved to
    /// [`Form::Static`].
    Symbol { name: String, offset: i64 },
    /// Like `form`, with the named symbol's address added to its number or offset; that address is known in a program
    /// loaded where it was linked. In a [`super::Site`], resolved to that form.
    Absolute { name: String, form: Box<Form> },
    /// In memory at this address of the file (static data). At run time it is at `instruction pointer + (vaddr -
    /// site.vaddr)`, wherever the file was loaded.
    Static { vaddr: u64 },
    /// In a floating-point or vector register, which the kernel does not expose to a probe.
    Float { register: String },
}

/// More arguments than any probe has (SystemTap's macros support up to 12); any further ones in a note are not read.
const ARGS_MAX: usize = 64;

/// Parses the argument forms of one note, with one result per argument. An unsupported one does not affect the others.
pub fn parse_args(arch: Arch, args: &str) -> Vec<Result<ArgForm, FormError>> {
    let args = split(args).into_iter().take(ARGS_MAX);
    args.map(|arg| parse(arch, arg).map_err(|err| FormError::new(arg, err))).collect()
}

/// Splits at white space outside brackets. If a bracket is never closed, an argument ends where the next one appears to
/// start.
fn split(args: &str) -> Vec<&str> {
    let mut found: Vec<&str> = Vec::new();
    let mut start = 0;
    let mut depth = 0i64;
    for word in args.split_whitespace() {
        // A word is a slice of `args`, so the difference of their addresses is its position.
        let at = word.as_ptr() as usize - args.as_ptr() as usize;
        match found.last_mut() {
            Some(open) if depth > 0 && size_prefix(word).is_none() => *open = &args[start..at + word.len()],
            _ => {
                found.push(word);
                (start, depth) = (at, 0);
            }
        }
        for byte in word.bytes() {
            match byte {
                b'(' | b'[' => depth += 1,
                b')' | b']' => depth -= 1,
                _ => {}
            }
        }
    }
    found
}

/// Splits `-4f@` and the operand into (signed, digits, float, operand).
fn size_prefix(text: &str) -> Option<(bool, &str, bool, &str)> {
    let (signed, rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    // Enough for any size, so that a long row of digits is not scanned repeatedly.
    let digits = rest.bytes().take(4).take_while(u8::is_ascii_digit).count();
    let (digits, rest) = rest.split_at(digits);
    let (float, rest) = rest.strip_prefix('f').map_or((false, rest), |rest| (true, rest));
    let operand = rest.strip_prefix('@')?;
    (!digits.is_empty()).then_some((signed, digits, float, operand))
}

/// Longer argument texts are rejected unread; the longest real one seen has 40 bytes, and C++ symbol names may reach a
/// few thousand.
const TEXT_MAX: usize = 4096;

fn parse(arch: Arch, text: &str) -> Result<ArgForm, String> {
    if text.len() > TEXT_MAX {
        return Err(format!("it is {} bytes long", text.len()));
    }
    let (signed, digits, float, operand) = size_prefix(text).unwrap_or((false, "8", false, text));
    let size = match digits {
        "1" => 1,
        "2" => 2,
        "4" => 4,
        "8" => 8,
        other => return Err(format!("its size is {other} bytes; only 1, 2, 4 and 8 are supported")),
    };
    let operand = operand.trim();
    if operand.is_empty() {
        return Err("nothing follows the size".to_owned());
    }
    let form = match arch {
        Arch::X86_64 => x86_64::operand(operand)?,
        Arch::Aarch64 => aarch64::operand(operand)?,
    };
    let (form, size) = match form {
        Form::Const(value) => (Form::Const(cut(value, size, signed)), size),
        Form::Reg(_) if arch == Arch::X86_64 => (form, size.min(Reg::x86_64_bytes(operand))),
        other => (other, size),
    };
    Ok(ArgForm { size, signed, float, form, text: text.to_owned() })
}

/// Returns the low `size` bytes of a value, sign-extended or zero-extended.
pub(super) fn cut(value: i64, size: u8, signed: bool) -> i64 {
    let unused = 64 - u32::from(size) * 8;
    let high = (value as u64) << unused;
    if signed { (high as i64) >> unused } else { (high >> unused) as i64 }
}

impl Form {
    /// Returns the form with `by` added to its number or offset.
    pub(super) fn moved(self, by: u64) -> Form {
        let moved = |offset: i64| offset.wrapping_add_unsigned(by);
        match self {
            Form::Const(value) => Form::Const(moved(value)),
            Form::Mem { base, offset } => Form::Mem { base, offset: moved(offset) },
            Form::Indexed { base, index, scale, offset } => {
                Form::Indexed { base, index, scale, offset: moved(offset) }
            }
            other => other,
        }
    }
}

/// A sum of numbers and at most one symbol: `40`, `-8`, `0x10`, `40+sym`, `sym+40`, `sym-8`.
struct Sum<'a> {
    symbol: Option<&'a str>,
    offset: i64,
}

fn sum(text: &str) -> Result<Sum<'_>, String> {
    let mut symbol = None;
    let mut total = 0i128;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (sign, after) = match rest.strip_prefix('-') {
            Some(after) => (-1, after),
            None => (1, rest.strip_prefix('+').unwrap_or(rest)),
        };
        let end = after.find(['+', '-']).unwrap_or(after.len());
        let term = after[..end].trim();
        rest = &after[end..];
        if let Some(value) = number(term)? {
            total += sign * value;
        } else if sign < 0 || symbol.is_some() {
            return Err(format!("`{text}` is not a number or a symbol with an offset"));
        } else if is_symbol(term) {
            symbol = Some(term);
        } else {
            return Err(format!("`{term}` is neither a number nor a symbol"));
        }
    }
    // An unsigned 64-bit constant retains its bits.
    let offset = i64::try_from(total)
        .or_else(|_| u64::try_from(total).map(|bits| bits as i64))
        .map_err(|_| format!("`{text}` does not fit 64 bits"))?;
    Ok(Sum { symbol, offset })
}

/// Parses a decimal or hexadecimal number; `None` if the text does not begin like one.
fn number(term: &str) -> Result<Option<i128>, String> {
    if !term.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok(None);
    }
    let hex = term.strip_prefix("0x").or_else(|| term.strip_prefix("0X"));
    let parsed = match hex {
        Some(digits) => u64::from_str_radix(digits, 16),
        // To an assembler, a leading zero means octal. No compiler writes that, so it is an error rather than a guess.
        None if term.len() > 1 && term.starts_with('0') => return Err(format!("`{term}` may be octal")),
        None => term.parse::<u64>(),
    };
    parsed.map(|n| Some(i128::from(n))).map_err(|_| format!("`{term}` is not a 64-bit number"))
}

fn is_symbol(term: &str) -> bool {
    let mut chars = term.chars();
    chars.next().is_some_and(|c| c.is_alphabetic() || c == '_' || c == '.')
        && chars.all(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | '$' | '@'))
}

#[cfg(test)]
mod tests;

//! Where in a Go function a call has irrevocably begun, and where its arguments are at that point.
//!
//! A function first compares the stack pointer with the goroutine's limit. If there is too little room, it has the
//! stack moved and starts over, so a probe on its first instruction would count that call twice. The instruction after
//! the check is reached once, with the stack pointer and the argument registers as the caller left them.

use std::collections::HashMap;

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::elf::pclntab::{Function, Pclntab, TableVersion};
use crate::elf::{Convention, Image};

/// Where a probe is hit exactly once per call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::elf) struct Entry {
    pub vaddr: u64,
    pub convention: Convention,
    /// The check's last jump, if its condition is "below or equal": the call has begun when it is not taken.
    pub jump: Option<u64>,
}

/// The maximum length of a stack check in instructions, generously.
const MAX_CHECK: usize = 12;
/// The maximum number of instructions on the way to the call that grows the stack and back: each argument register is
/// stored and reloaded.
const MAX_GROW: usize = 64;
/// How many of a function's first instructions are examined to recognize an ABI wrapper.
const MAX_WRAPPER: usize = 64;
/// The maximum number of a function's bytes that are decoded.
const MAX_CODE: usize = 16 << 20;

/// The stack limits in `runtime.g`: for Go code, and for the runtime's own code on the system stack.
const LIMITS: [u64; 2] = [0x10, 0x18];

/// How the check finds the goroutine, which reveals the calling convention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goroutine {
    InR14,
    InThread,
}

/// Returns the place to probe. `Err` is the reason why there is none, phrased to follow a colon.
pub(in crate::elf) fn entry(
    image: &Image<'_>,
    layout: TableVersion,
    function: &Function<'_>,
) -> Result<Entry, &'static str> {
    let code = code_of(image, function);
    if let Some(Check { after, jump, goroutine }) = check(code, function.entry)? {
        let convention = match goroutine {
            Goroutine::InR14 => Convention::GoRegisters,
            Goroutine::InThread => Convention::GoStack,
        };
        return Ok(Entry { vaddr: after, convention, jump });
    }
    if returns_to_entry(code, function.entry) {
        return Err(
            "its first instruction is also the head of a loop, so each iteration would count as a call",
        );
    }
    let convention = match layout {
        _ if function.is_assembly => Convention::Unknown,
        TableVersion::Go1_2 => Convention::GoStack,
        // Go 1.16 passes arguments on the stack, 1.17 in registers.
        TableVersion::Go1_16 => Convention::Unknown,
        _ if sets_goroutine(code, function.entry) => Convention::GoStack,
        TableVersion::Go1_18 | TableVersion::Go1_20 => Convention::GoRegisters,
    };
    Ok(Entry { vaddr: function.entry, convention, jump: None })
}

fn code_of<'a>(image: &Image<'a>, function: &Function<'_>) -> &'a [u8] {
    let size = usize::try_from(function.end - function.entry).unwrap_or(usize::MAX).min(MAX_CODE);
    image.code_at(function.entry, size).unwrap_or_default()
}

/// Returns those of several functions of one name that only call another of them by a different calling convention.
/// (Instances of a generic function share a name too and may call each other, but by the same convention.)
pub(in crate::elf) fn wrappers(image: &Image<'_>, table: &Pclntab<'_>, alike: &[u64]) -> Vec<u64> {
    let found = |at: u64| table.covering(at).filter(|function| function.entry == at);
    let known: HashMap<u64, (Function<'_>, Convention)> = alike
        .iter()
        .filter_map(|&at| found(at))
        .filter_map(|function| {
            Some((function.entry, (function, entry(image, table.layout, &function).ok()?.convention)))
        })
        .collect();
    let is_wrapper = |(function, convention): &(Function<'_>, Convention)| {
        let code = Decoder::with_ip(64, code_of(image, function), function.entry, DecoderOptions::NONE);
        code.into_iter().take(MAX_WRAPPER).any(|instruction| {
            let goes =
                matches!(instruction.flow_control(), FlowControl::Call | FlowControl::UnconditionalBranch);
            let other = known.get(&instruction.near_branch_target()).filter(|_| goes);
            other.is_some_and(|(_, other)| other != convention)
        })
    };
    known.values().filter(|one| is_wrapper(one)).map(|(function, _)| function.entry).collect()
}

/// A stack check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Check {
    after: u64,
    jump: Option<u64>,
    goroutine: Goroutine,
}

/// Finds the stack check; `None` for a function without one.
fn check(code: &[u8], entry: u64) -> Result<Option<Check>, &'static str> {
    let mut decoder = Decoder::with_ip(64, code, entry, DecoderOptions::NONE);
    let (mut in_thread, mut compared, mut after) = (false, None, None);
    for _ in 0..MAX_CHECK {
        let instruction = decoder.decode();
        if instruction.flow_control() == FlowControl::ConditionalBranch {
            if !grows_stack(code, entry, instruction.near_branch_target()) {
                break;
            }
            let jump = (instruction.mnemonic() == Mnemonic::Jbe).then_some(instruction.ip());
            after = Some((instruction.next_ip(), jump));
            continue;
        }
        if !is_of_check(&instruction) {
            break;
        }
        in_thread |= instruction.segment_prefix() == Register::FS;
        if reads_limit(&instruction) {
            let goroutine = if instruction.memory_base() == Register::R14 {
                Goroutine::InR14
            } else {
                Goroutine::InThread
            };
            compared = compared.or((goroutine == Goroutine::InR14 || in_thread).then_some(goroutine));
        }
    }
    match (compared, after) {
        (Some(goroutine), Some((after, jump))) => Ok(Some(Check { after, jump, goroutine })),
        (Some(_), None) => {
            Err("its stack check has an unknown form, and a growing stack would count it twice")
        }
        (None, _) => Ok(None),
    }
}

/// Returns whether an instruction can be part of a stack check: it modifies neither memory, an argument, nor the stack
/// pointer.
fn is_of_check(instruction: &Instruction) -> bool {
    use Mnemonic::{Cmp, Lea, Mov, Sub};
    match instruction.mnemonic() {
        Cmp => true,
        Mov | Lea | Sub => {
            let to = instruction.op0_register();
            instruction.op0_kind() == OpKind::Register && to != Register::RSP && to != Register::R14
        }
        _ => false,
    }
}

/// Returns whether the instruction compares with a goroutine's stack limit, or loads it.
fn reads_limit(instruction: &Instruction) -> bool {
    let reads = (0..instruction.op_count()).any(|op| instruction.op_kind(op) == OpKind::Memory);
    reads && LIMITS.contains(&instruction.memory_displacement64())
}

/// Returns whether the code at `at` is a call followed by a jump back to the function's entry.
fn grows_stack(code: &[u8], entry: u64, at: u64) -> bool {
    let Some(code) = at.checked_sub(entry).and_then(|into| code.get(usize::try_from(into).ok()?..)) else {
        return false;
    };
    let mut called = false;
    for instruction in Decoder::with_ip(64, code, at, DecoderOptions::NONE).into_iter().take(MAX_GROW) {
        match instruction.flow_control() {
            FlowControl::Next => {}
            FlowControl::Call => called = true,
            FlowControl::UnconditionalBranch => return called && instruction.near_branch_target() == entry,
            _ => return false,
        }
        if instruction.code() == Code::INVALID {
            return false;
        }
    }
    false
}

/// Returns whether a function without a stack check jumps to its own entry.
fn returns_to_entry(code: &[u8], entry: u64) -> bool {
    Decoder::with_ip(64, code, entry, DecoderOptions::NONE).into_iter().any(|instruction| {
        let jumps = matches!(
            instruction.flow_control(),
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
        );
        jumps && instruction.near_branch_target() == entry
    })
}

/// Returns whether the function loads the goroutine into R14 before it calls anything. Only functions with arguments on
/// the stack do so, because their callers have not.
fn sets_goroutine(code: &[u8], entry: u64) -> bool {
    let instructions = Decoder::with_ip(64, code, entry, DecoderOptions::NONE).into_iter().take(MAX_WRAPPER);
    instructions
        .take_while(|instruction| {
            !matches!(instruction.flow_control(), FlowControl::Call | FlowControl::Return)
        })
        .any(|instruction| {
            instruction.mnemonic() == Mnemonic::Mov && instruction.op0_register() == Register::R14
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: u64 = 0x1000;

    fn found(code: &[&[u8]]) -> Result<Option<Check>, &'static str> {
        check(&code.concat(), ENTRY)
    }

    /// Checks code that ends with a two-byte jump before `after`.
    fn ends(after: u64, goroutine: Goroutine) -> Result<Option<Check>, &'static str> {
        Ok(Some(Check { after: ENTRY + after, jump: Some(ENTRY + after - 2), goroutine }))
    }

    const CALL: &[u8] = &[0xe8, 0, 0, 0, 0];

    #[test]
    fn small_frame_stack_check() {
        // cmp 0x10(%r14),%rsp; jbe L; push %rbp; ret; L: mov %rax,8(%rsp); call; jmp ENTRY
        let head: &[u8] = &[0x49, 0x3b, 0x66, 0x10, 0x76, 0x02, 0x55, 0xc3];
        let grow: &[u8] = &[0x48, 0x89, 0x44, 0x24, 0x08];
        let back = |at: u8| [0xeb, 0u8.wrapping_sub(at + 2)];
        assert_eq!(found(&[head, grow, CALL, &back(18)]), ends(6, Goroutine::InR14));
        // Without the call, or with a jump to another place, it is something else, and not safe to skip.
        assert!(found(&[head, grow, &back(13)]).is_err());
        assert!(found(&[head, grow, CALL, &back(17)]).is_err());
        assert!(found(&[&head[..6]]).is_err());
    }

    #[test]
    fn large_frame_stack_checks() {
        // lea -0x7a0(%rsp),%r12; cmp 0x10(%r14),%r12; jbe L; ret; L: call; jmp ENTRY
        let lea: &[u8] = &[0x4c, 0x8d, 0xa4, 0x24, 0x60, 0xf8, 0xff, 0xff];
        let cmp: &[u8] = &[0x4d, 0x3b, 0x66, 0x10];
        let code = [lea, cmp, &[0x76, 0x01, 0xc3], CALL, &[0xeb, 0xea]];
        assert_eq!(found(&code), ends(14, Goroutine::InR14));
        // mov %rsp,%r12; sub $0x10000,%r12; jb L; cmp 0x10(%r14),%r12; jbe L; ret; L: call; jmp ENTRY
        let sub: &[u8] = &[0x49, 0x89, 0xe4, 0x49, 0x81, 0xec, 0, 0, 1, 0, 0x72, 0x07];
        let code = [sub, cmp, &[0x76, 0x01, 0xc3], CALL, &[0xeb, 0xe6]];
        assert_eq!(found(&code), ends(18, Goroutine::InR14));
    }

    #[test]
    fn goroutine_in_thread_local_storage() {
        // mov %fs:-8,%rcx; cmp 0x10(%rcx),%rsp; jbe L; ret; L: call; jmp ENTRY
        let load: &[u8] = &[0x64, 0x48, 0x8b, 0x0c, 0x25, 0xf8, 0xff, 0xff, 0xff];
        let code = [load, &[0x48, 0x3b, 0x61, 0x10], &[0x76, 0x01, 0xc3], CALL, &[0xeb, 0xe9]];
        assert_eq!(found(&code), ends(15, Goroutine::InThread));
    }

    #[test]
    fn functions_without_stack_check() {
        // mov %rcx,0x18(%rsp); lea (%rbx,%rax),%rcx; ret
        assert_eq!(found(&[&[0x48, 0x89, 0x4c, 0x24, 0x18, 0x48, 0x8d, 0x0c, 0x03, 0xc3]]), Ok(None));
        // cmp 0x10(%rax),%rbx; jbe L; ret; L: ...: a field of a structure.
        assert_eq!(found(&[&[0x48, 0x3b, 0x58, 0x10, 0x76, 0x01, 0xc3, 0xc3]]), Ok(None));
        assert_eq!(found(&[]), Ok(None));
        // mov %fs:-8,%r14; ret, and the same after a call
        let set: &[u8] = &[0x64, 0x4c, 0x8b, 0x34, 0x25, 0xf8, 0xff, 0xff, 0xff, 0xc3];
        assert!(sets_goroutine(set, ENTRY));
        assert!(!sets_goroutine(&[CALL, set].concat(), ENTRY));
        // L: mov (%rax),%ecx; test %ecx,%ecx; je L; ret, and with the jump to the second instruction
        assert!(returns_to_entry(&[0x8b, 0x08, 0x85, 0xc9, 0x74, 0xfa, 0xc3], ENTRY));
        assert!(!returns_to_entry(&[0x8b, 0x08, 0x85, 0xc9, 0x74, 0xfc, 0xc3], ENTRY));
    }
}

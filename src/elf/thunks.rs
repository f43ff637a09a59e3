//! Code that jumps to the address in a register on behalf of its caller: compilers generate it for an indirect jump to
//! prevent the processor from speculating on its target (`-mindirect-branch=thunk`, `-mretpoline`).

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::body::register;
use super::{Image, Reg};

/// Bytes of a thunk at most.
const MAX_LENGTH: u64 = 64;

/// Returns the register to whose address the code there jumps; `None` if it is other code.
///
/// The code is either `call 1f`, a trap for the processor's speculation, and `1: mov %REG,(%rsp); ret`; or `lfence; jmp
/// *%REG`.
pub(super) fn jumps_by(image: &Image<'_>, vaddr: u64) -> Option<Reg> {
    let mut code = from(image, vaddr)?;
    let first = code.next()?;
    if first.mnemonic() == Mnemonic::Lfence {
        let jump = code.next().filter(|now| now.flow_control() == FlowControl::IndirectBranch)?;
        return (jump.op0_kind() == OpKind::Register).then(|| register(jump.op0_register())).flatten();
    }
    let target = first.near_branch_target();
    if first.flow_control() != FlowControl::Call || !(first.next_ip()..vaddr + MAX_LENGTH).contains(&target) {
        return None;
    }
    let mut code = from(image, target)?.filter(|now| now.mnemonic() != Mnemonic::Lfence);
    let (store, ret) = (code.next()?, code.next()?);
    let replaces_return_address = store.mnemonic() == Mnemonic::Mov
        && store.op0_kind() == OpKind::Memory
        && store.memory_base() == Register::RSP
        && store.memory_index() == Register::None
        && store.memory_displacement64() == 0
        && store.op1_kind() == OpKind::Register
        && ret.mnemonic() == Mnemonic::Ret;
    replaces_return_address.then(|| register(store.op1_register())).flatten()
}

fn from<'a>(image: &Image<'a>, vaddr: u64) -> Option<impl Iterator<Item = Instruction> + use<'a>> {
    let code = image.code_at(vaddr, MAX_LENGTH as usize)?;
    Some(Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE).into_iter())
}

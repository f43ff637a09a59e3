//! Where a Go function is left.
//!
//! `.gopclntab` says where each function ends, no part of a function is placed elsewhere, and the compiler keeps its
//! jump tables out of the code. A wrapper may end in a jump to the method that it wraps, which then returns in its
//! place.

use std::collections::BTreeMap;

use super::entry;
use crate::elf::body::{Body, Jump, JumpCondition};
use crate::elf::exit::{Exit, ExitKind, Exits};
use crate::elf::pclntab::{Function, Pclntab};
use crate::elf::{Convention, Form, Image};

/// Tail calls that are followed one after another.
const MAX_TAIL_CALLS: usize = 8;
/// The maximum number of exits of one function.
const MAX_EXITS: usize = 512;

/// Finds the exits of a function. `Err` is the reason why they are not known, phrased to follow a colon.
pub(in crate::elf) fn exits(
    image: &Image<'_>,
    table: &Pclntab<'_>,
    function: &Function<'_>,
) -> Result<Exits, String> {
    let mut bodies = vec![body(image, table, function)?];
    let mut exits = BTreeMap::new();
    let mut next = 0;
    while let Some(current) = bodies.get(next) {
        let shared = next > 0;
        let mut exit = |vaddr, kind| {
            exits.insert(vaddr, Exit { vaddr, kind, shared, when: None, approaches: Vec::new() })
        };
        current.returns.iter().for_each(|&at| drop(exit(at, ExitKind::Return)));
        let mut followed = Vec::new();
        for Jump { at, target, when } in current.jumps.iter().copied() {
            let is_known = |body: &Body| body.range.start == target;
            if current.range.contains(&target) || bodies.iter().chain(&followed).any(is_known) {
                continue;
            }
            let callee = table.covering(target).filter(|callee| callee.entry == target);
            match callee.and_then(|callee| body(image, table, &callee).ok()) {
                _ if when != JumpCondition::Always => {
                    return Err(format!("a conditional jump leads out of it at {at:#x}"));
                }
                Some(body) if bodies.len() + followed.len() <= MAX_TAIL_CALLS => followed.push(body),
                _ => drop(exit(at, ExitKind::TailCall)),
            }
        }
        bodies.append(&mut followed);
        next += 1;
    }
    match exits.len() {
        0 => Err("it never returns".to_string()),
        1..=MAX_EXITS => Ok(Exits {
            followed: bodies[1..].iter().map(|body| body.range.start).collect(),
            exits: exits.into_values().collect(),
            passages: Vec::new(),
            entered_from: None,
            has_handler: false,
        }),
        many => Err(format!("it has {many} exits; the limit is {MAX_EXITS}")),
    }
}

/// Decodes a function that finds its goroutine in R14, as its callers and callees then do too.
fn body(image: &Image<'_>, table: &Pclntab<'_>, function: &Function<'_>) -> Result<Body, String> {
    if entry(image, table.layout, function)?.convention != Convention::GoRegisters {
        return Err(
            "it is assembly, or built by Go before 1.17: its goroutine is not in a register".to_string()
        );
    }
    let body = Body::decode(image, function.entry..function.end)?;
    if let Some(jump) = body.indirect.iter().find(|jump| !matches!(jump.target, Form::Indexed { .. })) {
        return Err(format!("the target of its indirect jump at {:#x} is unknown", jump.at));
    }
    Ok(body)
}

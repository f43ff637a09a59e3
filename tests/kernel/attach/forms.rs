//! Checks the table of instructions that cannot be probed against the running kernel: each form is in a file that a
//! process maps.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use exporter::elf::FunctionSite;
use exporter::elf::probeable::{Verdict, verdict};
use exporter::targets::ProbeState;

use crate::support::program::directory;
use crate::support::tracer::Tracer;

/// Returns every opcode of the one-byte and the 0f map, with prefixes, and every opcode of the three VEX maps and of
/// EVEX; all with register operands, followed by bytes that serve as an immediate.
fn forms() -> Vec<Vec<u8>> {
    let mut forms = Vec::new();
    // A breakpoint instruction in the program cannot be told from one that the kernel has set.
    let mut add = |head: &[u8]| {
        if head[0] != 0xcc {
            forms.push([head, &[0xca], &[0x90; 8]].concat());
        }
    };
    for opcode in 0..=255u8 {
        for prefix in [&[][..], &[0x48], &[0x49], &[0x66], &[0xf0], &[0x2e], &[0x3e], &[0x64], &[0x66, 0x2e]]
        {
            add(&[prefix, &[opcode]].concat());
            add(&[prefix, &[0x0f, opcode]].concat());
        }
        for prefix in [0xf2, 0xf3] {
            add(&[prefix, opcode]);
            add(&[prefix, 0x0f, opcode]);
        }
        add(&[0x0f, 0x38, opcode]);
        add(&[0x66, 0x0f, 0x3a, opcode]);
        for map in 1..=3 {
            for kind in 0..4 {
                // Without and with a second source.
                for source in [0x78, 0x68] {
                    add(&[0xc4, 0xe0 | map, source | kind, opcode]);
                }
                add(&[0x62, 0xf0 | map, 0x7c | kind, 0x48, opcode]);
            }
        }
    }
    forms
}

/// Compiles a program in which each form begins a function, and which sleeps when run.
fn program(directory: &Path, forms: &[Vec<u8>]) -> std::path::PathBuf {
    let mut text = ".text\n.globl main\nmain: mov $100, %edi\nsub $8, %rsp\ncall sleep@plt\n".to_string();
    for (n, form) in forms.iter().enumerate() {
        let bytes: Vec<String> = form.iter().map(u8::to_string).collect();
        text += &format!(
            ".p2align 4\n.globl form_{n:05}_\n.type form_{n:05}_, @function\nform_{n:05}_: .byte {}\nret\n.size form_{n:05}_, \
             . - form_{n:05}_\n",
            bytes.join(",")
        );
    }
    text += ".section .note.GNU-stack,\"\",@progbits\n";
    let (source, binary) = (directory.join("forms.s"), directory.join("forms"));
    std::fs::write(&source, text).unwrap();
    assert!(Command::new("cc").arg("-o").args([&binary, &source]).status().unwrap().success());
    binary
}

/// Returns for each offset whether the kernel sets a breakpoint there.
fn taken_by_the_kernel(binary: &Path, offsets: &[u64]) -> Vec<bool> {
    use exporter::config::{Environment, Overrides, load_bytes};
    use exporter::kernel::{Kernel, PidNamespace, choose};
    let yaml = format!(
        "node_name: t\ntargets:\n- name: t\n  binary: {}\n  probes:\n  - function: main\n",
        binary.display()
    );
    let loaded = load_bytes("t.yaml", yaml.into(), &Overrides::default(), &Environment::new()).unwrap();
    let plan = exporter::plan::plan(loaded.config, false).unwrap();
    let layout = exporter::layout::Layout::new(&plan);
    let kernel = Kernel::load(&plan, &layout, choose(plan.settings.attach), PidNamespace::default()).unwrap();
    kernel.arms(binary, offsets).unwrap()
}

/// Returns the offsets of the forms, by number.
fn offsets(binary: &Path, count: usize) -> Vec<u64> {
    let bytes = std::fs::read(binary).unwrap();
    let image = exporter::elf::Image::parse(&bytes).unwrap();
    let found = exporter::elf::function_sites(&image, "form_*").unwrap();
    // If no probe can be set at the entry, the site may be after it.
    let entry = |f: &FunctionSite| f.site.offset - (f.site.vaddr - f.entry);
    let by_name: BTreeMap<&str, u64> = found.iter().map(|f| (f.name.as_str(), entry(f))).collect();
    assert_eq!(by_name.len(), count);
    by_name.into_values().collect()
}

#[test]
fn instruction_table_agrees_with_the_kernel() {
    let forms = forms();
    let directory = directory();
    let binary = program(directory.path(), &forms);
    let offsets = offsets(&binary, forms.len());
    let taken = taken_by_the_kernel(&binary, &offsets);
    let mut wrong = Vec::new();
    let mut counts = [0; 2];
    for (form, taken) in forms.iter().zip(taken) {
        let verdict = verdict(&[form.as_slice(), &[0xc3]].concat());
        counts[usize::from(taken)] += 1;
        let agree = match verdict {
            // The processor has forms that the table does not decode, or refuses out of caution.
            Verdict::Refused(reason)
                if reason.contains("decoded") || reason.contains("kernels misinterpret") =>
            {
                true
            }
            Verdict::Refused(_) => !taken,
            _ => taken,
        };
        if !agree {
            wrong.push(format!("{form:02x?}: the kernel says {taken}, the table {verdict:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), forms.len(), wrong.join("\n"));
    assert!(counts.iter().all(|count| *count > 500), "refused and taken: {counts:?}");
}

/// The kernel would accept these probes and mishandle the instructions: with probes requested on all of them, each
/// program must still compute the same. Where the next instruction serves as well, the probe is there; elsewhere there
/// is none.
#[test]
fn probes_preserve_instruction_behavior() {
    let source = r#"
#include <stdio.h>
#define F(name, before, instruction, after) \
	__asm__(".globl run_" #name "\nrun_" #name ":\n" before "\n.globl at_" #name "\n.type at_" #name ", @function\n" \
		"at_" #name ":\n" instruction "\n" after "\nret\n.size at_" #name ", . - at_" #name "\n"); \
	unsigned long run_##name(void);
F(xchg, "mov $5, %eax\nmov $6, %r8d", "xchg %r8, %rax", "")
F(pushf, "", "pushf", "popf\nmov $1, %eax")
F(popf, "pushf", "popf", "mov $2, %eax")
F(compare, "vpxor %xmm0, %xmm0, %xmm0", "vpcmpeqb %xmm0, %xmm0, %xmm1", "vmovd %xmm1, %eax")
F(or, "mov $3, %eax\nvmovd %eax, %xmm0\nvpxor %xmm1, %xmm1, %xmm1", "vpor %xmm0, %xmm1, %xmm1", "vmovd %xmm1, %eax")
F(fused, "vpxor %xmm0, %xmm0, %xmm0", "vfnmadd132ss %xmm0, %xmm0, %xmm0", "mov $4, %eax")
F(add, "mov $7, %eax\nvmovd %eax, %xmm0", "vpaddd %xmm0, %xmm0, %xmm1", "vmovd %xmm1, %eax")
F(loop, "mov $3, %ecx\nxor %eax, %eax\n1: inc %eax", "loop 1b", "")
F(lea, "", "lea at_lea(%rip), %rax", "lea at_lea(%rip), %rcx\nsub %rcx, %rax")
F(push, "mov $9, %ecx", "push %rcx", "pop %rax")
F(call, "xor %eax, %eax\nlea run_push(%rip), %rdx\nsub $8, %rsp", "call *%rdx", "add $8, %rsp")
F(system, "mov $39, %eax", "syscall", "shr $40, %rax")
F(repeat, "xor %eax, %eax\nmov $3, %ecx\nlea -64(%rsp), %rdi", "rep stosb", "mov %ecx, %eax")
int main(void)
{
	printf("%lx %lx %lx %lx %lx %lx %lx %lx %lx %lx %lx %lx %lx\n", run_xchg(), run_pushf(), run_popf(), run_compare(), run_or(),
	       run_fused(), run_add(), run_loop(), run_lea(), run_push(), run_call(), run_system(), run_repeat());
	return 0;
}
"#;
    let directory = directory();
    let (file, binary) = (directory.path().join("same.c"), directory.path().join("same"));
    std::fs::write(&file, source).unwrap();
    assert!(Command::new("cc").args(["-O1", "-o"]).args([&binary, &file]).status().unwrap().success());
    let run = || Command::new(&binary).output().unwrap();
    let plain = run();
    assert!(plain.status.success(), "{plain:?}");
    for attach in ["auto", "perf"] {
        let tracer = Tracer::start(&format!(
            "node_name: t\nattach: {attach}\ntargets:\n- name: t\n  binary: {}\n  probes:\n  - function: \"at_*\"\n    \
             metrics: [{{ counter: hits_total, labels: {{ f: function }} }}]\n",
            binary.display()
        ));
        let (state, sites) = tracer.state(0);
        assert!(matches!(state, ProbeState::Partly(_)), "{state:?}");
        let traced = run();
        assert_eq!((traced.status, &traced.stdout), (plain.status, &plain.stdout), "{attach}: {traced:?}");
        let hit = tracer.render().keys().filter(|series| series.starts_with("hits_total{")).count();
        assert_eq!((sites, hit), (10, 10), "each that is probed is hit: {:#?}", tracer.render());
    }
}

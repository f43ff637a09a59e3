begin plain
	test %edi, %edi
	je 1f
	mov $1, %eax
plain_r1: ret
1:	mov $2, %eax
plain_r2: ret
end plain

begin forms
	test %edi, %edi
	je 1f
	js 2f
forms_r1: repz ret
1:
forms_r2: bnd ret
2:
forms_r3: ret $16
end forms

# Only the unwinder comes to what stands behind the call.
begin pad
	.cfi_personality 0x1b, local_callee
	.cfi_lsda 0x1b, end_table
	push %rbx
	.cfi_def_cfa_offset 16
	call plain
	ud2
	pop %rbx
	.cfi_def_cfa_offset 8
pad_r1: ret
end pad

begin moved
	push %rbx
	.cfi_def_cfa_offset 16
	test %edi, %edi
	jne moved.cold
1:	pop %rbx
	.cfi_def_cfa_offset 8
moved_r1: ret
	.cfi_endproc
	.size moved, . - moved
	.section .text.unlikely, "ax"
	.type moved.cold, @function
moved.cold:
	.cfi_startproc
	.cfi_def_cfa_offset 16
	cmp $2, %edi
	je 2f
	jmp 1b
2:	pop %rbx
	.cfi_def_cfa_offset 8
moved_r2: ret
	.cfi_endproc
	.size moved.cold, . - moved.cold

# The same with no name, as in a stripped file, and before anything is on the stack.
begin nameless
	test %edi, %edi
	jne 3f
1:
nameless_r1: ret
	.cfi_endproc
	.size nameless, . - nameless
	.section .text.unlikely, "ax"
3:
	.cfi_startproc
	cmp $2, %edi
	jne 1b
nameless_r2: ret
	.cfi_endproc

begin tail
	inc %edi
	jmp callee
end tail
begin callee
	test %edi, %edi
	je 1f
callee_r1:
tail_r1:
	ret
1:
callee_r2:
tail_r2:
	ret
end callee

# No probe can be set at the first instruction of what it goes on in.
begin tail_locked
	inc %edi
	jmp locked
end tail_locked
begin locked
	lock decl (%rsi)
locked_entry: test %edi, %edi
	je 1f
locked_r1:
tail_locked_r1:
	ret
1:
locked_r2:
tail_locked_r2:
	ret
end locked
begin tail_looping
tail_looping_t1: jmp looping
end tail_looping
begin looping
	lock decl (%rsi)
1:	dec %edi
	jne 1b
looping_r1: ret
end looping

begin tail_stub
	test %edi, %edi
	je 1f
tail_stub_t1: jmp puts@PLT
1:
tail_stub_r1: ret
end tail_stub

begin maybe_stub
	test %edi, %edi
maybe_stub_t1: je puts@PLT
maybe_stub_r1: ret
end maybe_stub

# Its first instruction is a loop's head.
begin loops
	decl (%rdi)
back_to_loops: jg loops
loops_r1: ret
end loops

# A call of itself anew, by way of another function.
begin even
	dec %edi
	jns odd
even_r1: ret
end even
begin odd
	dec %edi
even_t1: jns even
even_r2: ret
end odd

# What nothing leads to is not known to be code.
begin data_behind
	jmp 1f
	.long 0xc3c3c3c3
1:
data_behind_r1: ret
	.long 0xc3c3c3c3
end data_behind

begin virtual
	mov (%rdi), %rax
virtual_d1: jmp *16(%rax)
end virtual

begin pointer
	push %rbx
	.cfi_def_cfa_offset 16
	mov %rdi, %rbx
	call plain
	mov %rbx, %rax
	pop %rbx
	.cfi_def_cfa_offset 8
	test %eax, %eax
	je 1f
pointer_d1: jmp *%rax
1:
pointer_r1: ret
end pointer

begin through_table
	cmp $1, %edi
	ja 3f
	lea table(%rip), %rdx
	mov %edi, %edi
	movslq (%rdx,%rdi,4), %rax
	add %rdx, %rax
	jmp *%rax
1:	mov $1, %eax
through_table_r1: ret
2:	mov $2, %eax
through_table_r2: ret
3:
through_table_r3: ret
	.section .rodata
table:	.long 1b - table
	.long 2b - table
end_table:
	.text
end through_table

# A part that only its table leads to, with a name and without.
begin cold_case
	push %rbx
	.cfi_def_cfa_offset 16
	cmp $2, %edi
	ja 3f
	lea cold_table(%rip), %rdx
	mov %edi, %edi
	movslq (%rdx,%rdi,4), %rax
	add %rdx, %rax
	jmp *%rax
1:	pop %rbx
	.cfi_def_cfa_offset 8
cold_case_r1: ret
	.cfi_def_cfa_offset 16
3:	pop %rbx
	.cfi_def_cfa_offset 8
cold_case_r2: ret
	.cfi_endproc
	.size cold_case, . - cold_case
	.section .text.unlikely, "ax"
	.type cold_case.cold, @function
cold_case.cold:
	.cfi_startproc
	.cfi_def_cfa_offset 16
	nop
2:	pop %rbx
	.cfi_def_cfa_offset 8
cold_case_r3: ret
	.cfi_endproc
	.size cold_case.cold, . - cold_case.cold
	.section .rodata
cold_table: .long 1b - cold_table
	.long 2b - cold_table
	.long 1b - cold_table
	.long 0
	.text

# Basic blocks in places of their own, to which a table leads, and no symbol.
begin scattered
	cmp $1, %edi
	ja 3f
	lea scattered_table(%rip), %rdx
	mov %edi, %edi
	movslq (%rdx,%rdi,4), %rax
	add %rdx, %rax
	jmp *%rax
3:
scattered_r1: ret
	.cfi_endproc
	.size scattered, . - scattered
	.section .text.blocks, "ax"
	.cfi_startproc
1:	mov $1, %eax
scattered_r2: ret
	.cfi_endproc
	.cfi_startproc
2:	mov $2, %eax
scattered_r3: ret
	.cfi_endproc
	.section .rodata
scattered_table: .long 1b - scattered_table
	.long 2b - scattered_table
	.long 0
	.text

# Such blocks by name, without a type, of a function that another ends in.
begin tail_scattered
	inc %edi
	jmp named_blocks
end tail_scattered
begin named_blocks
	push %rbx
	.cfi_def_cfa_offset 16
	jmp *(%rdi)
	.cfi_endproc
	.size named_blocks, . - named_blocks
	.section .text.blocks, "ax"
named_blocks.__part.1:
	.cfi_startproc
	.cfi_def_cfa_offset 16
	pop %rbx
	.cfi_def_cfa_offset 8
named_blocks_r1:
tail_scattered_r1:
	ret
	.cfi_endproc
	.text

# A return that loads its address first, as a guard against the injection of loaded values.
begin fenced
	pop %rbx
	.cfi_def_cfa_offset 0
	push %rbx
	.cfi_def_cfa_offset 8
fenced_r1: pop %rcx
	lfence
	jmp *%rcx
end fenced

# What has a frame when it jumps does not leave.
begin framed
	push %rbx
	.cfi_def_cfa_offset 16
	jmp *%rdi
	nop
1:	pop %rbx
	.cfi_def_cfa_offset 8
framed_r1: ret
end framed

# A compiler that describes no epilogue: the table does not tell.
begin undescribed
	push %rbx
	.cfi_def_cfa_offset 16
	test %edi, %edi
	je 1f
	pop %rbx
undescribed_d1: jmp *%rax
1:	pop %rbx
undescribed_r1: ret
end undescribed

# A subroutine of its own returns here too.
begin inner
	call 1f
inner_r1: ret
1:	inc %eax
inner_r2: ret
end inner

begin runs_on
	test %edi, %edi
	je 1f
runs_on_r1: ret
1:	inc %eax
	.cfi_endproc
	.size runs_on, . - runs_on
	.globl after
	.type after, @function
after:
	.cfi_startproc
after_r1:
runs_on_r2:
	ret
end after

# The same over the fill between them.
begin runs_far
	test %edi, %edi
	je 1f
runs_far_r1: ret
1:	inc %eax
	.cfi_endproc
	.size runs_far, . - runs_far
	.p2align 6
	.globl behind
	.type behind, @function
behind:
	.cfi_startproc
behind_r1:
runs_far_r2:
	ret
end behind

# Refused, and why.
begin data_inside
	mov 1f(%rip), %eax
	ret
	.byte 0xb8
1:	.long 0x90c3c3c3
	ret
end data_inside
begin data_aligned
	mov 1f(%rip), %eax
	ret
1:	.long 0x90c3c3c3
	ret
end data_aligned
begin maybe_callee
	dec %rcx
	loop local_callee
	ret
end maybe_callee
	.type local_callee, @function
local_callee:
	.cfi_startproc
	ret
	.cfi_endproc
	.size local_callee, . - local_callee
begin not_code
	jmp 1f
	.byte 0xea, 0xea
1:	ret
end not_code
begin pops_target
	push %rdi
	.cfi_def_cfa_offset 16
	pop %rcx
	jmp *%rcx
end pops_target
begin unseen
	test %edi, %edi
	je 9f
	push %rbx
	.cfi_def_cfa_offset 16
	jmp *(%rdi)
	.cfi_endproc
	.size unseen, . - unseen
	.cfi_startproc
9:	ret
	.cfi_endproc
begin into_instruction
	test %edi, %edi
	je 1f + 1
1:	mov $0xc3c3c3c3, %eax
	ret
end into_instruction
begin retpoline
	call 2f
1:	pause
	jmp 1b
2:	mov %rax, (%rsp)
	ret
end retpoline
# By way of a thunk it jumps to the address in a register.
begin by_thunk
	mov (%rdi), %rcx
by_thunk_d1: jmp thunk
end by_thunk
begin by_fence
	mov (%rdi), %rcx
by_fence_d1: jmp fence
end by_fence
thunk:
	.cfi_startproc
	call 2f
1:	pause
	lfence
	jmp 1b
2:	mov %rcx, (%rsp)
	ret
	.cfi_endproc
fence:
	.cfi_startproc
	lfence
	jmp *%rcx
	.cfi_endproc
begin over_lock
	test %edi, %edi
	je 1f + 1
1:	lock incl (%rsi)
over_lock_r1: ret
end over_lock
# Without an unwind table, which would tell.
	.globl keeps_stack
	.type keeps_stack, @function
keeps_stack:
	push %r12
	mov %rsp, %r12
	and $-64, %rsp
	call plain
	mov %r12, %rsp
	pop %r12
keeps_stack_r1: ret
	.size keeps_stack, . - keeps_stack
	.globl loses_stack
	.type loses_stack, @function
loses_stack:
	push %r12
	mov %rsp, %r12
	mov (%rdi), %r12
	mov %r12, %rsp
	pop %r12
	ret
	.size loses_stack, . - loses_stack
begin pushes
	push %rax
	.cfi_def_cfa_offset 16
	ret
end pushes
begin other_stack
	mov (%rsi), %rsp
	ret
end other_stack
begin hardened
	mov %rsp, %rcx
	sar $63, %rcx
	shl $47, %rcx
	or %rcx, %rsp
hardened_r1:
	ret
end hardened
begin masked
	shl $47, %rcx
	mov (%rdi), %rcx
	or %rcx, %rsp
	ret
end masked
begin exchanged
	xchg %rsp, (%rsi)
	ret
end exchanged
begin no_way_out
	call abort@PLT
end no_way_out
begin not_called
	.cfi_def_cfa_offset 24
	ret
end not_called
	.globl endless
	.type endless, @function
endless:
	ret
	.section .note.GNU-stack, "", @progbits

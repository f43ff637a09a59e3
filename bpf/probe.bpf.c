// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The handler of all probes. No code here is specific to a probe: the attach cookie names a site, and the tables of
 * abi.h say what to read there and what to do with it.
 */
#include "kernel.bpf.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "maps.bpf.h"
#include "filter.bpf.h"
#include "family.bpf.h"
#include "values.bpf.h"
#include "spans.bpf.h"
#include "aggregate.bpf.h"
#include "emit.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Makes the types of abi.h part of this object's type information, from which the Rust side is generated. */
struct abi {
	enum abi_limit limit;
	enum abi_none none;
	enum location_op location_op;
	enum site_flag site_flag;
	enum call_stage call_stage;
	enum goroutine_key goroutine_key;
	enum value_kind value_kind;
	enum probe_flag probe_flag;
	enum event_class event_class;
	enum accounting_slot accounting_slot;
	enum slow_slot slow_slot;
	enum floor_slot floor_slot;
	enum action_kind action_kind;
	enum condition_op condition_op;
	enum label_flag label_flag;
	enum label_id label_id;
	enum filter_kind filter_kind;
	enum filter_flag filter_flag;
	enum abi_id abi_id;
	enum wake wake;
	enum process_text_kind process_text_kind;
	enum process_number process_number;
	struct location location;
	struct stretch stretch;
	struct site site;
	struct value value;
	struct probe probe;
	struct condition condition;
	struct label label;
	struct action action;
	struct pattern pattern;
	struct bounds bounds;
	struct interner interner;
	struct word_key word_key;
	struct integer_key integer_key;
	struct small_integers small_integers;
	struct short_key short_key;
	struct entry entry;
	struct filter filter;
	struct glob glob;
	struct member_key member_key;
	struct line_key line_key;
	struct line line;
	struct child_key child_key;
	struct start_key start_key;
	struct start start;
	struct thread_key thread_key;
	struct nesting nesting;
	struct text_key text_key;
	struct start_text start_text;
	struct process_key process_key;
	struct process_numbers process_numbers;
	struct process_text process_text;
	struct control control;
	struct event event;
};
const volatile struct abi abi = {};

static __always_inline void stray(void)
{
	__u32 zero = 0;
	struct control *shared = bpf_map_lookup_elem(&control, &zero);

	if (shared)
		__sync_fetch_and_add(&shared->stray, 1);
}

static __always_inline void last_hit(__u32 accounting)
{
	__u32 slot = accounting + ACCT_LAST_HIT;
	__u64 *number = bpf_map_lookup_elem(&slots, &slot);

	if (number)
		*(volatile __u64 *)number = bpf_jiffies64();
}

#define X86_EFLAGS_CF (1 << 0)
#define X86_EFLAGS_PF (1 << 2)
#define X86_EFLAGS_ZF (1 << 6)
#define X86_EFLAGS_SF (1 << 7)
#define X86_EFLAGS_OF (1 << 11)

/* Whether the processor's condition holds, encoded as in a conditional jump: the lowest bit inverts it. */
static __noinline bool holds(__u64 flags, __u32 condition)
{
	bool less = !(flags & X86_EFLAGS_SF) != !(flags & X86_EFLAGS_OF), is = false;

	switch (condition >> 1 & 7) {
	case 0:
		is = flags & X86_EFLAGS_OF;
		break;
	case 1:
		is = flags & X86_EFLAGS_CF;
		break;
	case 2:
		is = flags & X86_EFLAGS_ZF;
		break;
	case 3:
		is = flags & (X86_EFLAGS_CF | X86_EFLAGS_ZF);
		break;
	case 4:
		is = flags & X86_EFLAGS_SF;
		break;
	case 5:
		is = flags & X86_EFLAGS_PF;
		break;
	case 6:
		is = less;
		break;
	case 7:
		is = less || flags & X86_EFLAGS_ZF;
		break;
	}
	return is != (condition & 1);
}

/* Linux 6.13 and later. */
extern __u64 *bpf_session_cookie(void) __ksym __weak;
extern bool bpf_session_is_return(void) __ksym __weak;

/* Whether an indirect jump stays in its function. */
static __noinline bool stays(struct pt_regs *ctx, const struct site *site)
{
	bool fault = false;
	__u64 target = value_at(&site->target, ctx, 0, NULL, &fault);

	if (fault)
		return true;
#pragma clang loop unroll(full)
	for (__u32 i = 0; i < MAX_STRETCHES; i++)
		if (target - ctx->ip - site->inside[i].from < site->inside[i].bytes)
			return true;
	return false;
}

/*
 * Handles a hit that needs more than counting; separate, so that a hit that is only counted does not clear this
 * function's stack.
 */
static __always_inline int handle_values(struct pt_regs *ctx, const struct site *site, struct probe *probe,
					 __u32 shard, const bool session)
{
	struct hit hit = { .shard = shard };
	__u32 accounting = shard + probe->accounting;
	bool keeps_time = false, fault = false;
	struct call call;
	__u64 entered = 0;
	int lost = 0;

	add(accounting + ACCT_HITS, 1);
	if (session && probe->flags & PROBE_SESSION) {
		__u64 *kept = bpf_session_cookie();

		if (probe->flags & PROBE_START)
			*kept = bpf_ktime_get_ns();
		else
			entered = *kept;
		keeps_time = true;
		/* A forked process also returns from functions that its parent has entered. */
		if (entered && entered < bpf_get_current_task_btf()->group_leader->start_time)
			lost = ACCT_FILTERED;
	}
	call = call_of(site, ctx, &fault);
	call.entered = entered;
	if (!lost)
		lost = fault ? ACCT_LOST_FAULT : read_values(&hit, probe, site, ctx, &call);
	if (lost)
		goto end;
	if (hit.faults & ((1U << LARGE_VALUE) - 1))
		add(accounting + ACCT_READ_FAULTS, 1);
	if (HAS(probe, PROBE_START) && !keeps_time)
		lost = begin(&hit, probe, call.frame, call.function);
	if (lost == ACCT_FILTERED)
		goto end;
	if (probe->nactions) {
		int loss = aggregate(&hit, probe);

		if (!lost)
			lost = loss;
	}
	if (HAS(probe, PROBE_EMIT | PROBE_SLOW))
		lost = deliver(&hit, probe, site->probe, lost);
	if (HAS(probe, PROBE_TEXTS) && probe->flags & PROBE_END)
		bpf_map_delete_elem(&start_texts, &hit.text);
end:
	add(accounting + (lost ? lost : ACCT_AGGREGATED), 1);
	/* Filtered hits complete when they begin. */
	if (lost == ACCT_FILTERED)
		add(accounting + ACCT_HITS, -1);
	return 0;
}

/* The cookie of a probe that only sets a breakpoint: its hits belong to no site. */
#define NO_SITE ((__u32)-1)

/*
 * Handles a hit. In a session uprobe, which is hit at a function's entry and again at its return, the cookie names
 * the entry's site, which names the return's.
 */
static __always_inline int handle(struct pt_regs *ctx, const bool session)
{
	__u32 cookie = bpf_get_attach_cookie(ctx), accounting;
	struct site *site = bpf_map_lookup_elem(&sites, &cookie);
	struct probe *probe;
	__u32 shard;

	if (session && site && bpf_session_is_return())
		site = bpf_map_lookup_elem(&sites, &site->on_return);
	if (!site) {
		if (cookie != NO_SITE)
			stray();
		return 0;
	}
	probe = bpf_map_lookup_elem(&probes, &site->probe);
	if (!probe) {
		stray();
		return 0;
	}
	shard = shard_base();
	accounting = shard + probe->accounting;
	if (site->flags & SITE_STEPPED)
		add(accounting + ACCT_STEPPED, 1);
	if ((site->flags & SITE_JUMP && stays(ctx, site)) ||
	    (site->condition && !holds(ctx->flags, site->condition - 1))) {
		add(accounting + ACCT_PASSED, 1);
		return 0;
	}
	if (site->flags & SITE_LOOP_HEAD) {
		if (!begins_call(site, ctx)) {
			add(accounting + ACCT_PASSED, 1);
			return 0;
		}
	} else if (site->flags & SITE_PASSAGE) {
		add(accounting + ACCT_PASSED, 1);
		pass(site, probe, ctx, accounting);
		return 0;
	}
	last_hit(accounting);
	if ((probe->flags & PROBE_FILTER && !is_meant_or_read(probe->filter)) ||
	    (site->flags & SITE_CANDIDATE && is_meant(candidate_filters + probe->filter) <= 0)) {
		add(accounting + ACCT_FILTERED, 1);
		return 0;
	}
	if (probe->flags & PROBE_COUNT_ONLY) {
		add(accounting + ACCT_AGGREGATED, 1);
		return 0;
	}
	return handle_values(ctx, site, probe, shard, session);
}

SEC("uprobe.multi.s")
int probe_multi(struct pt_regs *ctx)
{
	return handle(ctx, false);
}

SEC("uprobe.s")
int probe_perf(struct pt_regs *ctx)
{
	return handle(ctx, false);
}

SEC("uprobe.session.s")
int probe_session(struct pt_regs *ctx)
{
	return handle(ctx, true);
}

SEC("raw_tp/sched_process_fork")
int family_forked(__u64 *ctx)
{
	return note_child((void *)ctx[1]);
}

SEC("raw_tp/sched_process_exit")
int family_ended(__u64 *ctx)
{
	return forget_child((void *)ctx[0]);
}

/* Run by the exporter, not attached: reads jiffies and the time that they correspond to. */
SEC("syscall")
int clock(void *ctx)
{
	__u32 zero = 0;
	struct control *shared = bpf_map_lookup_elem(&control, &zero);

	if (!shared)
		return 1;
	shared->jiffies = bpf_jiffies64();
	shared->now = bpf_ktime_get_ns();
	return 0;
}

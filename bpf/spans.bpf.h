/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What a function's return needs from its call, and a span's end from its start.
 *
 * A call is identified by the address of its return address: while it lasts, no other call has that place on a stack,
 * even with recursion, coroutines and threads. A call that was left without its return, by an exception or longjmp,
 * is detected when that place is reused.
 */
#ifndef SPANS_BPF_H
#define SPANS_BPF_H

#include "values.bpf.h"

/* A call of a function: which one, and where its return address is. */
struct call {
	__u64 function;
	__u64 frame;
	__u64 entered; /* the entry time kept by a session uprobe, or 0 */
};

/* The upper end of a goroutine's stack, in Go's runtime.g. */
#define G_STACK_HIGH 8

/*
 * Returns the call that is entered or left here; on a goroutine's stack, it is identified by the goroutine and by the
 * distance from the stack's end.
 */
static __always_inline struct call call_of(const struct site *site, const struct pt_regs *ctx, bool *fault)
{
	struct call call = { .function = site->function, .frame = ctx->sp + site->frame_offset };
	__u64 high = 0, goroutine = ctx->r14;

	if (site->flags & SITE_GOROUTINE) {
		if (read_user(&high, sizeof(high), (const void *)(goroutine + G_STACK_HIGH)))
			*fault = true;
		call.frame -= high;
		goroutine &= (1ULL << GOROUTINE_FUNCTION) - 1;
		call.function = 1ULL << GOROUTINE_MARK | call.function << GOROUTINE_FUNCTION | goroutine;
	}
	return call;
}

/*
 * Returns the key of the start that belongs to this hit: that of the call at this place of the stack (value is the
 * function that was called), the thread's, or that of value 0.
 */
static __always_inline struct start_key start_key(const struct probe *probe, __u64 frame, __u64 value)
{
	__u64 tgid_tid = key_ids();
	struct start_key key = { .span = probe->span, .tgid = tgid_tid >> 32 };

	if (probe->flags & PROBE_BY_FRAME) {
		key.frame = frame;
		key.key = value;
	} else
		key.key = probe->flags & PROBE_BY_THREAD ? (__u32)tgid_tid : value;
	return key;
}

static __always_inline struct nesting *nesting(const struct start_key *key)
{
	struct thread_key thread = { .span = key->span, .tid = key->key };

	return bpf_map_lookup_elem(&nestings, &thread);
}

/*
 * Finds the place of a thread's new start among its open ones. Which of them were left without their end cannot be
 * determined: a lock that is taken while another is held looks like a loop that starts over after an error. In both
 * cases an end belongs to the latest start, so all are kept; abandoned ones sink to the bottom, where the oldest one
 * is forgotten when there is no room for more.
 */
static __always_inline bool nest(const struct hit *hit, const struct probe *probe, struct start_key *key)
{
	struct nesting *open = nesting(key);

	if (!open) {
		struct thread_key thread = { .span = key->span, .tid = key->key };
		struct nesting none = {};

		bpf_map_update_elem(&nestings, &thread, &none, BPF_NOEXIST);
		open = bpf_map_lookup_elem(&nestings, &thread);
		if (!open)
			return false;
	}
	if (open->depth - open->oldest >= MAX_NESTED) {
		open->oldest++;
		add(hit->shard + probe->accounting + ACCT_FORGOTTEN, 1);
	}
	key->frame = open->depth++ % MAX_NESTED;
	return true;
}

/*
 * Keeps the texts among the carried values of a start that is already in its map: the verifier does not track the
 * contents of a map, and the lengths of eight texts have many possible sums. Returns false if there is no room.
 */
static __always_inline bool keep_texts(const struct hit *hit, const struct probe *probe, __u32 first,
				       struct start *start)
{
	struct text_key key = { .time = start->time, .tid = start->tid };
	volatile __u16 *faults = &start->faults;
	struct start_text *kept;
	volatile __u64 *used;
	__u32 zero = 0;

	kept = bpf_map_lookup_elem(&no_text, &zero);
	if (!kept || bpf_map_update_elem(&start_texts, &key, kept, BPF_ANY))
		return false;
	kept = bpf_map_lookup_elem(&start_texts, &key);
	if (!kept)
		return false;
	used = &kept->used;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < MAX_CARRIED; i++) {
		__u32 value = first + i;
		__u64 at = *used;
		long len;

		if (i >= probe->ncarried || !BOUNDED(value, MAX_VALUES))
			break;
		if (probe->values[value].kind == VALUE_INT)
			continue;
		CLAMP(at, CARRIED_TEXTS - MAX_BYTES);
		len = read_text(hit, probe, value, kept->bytes + at, MAX_BYTES, MAX_BYTES);
		if (len < 0 || len > MAX_BYTES) {
			*faults |= 1U << i;
			continue;
		}
		start->carried[i] = at << 32 | (__u32)len;
		*used = at + len;
	}
	return true;
}

static __always_inline void drop_text(const struct start *start)
{
	struct text_key key = { .time = start->time, .tid = start->tid };

	bpf_map_delete_elem(&start_texts, &key);
}

/*
 * Keeps the time and the first values for the return or the end of the span. Returns 0, or the accounting slot that says why
 * not.
 */
__noinline int begin(struct hit *hit, struct probe *probe, __u64 frame, __u64 function)
{
	struct start start = {}, *kept;
	struct start_key key;
	__u32 first;

	if (!hit || !probe)
		return 0;
	first = probe->flags & (PROBE_BY_THREAD | PROBE_BY_FRAME) ? 0 : 1;
	if (first && hit->faults & 1)
		return ACCT_LOST_FAULT;
	key = start_key(probe, frame, probe->flags & PROBE_BY_FRAME ? function : hit->values[0]);
	if (HAS(probe, PROBE_BY_THREAD) && !nest(hit, probe, &key))
		return ACCT_LOST_STARTS_FULL;
	start.time = bpf_ktime_get_ns();
	start.tid = key_ids();
	start.execs = bpf_get_current_task_btf()->self_exec_id;
	start.faults = (hit->faults >> first & ((1U << MAX_CARRIED) - 1)) |
		       (hit->faults >> (LARGE_VALUE + first) << MAX_CARRIED);
#pragma clang loop unroll(full)
	for (__u32 i = 0; i < MAX_CARRIED; i++)
		start.carried[i] = hit->values[first + i];
	if (!bpf_map_update_elem(&starts, &key, &start, BPF_NOEXIST)) {
		if (!HAS(probe, PROBE_TEXTS))
			return 0;
		kept = bpf_map_lookup_elem(&starts, &key);
		if (!kept)
			return ACCT_LOST_STARTS_FULL;
	} else {
		kept = bpf_map_lookup_elem(&starts, &key);
		if (!kept)
			return ACCT_LOST_STARTS_FULL;
		if (kept->stage == CALL_LOOPS_BACK) {
			kept->stage = CALL_ENTERED;
			return ACCT_FILTERED;
		}
		if (HAS(probe, PROBE_TEXTS))
			drop_text(kept);
		*kept = start;
		/* For a thread, this has been counted already. */
		if (!(probe->flags & PROBE_BY_THREAD))
			add(hit->shard + probe->accounting + ACCT_FORGOTTEN, 1);
	}
	if (HAS(probe, PROBE_TEXTS) && !keep_texts(hit, probe, first, kept)) {
		bpf_map_delete_elem(&starts, &key);
		return ACCT_LOST_STARTS_FULL;
	}
	return 0;
}

/*
 * Handles a call at a place on the way to its exit. At the entry of a function in which calls end, a start whose call
 * did not jump there itself belongs to an abandoned call: another one has its place on the stack.
 */
static __noinline void pass(const struct site *site, const struct probe *probe, const struct pt_regs *ctx,
			    __u32 accounting)
{
	bool fault = false;
	struct call call = call_of(site, ctx, &fault);
	struct start_key key = start_key(probe, call.frame, call.function);
	struct start *start = bpf_map_lookup_elem(&starts, &key);

	if (!start)
		return;
	if (!(site->flags & SITE_CALLEE_ENTRY)) {
		start->stage = site->flags & SITE_LOOP_BACK ? CALL_LOOPS_BACK : CALL_JUMPS_ON;
	} else if (start->stage == CALL_JUMPS_ON) {
		start->stage = CALL_IN_CALLEE;
	} else {
		if (HAS(probe, PROBE_TEXTS))
			drop_text(start);
		bpf_map_delete_elem(&starts, &key);
		add(accounting + ACCT_FORGOTTEN, 1);
	}
}

/*
 * Whether a call begins here, at the entry of a function that begins with a loop, rather than another iteration: an
 * iteration follows the call's own jump, which is hit first.
 */
static __noinline bool begins_call(const struct site *site, const struct pt_regs *ctx)
{
	struct start_key key = {
		.span = site->probe,
		.tgid = key_ids() >> 32,
		.key = site->function,
		.frame = ctx->sp + site->frame_offset,
	};
	__u8 turns_back = 1;

	if (!(site->flags & SITE_LOOP_BACK))
		return bpf_map_delete_elem(&turns, &key);
	bpf_map_update_elem(&turns, &key, &turns_back, BPF_ANY);
	return false;
}

/* Finds the start that ends here; NULL if there is none. */
static __always_inline struct start *started(const struct probe *probe, struct start_key *key)
{
	if (HAS(probe, PROBE_BY_THREAD)) {
		struct nesting *open = nesting(key);

		if (!open || open->depth == open->oldest)
			return NULL;
		key->frame = --open->depth % MAX_NESTED;
	}
	return bpf_map_lookup_elem(&starts, key);
}

/*
 * Whether the start belongs to an earlier process or thread that had the same id and ended without this end, or to
 * the program that the process executed before.
 */
static __always_inline bool is_of_earlier(const struct start *begun, const struct probe *probe)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return begun->execs != (__u8)task->self_exec_id ||
	       begun->time < (probe->flags & PROBE_BY_THREAD ? task->start_time : task->group_leader->start_time);
}

/* Whether a return without a start belongs to a call entered by a process that has since forked this one. */
static __always_inline bool is_inherited(const struct site *site, const struct probe *probe)
{
	struct task_struct *process = bpf_get_current_task_btf()->group_leader;

	/* Calls that a forked process has entered itself have a start, if the entries were probed by then. */
	return probe->flags & PROBE_BY_FRAME && process->flags & PF_FORKNOEXEC && site->since &&
	       site->since < process->start_time;
}

/*
 * Reads all values of the hit; at the end of a span, its start is looked up first and removed afterwards. Text is not
 * copied: its value is the address. Returns 0, or the accounting slot that says why the hit is lost. Separate because
 * of its stack: what follows is three calls deep, and all of them share 512 bytes.
 */
static __noinline int read_values(struct hit *hit, const struct probe *probe, const struct site *site,
				  const struct pt_regs *ctx, const struct call *call)
{
	__u64 entered = call->entered;
	bool ends = HAS(probe, PROBE_END) && !entered;
	struct start *begun = NULL;
	struct start_key key = {};

	if (ends) {
		bool fault = false;
		__u64 value = call->function;

		if (!(probe->flags & (PROBE_BY_THREAD | PROBE_BY_FRAME)))
			value = value_at(&site->values[0], ctx, 0, NULL, &fault);
		if (fault)
			return ACCT_LOST_FAULT;
		key = start_key(probe, call->frame, value);
		begun = started(probe, &key);
		if (!begun)
			return site->flags & SITE_SHARED || is_inherited(site, probe) ? ACCT_FILTERED
										      : ACCT_LOST_NO_START;
		if (is_of_earlier(begun, probe)) {
			if (HAS(probe, PROBE_TEXTS))
				drop_text(begun);
			bpf_map_delete_elem(&starts, &key);
			add(hit->shard + probe->accounting + ACCT_FORGOTTEN, 1);
			return ACCT_LOST_NO_START;
		}
		entered = begun->time;
		hit->text.time = entered;
		hit->text.tid = begun->tid;
	}
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < MAX_VALUES; i++) {
		bool fault = false;

		if (i >= probe->nvalues)
			break;
		hit->values[i] = value_at(&site->values[i], ctx, entered, begun, &fault);
		if (fault)
			hit->faults |= 1U << i;
		else if ((__s64)hit->values[i] < 0 && is_large(&site->values[i], begun))
			hit->faults |= 1U << (LARGE_VALUE + i);
	}
	if (ends)
		bpf_map_delete_elem(&starts, &key);
	return 0;
}

#endif

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Writes whole hits to the ring buffer. */
#ifndef EMIT_BPF_H
#define EMIT_BPF_H

#include "values.bpf.h"

/*
 * One wake-up per event would cost the traced program ten times as much as the probe itself. The drain thread
 * requests in control.wake what it waits for, and the first event that satisfies the request clears it.
 */
static __always_inline __u64 wake_up(void)
{
	__u32 zero = 0;
	struct control *shared = bpf_map_lookup_elem(&control, &zero);
	__u32 wake;

	if (!shared)
		return BPF_RB_NO_WAKEUP;
	wake = *(volatile __u32 *)&shared->wake;
	if (wake == WAKE_NEVER)
		return BPF_RB_NO_WAKEUP;
	if (wake == WAKE_FULL && bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA) < shared->wake_bytes)
		return BPF_RB_NO_WAKEUP;
	*(volatile __u32 *)&shared->wake = WAKE_NEVER;
	return BPF_RB_FORCE_WAKEUP;
}

/*
 * Copies the values after the header, and the text after the values. Each text may be longest bytes long: the
 * verifier does not relate the room used to the room left, so a text is added only where the longest would fit.
 */
static __always_inline void fill(struct event *event, struct hit *hit, struct probe *probe, __u32 nvalues,
				 __u32 text_room, __u32 longest)
{
	__u64 *values = (__u64 *)(event + 1);
	char *text = (char *)(values + nvalues);
	__u32 n = probe->nvalues;
	/*
	 * Kept in the event, where the verifier does not track their values: the lengths of 12 texts have many
	 * possible sums.
	 */
	volatile __u32 *faults = &event->faults;
	volatile __u16 *text_bytes = &event->text_bytes;

	*faults = hit->faults;
	*text_bytes = 0;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < MAX_VALUES; i++) {
		if (i >= n || i >= nvalues)
			break;
		values[i] = hit->values[i];
		if (probe->values[i].kind != VALUE_INT) {
			__u64 used = *text_bytes;
			__u32 room = probe->values[i].max;
			long len = -1;

			if (probe->values[i].kind == VALUE_TIME) {
				values[i] = bpf_ktime_get_ns();
				continue;
			}
			if (room > longest)
				room = longest;
			if (longest && used <= text_room - longest) {
				CLAMP(used, text_room - longest);
				if (HAS(probe, PROBE_STACK) && probe->values[i].kind == VALUE_STACK)
					len = bpf_get_task_stack(bpf_get_current_task_btf(), text + used, longest,
								 BPF_F_USER_STACK);
				else
					len = read_text(hit, probe, i, text + used, room, longest);
			}
			if (len < 0 || len > longest) {
				*faults |= 1U << i;
				note_fault(hit, probe, i);
				values[i] = 0;
				continue;
			}
			values[i] = used << 32 | (__u32)len;
			*text_bytes = used + len;
		}
	}
}

#define EMIT(class_, nvalues_, text_, longest_)                                               \
	__noinline int emit_##class_(struct hit *hit, struct probe *probe, __u32 number)      \
	{                                                                                     \
		struct event *event;                                                          \
                                                                                              \
		if (!hit || !probe)                                                           \
			return ACCT_LOST_RING;                                                \
		event = bpf_ringbuf_reserve(&ring, sizeof(*event) + 8 * nvalues_ + text_, 0); \
		if (!event)                                                                   \
			return ACCT_LOST_RING;                                                \
		event->probe = number;                                                        \
		event->event_class = class_;                                                  \
		fill(event, hit, probe, nvalues_, text_, longest_);                           \
		bpf_ringbuf_submit(event, wake_up());                                         \
		return 0;                                                                     \
	}

EMIT(EVENT_6, 6, 0, 0)
EMIT(EVENT_12, 12, 0, 0)
EMIT(EVENT_SHORT_TEXTS, 12, SHORT_TEXTS, SHORT_TEXT)
EMIT(EVENT_LONG_TEXTS, 12, LONG_TEXTS, MAX_BYTES)

/* Returns 0, or the accounting slot that says why the event is lost. */
static __always_inline int emit(struct hit *hit, struct probe *probe, __u32 number)
{
	__u32 used = used_events;

	if (used & 1 << EVENT_6 && probe->event_class == EVENT_6)
		return emit_EVENT_6(hit, probe, number);
	if (used & 1 << EVENT_12 && probe->event_class == EVENT_12)
		return emit_EVENT_12(hit, probe, number);
	if (used & 1 << EVENT_SHORT_TEXTS && probe->event_class == EVENT_SHORT_TEXTS)
		return emit_EVENT_SHORT_TEXTS(hit, probe, number);
	if (used & 1 << EVENT_LONG_TEXTS)
		return emit_EVENT_LONG_TEXTS(hit, probe, number);
	return ACCT_LOST_RING;
}

/*
 * Writes the hit to the ring buffer if all of the probe's hits go there, or if it is slow. Slow ones leave half of
 * the room to the events from which metrics are computed. Returns the hit's outcome, which so far is `lost`.
 */
static __always_inline int deliver(struct hit *hit, struct probe *probe, __u32 number, int lost)
{
	bool is_slow = hit->faults >> SLOW_HIT & 1, all = probe->flags & PROBE_EMIT;
	int loss = 0;

	if (!all && !is_slow)
		return lost;
	if (!all)
		loss = bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA) >
		       bpf_ringbuf_query(&ring, BPF_RB_RING_SIZE) / 2;
	if (!loss)
		loss = emit(hit, probe, number);
	if (loss && is_slow)
		add(hit->shard + probe->slow + SLOW_LOST, 1);
	if (!all || lost)
		return lost;
	return loss ? loss : ACCT_DELIVERED;
}

#endif

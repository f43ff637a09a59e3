// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* What the exporter is measured against: the floor, and what one would write by hand for one probe. */
#include "kernel.bpf.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} events SEC(".maps");

/* As large as the exporter's own event with four values. */
struct event {
	__u64 time;
	__u64 pid;
	__u64 values[6];
};

SEC("uprobe.multi")
int empty(struct pt_regs *ctx)
{
	return 0;
}

SEC("uprobe.multi.s")
int empty_sleepable(struct pt_regs *ctx)
{
	return 0;
}

SEC("uprobe.multi")
int count(struct pt_regs *ctx)
{
	__u32 zero = 0;
	__u64 *n = bpf_map_lookup_elem(&counts, &zero);

	if (n)
		*n += 1;
	return 0;
}

/* At a function's entry and its return. */
SEC("uprobe.session")
int empty_session(struct pt_regs *ctx)
{
	return 0;
}

extern int bpf_copy_from_user_str(void *dst, __u32 dst__sz, const void *unsafe_ptr__ign, __u64 flags) __ksym;

/* Reads a string; a page that is not resident cannot be read. */
SEC("uprobe.multi")
int string(struct pt_regs *ctx)
{
	char text[32];

	if (bpf_probe_read_user_str(text, sizeof(text), (const void *)ctx->di) < 0)
		count(ctx);
	return 0;
}

/* The same with the way out that every string of the exporter has: to sleep until the page is there. */
SEC("uprobe.multi.s")
int string_or_sleep(struct pt_regs *ctx)
{
	char text[32];

	if (bpf_probe_read_user_str(text, sizeof(text), (const void *)ctx->di) < 0 &&
	    bpf_copy_from_user_str(text, sizeof(text), (const void *)ctx->di, 0) < 0)
		count(ctx);
	return 0;
}

/* One wake-up per event: the ring buffer's default, as most exporters leave it. */
SEC("uprobe.multi")
int naive(struct pt_regs *ctx)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event) {
		count(ctx);
		return 0;
	}
	event->time = bpf_ktime_get_ns();
	event->pid = bpf_get_current_pid_tgid() >> 32;
	event->values[0] = ctx->di;
	event->values[1] = ctx->si;
	event->values[2] = ctx->dx;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

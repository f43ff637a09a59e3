/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Cgroups, containers and pods that a filter selects. */
#ifndef CGROUP_BPF_H
#define CGROUP_BPF_H

#include <bpf/bpf_core_read.h>
#include "task.bpf.h"
#include "glob.bpf.h"

/* The last six bytes of the names of systemd's cgroups, as a word. */
#define DOT_SCOPE 0x65706f63732eULL
#define DOT_SLICE 0x6563696c732eULL

static __always_inline long without(const char *name, long end, __u64 suffix)
{
	__u64 last = 0;

	if (end <= 6 || bpf_probe_read_kernel(&last, 6, name + end - 6) || last != suffix)
		return end;
	return end - 6;
}

static __always_inline bool is_colon(const char *at)
{
	char c = 0;

	return !bpf_probe_read_kernel(&c, 1, at) && c == ':';
}

/* kubepods-podUID.slice:cri-containerd:ID, or :crio:, without the container. */
static __always_inline long without_container(const char *name, long end)
{
	if (end <= 80 || !is_colon(name + end - 65))
		return end;
	return is_colon(name + end - 80) ? end - 80 : is_colon(name + end - 70) ? end - 70 : end;
}

/* What a cgroup is looked up by: first the relevant part of its name, then the key of its container or pod. */
union group {
	__u64 name[12];
	struct member_key key;
};

/* Whether the cgroup belongs to a selected container: docker-ID.scope, ID, and the like. */
static __always_inline bool is_container(const struct filter *filter, const char *name, long end,
					 union group *group)
{
	char before[8] = {};

	end = without(name, end, DOT_SCOPE);
	if (end < 64 || bpf_probe_read_kernel(group->key.id, 64, name + end - 64))
		return false;
	if (end > 64) {
		bpf_probe_read_kernel(before, 1, name + end - 65);
		if (before[0] != '-' && before[0] != ':')
			return false;
	}
	if (end > 71) {
		bpf_probe_read_kernel(before, 7, name + end - 71);
		/* The engine's monitoring process is not in the container. */
		if (before[0] == 'c' && before[1] == 'o' && before[2] == 'n' && before[3] == 'm' &&
		    before[4] == 'o' && before[5] == 'n')
			return false;
	}
	if (bpf_map_lookup_elem(&members, &group->key))
		return true;
	for (__u32 i = 0; i < 8; i++) {
		if ((group->key.id[i] ^ filter->name[i]) & filter->name[8 + i])
			return false;
	}
	return filter->length > 0;
}

/* Whether the cgroup belongs to a selected pod: podUID or kubepods-podUID.slice. */
static __always_inline bool is_pod(const char *name, long end, __u64 length, union group *group)
{
	char *uid = (char *)group->key.id, before[4] = { '-' };

	if (end < (long)length + 3)
		return false;
	__builtin_memset(group->key.id, 0, sizeof(group->key.id));
	if (end == (long)length + 3)
		bpf_probe_read_kernel(before + 1, 3, name);
	else
		bpf_probe_read_kernel(before, 4, name + end - length - 4);
	if (before[0] != '-' || before[1] != 'p' || before[2] != 'o' || before[3] != 'd' ||
	    bpf_probe_read_kernel(uid, length, name + end - length))
		return false;
	if (length == 36)
		uid[8] = uid[13] = uid[18] = uid[23] = '-';
	return bpf_map_lookup_elem(&members, &group->key);
}

/*
 * Whether the filter selects the cgroup at this address: here by its name, in has_member() by its container or pod.
 * Not static, so that they are verified once and not for every level, and separate, so that their stacks do not add
 * up.
 */
__noinline int fits_cgroup(__u64 address, __u32 number)
{
	const struct filter *filter = bpf_map_lookup_elem(&filters, &number);
	__u64 name = (__u64)BPF_CORE_READ((const struct cgroup *)address, kn, name);
	char first = 0;

	if (!filter || bpf_probe_read_kernel(&first, 1, (const void *)name))
		return 0;
	/* systemd's prefix for names that the kernel reserves. */
	if (first == '_')
		name++;
	return used_globs && fits_glob(name, MAX_NAME, filter->glob, false) > 0;
}

__noinline int has_member(__u64 address, __u32 number)
{
	const struct filter *filter = bpf_map_lookup_elem(&filters, &number);
	const char *name = BPF_CORE_READ((const struct cgroup *)address, kn, name);
	union group group;
	long end = bpf_probe_read_kernel_str(group.name, sizeof(group.name), name) - 1;

	if (!filter || end <= 0)
		return 0;
	/* The name of a pod and of a container, joined. */
	if (end == (long)sizeof(group.name) - 1) {
		long more = bpf_probe_read_kernel_str(group.name, sizeof(group.name), name + end) - 1;

		if (more > 0)
			end += more;
	}
	group.key.filter = number;
	group.key.pad = 0;
	/* A container without an id from its engine is identified by the whole name. */
	if (end < (long)sizeof(group.key.id)) {
		__builtin_memset(group.key.id, 0, sizeof(group.key.id));
		bpf_probe_read_kernel_str(group.key.id, sizeof(group.key.id), name);
		if (bpf_map_lookup_elem(&members, &group.key))
			return 1;
	}
	if (is_container(filter, name, end, &group))
		return 1;
	end = without(name, without_container(name, end), DOT_SLICE);
	return is_pod(name, end, 36, &group) || is_pod(name, end, 32, &group);
}

/* Whether the process is in a selected cgroup or in a descendant of one. */
static __always_inline bool is_in_cgroup(const struct filter *filter, __u32 number)
{
	struct cgroup_key key = { .cgroup = bpf_get_current_cgroup_id(),
				  .filter = number,
				  .edition = filter->edition };
	__u32 *known = bpf_map_lookup_elem(&cgroups, &key), is_in = 0;
	struct task_struct *task = (void *)bpf_get_current_task();
	struct cgroup *cgroup;
	__u32 level;

	if (known)
		return *known;
	cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp);
	level = BPF_CORE_READ(cgroup, level);
	for (__u32 i = 0; i < MAX_CGROUP_LEVELS && i < level && !is_in; i++) {
		/* From the process's cgroup upwards. */
		__u64 at = (__u64)cgroup + __builtin_preserve_field_info(cgroup->ancestors, 0) +
			   8 * (__u64)(level - i);
		struct cgroup *ancestor = NULL;

		bpf_probe_read_kernel(&ancestor, sizeof(ancestor), (void *)at);
		is_in = filter->kind == FILTER_CGROUP ? fits_cgroup((__u64)ancestor, number)
						      : has_member((__u64)ancestor, number);
	}
	bpf_map_update_elem(&cgroups, &key, &is_in, BPF_ANY);
	return is_in;
}

#endif

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The part of abi.h about filters: which processes a target selects. */
#ifndef ABI_FILTERS_H
#define ABI_FILTERS_H

/* Which processes a target selects. */
enum filter_kind {
	FILTER_NONE,
	FILTER_PROCESS, /* the process tgid that started at this time */
	FILTER_NAME, /* whose leader or executable (base name) is called name */
	FILTER_NAME_GLOB, /* likewise, but the name matches a glob */
	FILTER_CMDLINE, /* whose command line matches a glob */
	FILTER_CGROUP, /* in a cgroup whose name matches a glob */
	FILTER_MEMBERS, /* in a container or pod whose id is a member, or a container whose id begins with name */
};

enum filter_flag {
	FILTER_CHILDREN = 1 << 0, /* in a target's first filter: also selects descendants of selected processes */
};

struct filter {
	__u32 kind; /* enum filter_kind */
	__u32 tgid;
	__u64 began; /* nanoseconds since boot; 0: unset, until the first process with this tgid is seen */
	__u32 length; /* bytes of the name */
	__u32 edition; /* changes with the other fields, to invalidate cached results */
	__u32 next; /* number of the filter that must match, too; 0 if there is none */
	__u32 glob;
	__u32 flags; /* enum filter_flag */
	__u32 pad;
	__u64 name[FILTER_WORDS]; /* zero-padded; a container's words are followed by their mask */
};

/*
 * A glob as an automaton with a set of states, as bits. A byte leads from state n to n + 1 if bit n + 1 is set in the
 * byte's row.
 */
struct glob {
	__u64 any[2]; /* states that stay active on any byte */
	__u64 within[2]; /* states that stay active on the continuation bytes of a character */
	__u32 end; /* the final state: the text matches if its last byte leads there */
	__u32 pad;
	__u64 to[256][2];
};

/* A container or pod that a filter selects. */
struct member_key {
	__u32 filter;
	__u32 pad;
	__u64 id[8]; /* zeros after its end */
};

/* A process, as a key in the cache of a command-line filter. */
struct line_key {
	__u64 began;
	__u32 tgid;
	__u32 filter;
};

struct line {
	__u64 execs;
	__u64 begin[4]; /* of the command line, which a process can overwrite */
	__u32 fits;
	__u32 pad;
};

/* A process started by one that the filter selects. */
struct child_key {
	__u32 tgid; /* as in the exporter's /proc */
	__u32 filter;
};

/* The key of a cached result for a cgroup. */
struct cgroup_key {
	__u64 cgroup;
	__u32 filter;
	__u32 edition;
};

#endif

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The part of abi.h about filters: which processes a target means. */
#ifndef ABI_FILTERS_H
#define ABI_FILTERS_H

/* Which processes a target means. */
enum filter_kind {
	FILTER_NONE,
	FILTER_PROCESS, /* the one with number tgid that began at this time */
	FILTER_NAME, /* whose leader, or executable's base name, is called name */
	FILTER_NAME_GLOB, /* likewise, but the name fits a glob */
	FILTER_CMDLINE, /* whose command line fits a glob */
	FILTER_CGROUP, /* in a control group whose name fits a glob */
	FILTER_MEMBERS, /* in that of a container or pod whose id is a member, or of a container whose id begins with name */
};

enum filter_flag {
	FILTER_CHILDREN =
		1 << 0, /* in a target's first filter: who was started by those that are meant is meant, too */
};

struct filter {
	__u32 kind; /* enum filter_kind */
	__u32 tgid;
	__u64 began; /* nanoseconds since boot; 0 until the first process with the number is seen, which is then it */
	__u32 length; /* bytes of the name */
	__u32 edition; /* another one when the rest is changed, so that nothing remembered is used */
	__u32 next; /* number of the filter that must hold, too; 0 if there is none */
	__u32 glob;
	__u32 flags; /* enum filter_flag */
	__u32 pad;
	__u64 name[FILTER_WORDS]; /* zeros after its end; for a container, the mask of its words follows them */
};

/*
 * A glob as an automaton: a set of states, as bits. A byte leads from state n to n + 1 if bit n + 1 is set in its row.
 */
struct glob {
	__u64 any[2]; /* states in which any byte stays */
	__u64 within[2]; /* states in which the further bytes of a character stay */
	__u32 end; /* the last state: the text fits if it is reached with the text's last byte */
	__u32 pad;
	__u64 to[256][2];
};

/* A container or pod that a filter means. */
struct member_key {
	__u32 filter;
	__u32 pad;
	__u64 id[8]; /* zeros after its end */
};

/* A process, as a filter by command line remembers it. */
struct line_key {
	__u64 began;
	__u32 tgid;
	__u32 filter;
};

struct line {
	__u64 execs;
	__u64 begin[4]; /* of the command line, which a process can write over */
	__u32 fits;
	__u32 pad;
};

/* A process that one started which the filter means. */
struct child_key {
	__u32 tgid; /* as the exporter's /proc has it */
	__u32 filter;
};

/* What was found out of a control group. */
struct cgroup_key {
	__u64 cgroup;
	__u32 filter;
	__u32 edition;
};

#endif

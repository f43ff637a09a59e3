/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is reported to user space about processes, and what it has configured: see src/kernel/events. */
#ifndef EVENTS_BPF_H
#define EVENTS_BPF_H

#include <bpf/bpf_helpers.h>
#include "kernel.bpf.h"
#include "wait.bpf.h"

enum event_limit {
	PATH_BYTES = 128,
	MAX_EVENT_GLOBS = 256,
	SIGNAL_OF_CODE = 0x7f, /* as encoded by wait(2) */
	LOADED_AGAIN = 1, /* a bit that no inode's address has set */
	SIGNAL_TRAP = 5, /* SIGTRAP */
	SIGNAL_BY_KERNEL = 0x80, /* SI_KERNEL, also for a breakpoint that belongs to no probe or debugger */
	BREAKPOINT = 0xcc,
};

enum process_event_kind {
	PROCESS_EXECUTED,
	PROCESS_FORKED,
	PROCESS_ENDED,
	PROCESS_RENAMED,
	PROCESS_MOVED, /* to another cgroup */
	PROCESS_MAPPED, /* a file that is not known */
	PROCESS_LOADED, /* all of a file whose semaphores must be raised */
	PROCESS_TRAPPED, /* ends after a breakpoint that belongs to no probe or debugger; once for each file that it maps */
};

/* What is known of a file that a process with some name in some cgroup executes. */
enum known_use {
	KNOWN = 1, /* needs no action */
	KNOWN_UNLESS_LINE = 2, /* unless the command line matches a glob */
	KNOWN_UNLESS_CHILD = 4, /* unless the process was started by another one that is reported */
};

/* A file as processes open it: on overlayfs, the overlay's. */
struct file_key {
	__u64 inode; /* address of the kernel's inode */
	__u64 number;
	__u32 device;
	__u32 generation; /* distinguishes inodes that reuse a number, and files before and after a copy-up */
};

struct process_event {
	__u32 kind; /* enum process_event_kind */
	__u32 pid;
	__u32 parent; /* PROCESS_FORKED; PROCESS_EXECUTED if there is a path */
	__u32 signal; /* PROCESS_ENDED: the signal that ended it, or 0 */
	__u32 fits_line; /* PROCESS_EXECUTED: whether the command line matches a glob */
	__u32 pad;
	__u64 cgroup;
	__u64 time; /* PROCESS_EXECUTED, PROCESS_ENDED: by CLOCK_MONOTONIC */
	struct file_key file; /* the executable; PROCESS_MAPPED: the mapped file */
	__u64 address; /* PROCESS_MAPPED: of the mapping; PROCESS_LOADED, PROCESS_TRAPPED: of the file's inode */
	__u64 name; /* PROCESS_MAPPED: the kernel's hash of the file's name and directory */
	__u64 ticket; /* PROCESS_EXECUTED, PROCESS_MAPPED, PROCESS_LOADED: what it waits for, or 0 */
	__u8 comm[16]; /* PROCESS_TRAPPED: the code, from the breakpoint on */
	char path[PATH_BYTES]; /* PROCESS_EXECUTED: the argument of execve(2) */
};

/* By what targets distinguish processes that execute a file. */
struct file_use {
	struct file_key file;
	__u64 cgroup; /* 0 if no target selects by cgroup */
	__u8 comm[16];
};

/* A file that is executed by one of its names: globs give the same result for it each time. */
struct named_program {
	struct file_key file;
	__u64 name; /* the kernel's hash of the file's name and directory */
	__u8 comm[16];
};

/* A file by one of its names, by which targets look for it. */
struct named_file {
	struct file_key file;
	__u64 name;
};

enum tracked_state {
	TRACKED_FOUND = 1,
	TRACKED_PINNED = 2, /* always reported, as is a later process with the same pid */
	TRACKED_TRAPPED = 4, /* a flag: one of its threads hit a breakpoint that belongs to no probe or debugger */
};

enum cgroup_state {
	CGROUP_NEW, /* the reader has not decided yet whether it is a target's */
	CGROUP_MEANT,
	CGROUP_OTHER,
};

/* The key of a name: its length and its first bytes. The reader compares the rest. */
struct name_key {
	__u32 length;
	__u32 pad;
	__u64 start[2];
};

/* The length that marks a name to be compared with the leader's, which is truncated to 15 bytes and zero-padded. */
enum name_length {
	NAME_COMM = 0xffffffff,
};

struct events_abi {
	struct process_event process_event;
	struct name_key name_key;
	struct named_file named_file;
	enum event_limit event_limit;
	enum ticket_limit ticket_limit;
	enum process_event_kind process_event_kind;
	enum known_use known_use;
	struct file_use file_use;
	enum tracked_state tracked_state;
	enum cgroup_state cgroup_state;
	enum name_length name_length;
};
const volatile struct events_abi events_abi = {};

/* Whether targets select by cgroup. */
const volatile __u32 has_cgroups = 0;

/* The number of globs for names, and of those for command lines, which follow them. */
const volatile __u32 name_globs = 0;
const volatile __u32 line_globs = 0;

/*
 * Whether any process may be selected; and whether the children of reported processes are of interest, whatever they
 * run: the reader excludes those that are not.
 */
const volatile __u32 wants_all = 0;
const volatile __u32 wants_children = 0;

/* Bytes waiting in the ring buffer at which the reader is woken. */
const volatile __u32 wake_bytes = 1;

/* Events for which there was no room: the reader then walks /proc. */
__u64 lost = 0;

HASH(names, BPF_MAP_TYPE_HASH, 0, struct name_key, __u32, 1);
HASH(tracked, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, __u32, __u32, 65536);
HASH(cgroups, BPF_MAP_TYPE_LRU_HASH, 0, __u64, __u32, 4096);
/* Whether the name of a program matches any of the globs. */
HASH(glob_results, BPF_MAP_TYPE_LRU_HASH, 0, struct named_program, __u32, 1);

/* Files that need no immediate action when such a process executes them: enum known_use. */
HASH(known, BPF_MAP_TYPE_LRU_HASH, 0, struct file_use, __u32, 8192);

/* Files whose execution is reported, whatever the process. */
HASH(semaphores, BPF_MAP_TYPE_LRU_HASH, 0, struct file_key, __u32, 8192);

/* Files that need no action when they are mapped. */
HASH(libraries, BPF_MAP_TYPE_LRU_HASH, 0, struct named_file, __u32, 8192);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} ring SEC(".maps");

#endif

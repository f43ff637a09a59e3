/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What user space is told of processes, and what it has said of them: src/kernel/events.
 */
#ifndef EVENTS_BPF_H
#define EVENTS_BPF_H

#include <bpf/bpf_helpers.h>
#include "kernel.bpf.h"
#include "wait.bpf.h"

enum event_limit {
	PATH_BYTES = 128,
	MAX_EVENT_GLOBS = 256,
	SIGNAL_OF_CODE = 0x7f, /* as wait(2) gives it */
	LOADED_AGAIN = 1, /* no address of an inode has it */
	SIGNAL_TRAP = 5, /* SIGTRAP */
	SIGNAL_BY_KERNEL = 0x80, /* SI_KERNEL, which is also what a breakpoint that is nobody's raises */
};

enum process_event_kind {
	PROCESS_EXECUTED,
	PROCESS_FORKED,
	PROCESS_ENDED,
	PROCESS_RENAMED,
	PROCESS_MOVED, /* to another control group */
	PROCESS_MAPPED, /* a file that was not known */
	PROCESS_LOADED, /* all of a file whose semaphores have to be raised */
};

/* Of a file that a process of some name in some control group executes. */
enum known_use {
	KNOWN = 1, /* nothing has to be done */
	KNOWN_UNLESS_LINE = 2, /* except with a command line that is looked for */
	KNOWN_UNLESS_CHILD = 4, /* except in a process that another one has started of which is told */
};

/* A file as it is opened: on overlayfs that of the overlay. */
struct file_key {
	__u64 inode; /* address of the kernel's inode */
	__u64 number;
	__u32 device;
	__u32 generation; /* tells inodes apart that have the same number one after the other, and what overlayfs copies up */
};

struct process_event {
	__u32 kind; /* enum process_event_kind */
	__u32 pid;
	__u32 parent; /* PROCESS_FORKED; PROCESS_EXECUTED if there is a path */
	__u32 signal; /* PROCESS_ENDED: what ended it, or 0 */
	__u64 cgroup;
	__u64 time; /* PROCESS_EXECUTED: of CLOCK_MONOTONIC */
	struct file_key file; /* the executable; PROCESS_MAPPED: that file */
	__u64 address; /* PROCESS_MAPPED: where; PROCESS_LOADED: of the file's inode */
	__u64 name; /* PROCESS_MAPPED: the kernel's hash of the file's name and directory */
	__u64 ticket; /* PROCESS_EXECUTED, PROCESS_MAPPED, PROCESS_LOADED: what it waits for; 0 if it does not */
	__u8 comm[16];
	char path[PATH_BYTES]; /* PROCESS_EXECUTED: as execve(2) was given it */
};

/* What targets tell processes by that execute a file. */
struct file_use {
	struct file_key file;
	__u64 cgroup; /* 0 where no target is given by that */
	__u8 comm[16];
};

/* A file that is executed by one of its names: globs say the same of it each time. */
struct named_program {
	struct file_key file;
	__u64 name; /* the kernel's hash of the file's name and directory */
	__u8 comm[16];
};

/* A file by one of its names, by which targets ask for it. */
struct named_file {
	struct file_key file;
	__u64 name;
};

enum tracked_state {
	TRACKED_FOUND = 1,
	TRACKED_PINNED = 2, /* told whatever it does, and waited for when it has ended */
	TRACKED_TRAPPED = 4, /* besides: a thread of it came to a breakpoint that is nobody's */
};

enum cgroup_state {
	CGROUP_NEW, /* the reader has not said yet whether it is a target's */
	CGROUP_MEANT,
	CGROUP_OTHER,
};

/* The key of a name: its length, and how it begins. The reader compares the rest. */
struct name_key {
	__u32 length;
	__u32 pad;
	__u64 start[2];
};

/* Length of a name that is compared with that of the leader, which is cut, and filled with zeros, at 15 bytes. */
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

/* Whether targets are given by control group. */
const volatile __u32 has_cgroups = 0;

/* How many globs of names there are, and of command lines, which come after them. */
const volatile __u32 name_globs = 0;
const volatile __u32 line_globs = 0;

/* Whether any process may be meant; and whether whom they start is of interest, whatever it runs: the reader tells which are not. */
const volatile __u32 wants_all = 0;
const volatile __u32 wants_children = 0;

/* The reader is woken when so much waits for it. */
const volatile __u32 wake_bytes = 1;

/* Events that found no room: the reader walks through /proc then. */
__u64 lost = 0;

HASH(names, BPF_MAP_TYPE_HASH, 0, struct name_key, __u32, 1);
HASH(tracked, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, __u32, __u32, 65536);
HASH(cgroups, BPF_MAP_TYPE_LRU_HASH, 0, __u64, __u32, 4096);
/* Whether a program is called as any of the globs says. */
HASH(glob_results, BPF_MAP_TYPE_LRU_HASH, 0, struct named_program, __u32, 1);

/* Nothing has to be done at once when such a process executes the file: enum known_use. */
HASH(known, BPF_MAP_TYPE_LRU_HASH, 0, struct file_use, __u32, 8192);

/* Whatever process executes the file is told. */
HASH(semaphores, BPF_MAP_TYPE_LRU_HASH, 0, struct file_key, __u32, 8192);

/* Files that may be mapped without anything to be done about it. */
HASH(libraries, BPF_MAP_TYPE_LRU_HASH, 0, struct named_file, __u32, 8192);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} ring SEC(".maps");

#endif

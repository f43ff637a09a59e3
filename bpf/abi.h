/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The only contract between the probe programs (C) and the exporter (Rust). build.rs compiles this header
 * into the BPF object's type information and generates the Rust side from that; both sides assert sizes.
 *
 * What the kernel side is told, and how it is linked together:
 *
 *   attach cookie -> site -> probe -> actions -> labels -> series -> slots
 *
 * A site is one address in one file, with the location of each value that its probe reads there. A probe says
 * what its values are and what to do with them. An action updates one metric. Its labels' values become small
 * numbers, through patterns or an interner; together they number the series, which owns a run of slots, the 64-bit
 * numbers that are added to.
 */
#ifndef ABI_H
#define ABI_H

enum abi_limit {
	/* Values that one probe can read, arguments and built-ins together. */
	MAX_VALUES = 12,
	/* Metrics that one probe can update in the kernel. */
	MAX_ACTIONS = 16,
	/* Labels, and conditions, of one metric that is computed in the kernel. */
	MAX_LABELS = 4,
	MAX_CONDITIONS = 4,
	/* Upper bounds of one histogram, +Inf not counted. */
	MAX_BOUNDS = 63,
	/* Patterns of one label or condition. */
	MAX_PATTERNS = 16,
	/* 64-bit words of a pattern, and of the longest string that is compared with one. */
	PATTERN_WORDS = 4,
	/* 64-bit words of text that a label can have. */
	TEXT_WORDS = 8,
	/* Registers that a location can name: the members of struct pt_regs. */
	NREGS = 21,
	/* Longest string or byte field that is read. */
	MAX_BYTES = 256,
	/* Room for text in an event, and the longest text, by event class. */
	SHORT_TEXTS = 256,
	SHORT_TEXT = 64,
	LONG_TEXTS = 1024,
	/* Integers below this, of each interner, have a table of their own. */
	SMALL_INTEGERS = 1024,
	/* Open starts of one span that are kept for one thread, where a span is by thread. */
	MAX_NESTED = 16,
	/* Stretches of code that a function with such jumps can consist of. */
	MAX_STRETCHES = 4,
	/* Values carried from a function's entry to its return, or from a span's start to its end. */
	MAX_CARRIED = 8,
	/* Bytes of all texts that one start keeps. */
	CARRIED_TEXTS = 768,
	/* 64-bit words of a filter's name: a file name has up to 255 bytes. */
	FILTER_WORDS = 32,
	/* In a hit's faults: bit LARGE_VALUE + i says that value i is 2^63 or more, of an argument without a sign. */
	LARGE_VALUE = 16,
	/* And this bit says that the hit is slow, see ACTION_SLOW. */
	SLOW_HIT = 28,
	/* Nested control groups that are looked at for a container. */
	MAX_CGROUP_LEVELS = 16,
	/* Filters of a target. */
	MAX_PREDICATES = 9,
	/* Targets with children. */
	MAX_FAMILIES = 64,
	MAX_NAME = 255,
	/* Bytes of a command line that are looked at. */
	MAX_LINE = 1 << 15,
	/* Bytes of an executable's path, or a command line, that are shown. */
	PROCESS_TEXT = 256,
};

/* How a value is found when a site is hit. */
enum location_op {
	LOC_CONST, /* offset */
	LOC_REGISTER, /* reg */
	LOC_MEMORY, /* memory at reg + offset */
	LOC_INDEXED, /* memory at reg + (index << scale) + offset */
	LOC_PID, /* thread group id */
	LOC_TID, /* thread id */
	LOC_CPU,
	LOC_CGROUP, /* cgroup v2 id */
	LOC_COMM, /* the thread's name, only as a string */
	LOC_DURATION, /* nanoseconds since the entry or the start */
	LOC_CARRIED, /* value number index that the entry or the start kept */
	LOC_CARRIED_MEMORY, /* memory at that value + offset */
	LOC_EXE, /* the number of a process_text, or what enum process_number says */
	LOC_CMDLINE,
};

struct location {
	__s64 offset;
	__u8 op; /* enum location_op */
	__u8 reg; /* index into struct pt_regs; 0 is read for one that is beyond it */
	__u8 index; /* likewise, or the number of a carried value */
	__u8 scale; /* shift count of the index */
	__u8 bytes; /* 1, 2, 4 or 8 */
	__u8 is_signed;
	__u8 pad[2];
};

enum site_flag {
	SITE_JUMP = 1 << 1, /* an indirect jump, which leaves its function or does not */
	SITE_SHARED = 1 << 2, /* an exit that calls of other functions pass too */
	/* Of a file that may take the place of a target's: hits count once it is called like that. */
	SITE_CANDIDATE = 1 << 3,
	SITE_GOROUTINE = 1 << 4, /* of a call on a goroutine's stack: R14 is the goroutine */
	/* Passed by a call on its way to its exit, see enum call_stage; not counted. */
	SITE_LOOP_BACK = 1 << 5,
	SITE_TAIL_JUMP = 1 << 6,
	SITE_CALLEE_ENTRY = 1 << 7,
	SITE_PASSAGE = SITE_LOOP_BACK | SITE_TAIL_JUMP | SITE_CALLEE_ENTRY,
	SITE_STEPPED = 1 << 8, /* its instruction is single-stepped, which takes longer */
	/* The entry of a function that begins with a loop; with SITE_LOOP_BACK a jump there. Of calls whose return is not traced. */
	SITE_LOOP_HEAD = 1 << 9,
};

/* Where a call is whose start is kept. */
enum call_stage {
	CALL_ENTERED,
	CALL_LOOPS_BACK, /* at its own entry again, by a jump: no other call */
	/* At the entry of a function that it ends in. A start that is found there at another stage was left: by an exception. */
	CALL_JUMPS_ON,
	CALL_IN_CALLEE,
};

/* Some code of a function; from is relative to the site. */
struct stretch {
	__s64 from;
	__u64 bytes;
};

struct site {
	__u32 probe;
	__u32 on_return; /* session uprobe: the number of the site that stands for the return */
	__u32 flags; /* enum site_flag */
	__s32 frame_offset; /* stack pointer + this: where the function's return address is (or was: a uretprobe has popped it) */
	__u32 function; /* which of its probe's functions: entries and exits are paired for each by itself */
	/* 0, or 1 + the processor's condition (0 overflow to 15 greater) under which alone it is hit. On a jbe that Go takes when
	 * it has moved the stack, "above": the call begins anew then. */
	__u32 condition;
	__u64 since; /* when its probe was about to be set, in CLOCK_MONOTONIC nanoseconds; 0 if unknown */
	/* With SITE_JUMP: where it leads is at target, and it stays in the function if that is in one of these. */
	struct location target;
	struct stretch inside[MAX_STRETCHES];
	struct location values[MAX_VALUES];
};

/* What a value is. */
enum value_kind {
	VALUE_INT,
	VALUE_STRING, /* address of a C string; at most max bytes are read, the NUL among them */
	VALUE_STRING_LEN, /* address; the length is the value number len_value */
	VALUE_BYTES, /* address of max bytes */
	VALUE_SOCKADDR, /* address of a sockaddr: as much of it as its family has, and no flow label */
	VALUE_COMM, /* the thread's name */
	VALUE_CARRIED, /* text that the start kept: (offset << 32 | length) of the start's bytes */
	VALUE_TIME, /* CLOCK_MONOTONIC nanoseconds when the event is put on the ring buffer */
	VALUE_STACK, /* addresses of code, 8 bytes each: where the thread is, and what its calls return to as far as frame pointers lead */
};

struct value {
	__u8 kind; /* enum value_kind */
	__u8 len_value;
	__u16 max;
};

enum probe_flag {
	PROBE_FILTER = 1 << 0, /* only the processes that filter number filter means */
	PROBE_EMIT = 1 << 1, /* the hit goes to the ring buffer */
	PROBE_COUNT_ONLY = 1 << 2, /* nothing to do but count the hit */
	PROBE_START = 1 << 3, /* begins span number span */
	PROBE_END = 1 << 4, /* ends span number span */
	PROBE_BY_THREAD =
		1
		<< 5, /* the span's key is the thread; without this and PROBE_BY_FRAME it is value 0 at both ends */
	PROBE_SESSION = 1 << 6, /* in a session uprobe the kernel itself keeps the time from entry to return */
	PROBE_BY_FRAME = 1 << 7, /* a function's call: the key is where its return address is */
	PROBE_TEXTS = 1 << 8, /* among what the start keeps is text */
	PROBE_SLOW = 1 << 9, /* a slow hit goes to the ring buffer, see ACTION_SLOW */
	PROBE_STACK = 1 << 10, /* among the values is a VALUE_STACK */
};

/* Sizes of event that the ring buffer is asked for. */
enum event_class {
	EVENT_6, /* six values: 64 bytes in all */
	EVENT_12, /* twelve values */
	EVENT_SHORT_TEXTS, /* twelve values and SHORT_TEXTS bytes of text, none longer than SHORT_TEXT */
	EVENT_LONG_TEXTS, /* twelve values and LONG_TEXTS bytes of text, none longer than MAX_BYTES */
};

struct probe {
	__u32 flags; /* enum probe_flag */
	__u32 filter;
	__u32 accounting; /* first of this probe's ACCT_SLOTS slots */
	__u32 first_action;
	__u32 span; /* number of the span that this probe begins or ends */
	__u8 nactions;
	__u8 nvalues;
	__u8 event_class; /* enum event_class */
	__u8 ncarried; /* values that a start keeps: the first ones, after the key */
	__u32 slow; /* first of the slots that enum slow_slot names */
	__u8 pad[4];
	struct value values[MAX_VALUES];
};

#include "abi_filters.h"

enum abi_id {
	ID_OUTSIDE = 0x80000000, /* set in a key's id of a process outside of the exporter's pid namespace */
};

/* What is counted for each probe. hits = aggregated + delivered + filtered + every lost_*. */
enum accounting_slot {
	ACCT_HITS, /* hits that began; of a probe that only counts not written, since they end at once */
	ACCT_AGGREGATED, /* all of the hit's metrics were updated in the kernel */
	ACCT_DELIVERED, /* the hit was put on the ring buffer, whole */
	ACCT_FILTERED, /* not of a process that the target means, or the end of no call of its */
	ACCT_LOST_RING, /* no room on the ring buffer */
	ACCT_LOST_FAULT, /* a number that a metric needs could not be read */
	ACCT_LOST_NO_START, /* end of a span that had no start */
	ACCT_LOST_STARTS_FULL, /* start of a span that found no room */
	ACCT_LOST_NEGATIVE, /* a negative amount for a counter, which can only grow */
	ACCT_READ_FAULTS, /* reads of the application's memory that failed; not a way a hit can end */
	ACCT_LAST_HIT, /* jiffies; not added to but overwritten */
	ACCT_LABEL_OVERFLOW, /* label sets that went to "other"; not a way a hit can end */
	ACCT_PASSED, /* traps that are no hits: at a passage, a jump that stays in its function, a condition that does not hold */
	ACCT_STEPPED, /* hits, and such traps, at an instruction that is single-stepped */
	ACCT_FORGOTTEN, /* earlier starts that a start or a return showed to be over without their end; not a way a hit can end */
	ACCT_SLOTS = 16,
};

/* What is counted of a probe's slow hits. */
enum slow_slot {
	SLOW_SEEN,
	SLOW_LOST, /* of these, those that found no room on the ring buffer */
	SLOW_SLOTS,
};

/* Below what no hit is among the worst of an hour; not sharded: always the first shard's slots. Written by the exporter. */
enum floor_slot {
	FLOOR_UNTIL, /* CLOCK_MONOTONIC nanoseconds; from then on there is no floor */
	FLOOR_ABOVE, /* a number with a sign, which is itself below; written before FLOOR_UNTIL, and read after it */
	FLOOR_SLOTS,
};

enum action_kind {
	ACTION_COUNT, /* slot 0 += 1 */
	ACTION_ADD, /* slot 0 += value, slot 1 += 1 */
	ACTION_HISTOGRAM, /* slot 0 += value, slot 1 + bucket += 1 */
	ACTION_LAST, /* slot 0 = value, slot 1 = its time; not sharded: always the first shard's slots, like the next two */
	ACTION_MIN, /* slot 0 = min(slot 0, value + bias + 1), where 0 means "none yet" */
	ACTION_MAX,
	ACTION_SLOW, /* above bias, as a number with a sign, the hit is slow: slot SLOW_SEEN += 1, and it goes to the ring buffer */
	ACTION_WORST, /* the same, but for hits that are not above the floor */
};

enum abi_none {
	NO_VALUE = 0xff, /* the action counts, or the pattern needs no value */
	NO_MATCH = 0xff, /* a label's value fits none of its patterns */
	NO_LABEL_SETS = 0xffffffff,
};

enum condition_op {
	COND_EQ,
	COND_NE,
	COND_LT,
	COND_LE,
	COND_GT,
	COND_GE,
	COND_STRING, /* equals or begins with pattern number operand */
	COND_NOT_STRING,
};

struct condition {
	__u64 operand; /* bias already added */
	__u64 bias; /* added to the value: 1 << 63 if it is signed, so that all comparisons are unsigned */
	__u8 value;
	__u8 op; /* enum condition_op */
	__u8 pad[6];
};

enum label_flag {
	LABEL_RAW = 1 << 0, /* a value that fits no pattern stands for itself, up to a limit of distinct ones */
	LABEL_TEXT = 1 << 1, /* the value is text, else an integer */
	LABEL_NUL = 1 << 2, /* its text has a length, but ends at a NUL all the same */
};

/* A label's value becomes a small number: one of these, or ID_PATTERN + npatterns + its number in an interner. */
enum label_id {
	ID_OTHER, /* a free value past the interner's limit */
	ID_UNREADABLE,
	ID_PATTERN, /* fits the first pattern; the next one's number follows, and last "fits none" if not LABEL_RAW */
};

struct label {
	__u32 interner;
	__u32 first_pattern;
	__u32 multiplier; /* of the number, in the series' number */
	__u8 npatterns;
	__u8 value;
	__u8 flags; /* enum label_flag */
	__u8 words; /* words of text that are read */
};

struct action {
	__u8 kind; /* enum action_kind */
	__u8 value; /* or NO_VALUE */
	__u8 nconditions;
	__u8 nlabels;
	__u8 needs_nonnegative; /* refuse a negative value: the value is signed and the metric a counter */
	__u8 pad[3];
	__u32 slot; /* first slot of series 0 */
	__u32 stride; /* slots of one series */
	__u32 bounds; /* histogram: which set; ACTION_WORST: first of the slots that enum floor_slot names */
	__u32 label_sets; /* an interner, or NO_LABEL_SETS: series are numbered by the labels' numbers times their multipliers */
	__u64 bias; /* as in struct condition; of ACTION_SLOW and ACTION_WORST, what a slow hit is above */
	struct condition conditions[MAX_CONDITIONS];
	struct label labels[MAX_LABELS];
};

/* A string equals a pattern if (string ^ word) & mask is zero everywhere: the mask of an exact pattern covers its
 * NUL, the mask of a prefix ends before it. Integers use the first word. */
struct pattern {
	__u64 word[PATTERN_WORDS];
	__u64 mask[PATTERN_WORDS];
};

/* Ascending, bias added, unused ones all ones. The bucket is the number of bounds that the value is above. */
struct bounds {
	__u64 upper[MAX_BOUNDS + 1];
};

/*
 * Gives out numbers: to the distinct values of one label, or to the distinct label sets of a metric with so
 * many possible ones that a slot for each cannot be set aside. The names behind the numbers are in entries.
 */
struct interner {
	__u32 first_entry;
	__u32 capacity; /* numbers there is room for: the limit and a few to spare */
	__u32 limit;
	__u32 accepted; /* written by both sides: distinct values in use */
	__u32 next; /* written by the kernel: numbers given out for the first time */
	__u32 pad;
	/*
	 * Numbers that were given back, as a stack: the low half is the upper one plus 1, or 0; the next one down is in its
	 * entry's first word. The high half counts changes, so that a stack that was changed and changed back is seen.
	 */
	__u64 free;
};

struct word_key {
	__u32 interner;
	__u32 pad;
	__u64 words[TEXT_WORDS];
};

/*
 * Most integers that are labels are small: their number plus 1, or 0 if it is not known yet, stands in a table that takes
 * no helper call to look up.
 */
struct small_integers {
	__u32 number[SMALL_INTEGERS];
};

/* Key of the map that makes finding the number of a larger integer quick. */
struct integer_key {
	__u32 interner;
	__u32 pad;
	__u64 value;
};

/* The same for text of a few words: how a word_key begins. */
struct short_key {
	__u32 interner;
	__u32 pad;
	__u64 words[PATTERN_WORDS];
};

/* Written once by the kernel, read by the exporter when ready is 1. */
struct entry {
	__u32 ready;
	__u32 pad;
	__u64 words[TEXT_WORDS];
};

#include "abi_starts.h"
#include "abi_processes.h"

/* What the drain thread wants to be woken for. */
enum wake {
	WAKE_NEVER,
	WAKE_FIRST, /* the next event */
	WAKE_FULL, /* when wake_bytes are waiting */
};

/* One page shared with the drain thread. */
struct control {
	__u32 wake; /* enum wake; the kernel clears it when it wakes the thread */
	__u32 wake_bytes;
	__u64 stray; /* hits whose cookie named nothing */
	__u64 jiffies; /* written by the clock program */
	__u64 now; /* CLOCK_MONOTONIC nanoseconds, likewise */
};

/*
 * An event on the ring buffer. The values follow, six or twelve of them by its class, then bytes of text. A
 * value that is text is (offset << 32 | length) of those bytes. Bit i of faults: value i could not be read; see also
 * LARGE_VALUE.
 */
struct event {
	__u32 probe;
	__u32 faults;
	__u16 text_bytes;
	__u8 event_class;
	__u8 pad[5];
};

_Static_assert(sizeof(struct location) == 16, "layout");
_Static_assert(sizeof(struct site) == 48 + 16 * MAX_STRETCHES + 16 * MAX_VALUES, "layout");
_Static_assert(sizeof(struct probe) == 32 + 4 * MAX_VALUES, "layout");
_Static_assert(sizeof(struct filter) == 40 + 8 * FILTER_WORDS, "layout");
_Static_assert(sizeof(struct action) == 32 + 24 * MAX_CONDITIONS + 16 * MAX_LABELS, "layout");
_Static_assert(sizeof(struct interner) == 32, "layout");
_Static_assert(sizeof(struct small_integers) == 4 * SMALL_INTEGERS, "layout");
_Static_assert(sizeof(struct entry) == 8 + 8 * TEXT_WORDS, "layout");
_Static_assert(sizeof(struct start_key) == 24, "layout");
_Static_assert(sizeof(struct start) == 16 + 8 * MAX_CARRIED, "layout");
_Static_assert(sizeof(struct control) == 32, "layout");
_Static_assert(sizeof(struct event) == 16, "layout");

#endif

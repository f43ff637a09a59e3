/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The only contract between the probe programs (C) and the exporter (Rust). build.rs compiles this header into the
 * BPF object's type information and generates the Rust side from that; both sides assert sizes.
 *
 * The tables that the kernel side works with, and how they are linked:
 *
 * attach cookie -> site -> probe -> actions -> labels -> series -> slots
 *
 * A site is one address in one file, with the location of each value that its probe reads there. A probe defines what
 * its values are and what to do with them. An action updates one metric. The values of its labels become small
 * numbers, through patterns or an interner; together they number the series, which owns a run of slots: 64-bit
 * numbers that are added to.
 */
#ifndef ABI_H
#define ABI_H

enum abi_limit {
	/* Values that one probe can read, arguments and built-ins together. */
	MAX_VALUES = 12,
	/* Metrics that one probe can update in the kernel. */
	MAX_ACTIONS = 16,
	/* Labels, and conditions, of one metric computed in the kernel. */
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
	/* Space for text in an event, and the longest text, by event class. */
	SHORT_TEXTS = 256,
	SHORT_TEXT = 64,
	LONG_TEXTS = 1024,
	/* In each interner, integers below this have a table of their own. */
	SMALL_INTEGERS = 1024,
	/* Open starts of one span that are kept for one thread, if the span is per thread. */
	MAX_NESTED = 16,
	/* Stretches of code that a function with indirect jumps can consist of. */
	MAX_STRETCHES = 4,
	/* Values carried from a function's entry to its return, or from a span's start to its end. */
	MAX_CARRIED = 8,
	/* Total bytes of text that one start keeps. */
	CARRIED_TEXTS = 768,
	/* 64-bit words of a filter's name: a file name has up to 255 bytes. */
	FILTER_WORDS = 32,
	/* In a hit's faults: bit LARGE_VALUE + i means that value i is unsigned and 2^63 or more. */
	LARGE_VALUE = 16,
	/* In a hit's faults: the bit that marks a slow hit, see ACTION_SLOW. */
	SLOW_HIT = 28,
	/* Nested cgroups that are searched for a container. */
	MAX_CGROUP_LEVELS = 16,
	/* Filters of a target. */
	MAX_PREDICATES = 9,
	/* Targets with children. */
	MAX_FAMILIES = 64,
	MAX_NAME = 255,
	/* Bytes of a command line that are matched. */
	MAX_LINE = 1 << 15,
	/* Bytes of an executable's path, or a command line, that are shown. */
	PROCESS_TEXT = 256,
};

/* How a value is obtained when a site is hit. */
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
	LOC_DURATION, /* nanoseconds since the entry or start */
	LOC_CARRIED, /* value number index, kept by the entry or start */
	LOC_CARRIED_MEMORY, /* memory at that value + offset */
	LOC_EXE, /* the number of a process_text, or an enum process_number */
	LOC_CMDLINE,
};

struct location {
	__s64 offset;
	__u8 op; /* enum location_op */
	__u8 reg; /* index into struct pt_regs; an index out of range reads as 0 */
	__u8 index; /* likewise, or the number of a carried value */
	__u8 scale; /* shift count of the index */
	__u8 bytes; /* 1, 2, 4 or 8 */
	__u8 is_signed;
	__u8 pad[2];
};

enum site_flag {
	SITE_JUMP = 1 << 1, /* an indirect jump, which may or may not leave its function */
	SITE_SHARED = 1 << 2, /* an exit that calls of other functions take, too */
	/* Of a file that may replace the target's: hits count only once the executable has that name. */
	SITE_CANDIDATE = 1 << 3,
	SITE_GOROUTINE = 1 << 4, /* of a call on a goroutine's stack: R14 points to the goroutine */
	/* A place that a call passes on the way to its exit, see enum call_stage; not counted as a hit. */
	SITE_LOOP_BACK = 1 << 5,
	SITE_TAIL_JUMP = 1 << 6,
	SITE_CALLEE_ENTRY = 1 << 7,
	SITE_PASSAGE = SITE_LOOP_BACK | SITE_TAIL_JUMP | SITE_CALLEE_ENTRY,
	SITE_STEPPED = 1 << 8, /* its instruction is single-stepped, which is slower */
	/*
	 * The entry of a function that begins with a loop or, with SITE_LOOP_BACK, a jump back there. Only for calls
	 * whose return is not traced.
	 */
	SITE_LOOP_HEAD = 1 << 9,
};

/* How far a call has come whose start is kept. */
enum call_stage {
	CALL_ENTERED,
	CALL_LOOPS_BACK, /* jumping back to its own entry: not a new call */
	/*
	 * Jumping to the entry of a function that it ends in. A start found at that entry in another stage was
	 * abandoned, by an exception.
	 */
	CALL_JUMPS_ON,
	CALL_IN_CALLEE,
};

/* A stretch of a function's code; from is relative to the site. */
struct stretch {
	__s64 from;
	__u64 bytes;
};

struct site {
	__u32 probe;
	__u32 on_return; /* session uprobe: number of the site that describes the return */
	__u32 flags; /* enum site_flag */
	__s32 frame_offset; /* plus stack pointer: address of the return address (already popped in a uretprobe) */
	__u32 function; /* which of its probe's functions; entries and exits are paired per function */
	/*
	 * 0, or 1 + the processor's condition code (0 overflow to 15 greater): only then is it a hit. On the jbe that
	 * Go takes after it has moved the stack, "above": if it is taken, the call starts over.
	 */
	__u32 condition;
	__u64 since; /* CLOCK_MONOTONIC nanoseconds just before its probe was set; 0 if unknown */
	/*
	 * With SITE_JUMP: target is the location of the jump's destination, and the jump stays in its function if the
	 * destination is in one of these stretches.
	 */
	struct location target;
	struct stretch inside[MAX_STRETCHES];
	struct location values[MAX_VALUES];
};

/* What a value is. */
enum value_kind {
	VALUE_INT,
	VALUE_STRING, /* address of a C string; at most max bytes are read, including the NUL */
	VALUE_STRING_LEN, /* address; the length is value number len_value */
	VALUE_BYTES, /* address of max bytes */
	VALUE_SOCKADDR, /* address of a sockaddr: as many bytes as its family has, without the flow label */
	VALUE_COMM, /* the thread's name */
	VALUE_CARRIED, /* text kept by the start: (offset << 32 | length) of the start's bytes */
	VALUE_TIME, /* CLOCK_MONOTONIC nanoseconds when the event is put on the ring buffer */
	VALUE_STACK, /* 8-byte code addresses: the current one, then return addresses found by frame pointers */
};

struct value {
	__u8 kind; /* enum value_kind */
	__u8 len_value;
	__u16 max;
};

enum probe_flag {
	PROBE_FILTER = 1 << 0, /* only processes that filter number filter selects */
	PROBE_EMIT = 1 << 1, /* the hit goes to the ring buffer */
	PROBE_COUNT_ONLY = 1 << 2, /* nothing to do but count the hit */
	PROBE_START = 1 << 3, /* starts span number span */
	PROBE_END = 1 << 4, /* ends span number span */
	PROBE_BY_THREAD = 1 << 5, /* keyed by thread; without this and PROBE_BY_FRAME, by value 0 at both ends */
	PROBE_SESSION = 1 << 6, /* in a session uprobe, the kernel keeps the entry's time until the return */
	PROBE_BY_FRAME = 1 << 7, /* a function call: the key is the address of its return address */
	PROBE_TEXTS = 1 << 8, /* the start keeps text, too */
	PROBE_SLOW = 1 << 9, /* a slow hit goes to the ring buffer, see ACTION_SLOW */
	PROBE_STACK = 1 << 10, /* one of the values is a VALUE_STACK */
};

/* Sizes of events on the ring buffer. */
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
	__u32 span; /* number of the span that this probe starts or ends */
	__u8 nactions;
	__u8 nvalues;
	__u8 event_class; /* enum event_class */
	__u8 ncarried; /* number of values that a start keeps: the first ones after the key */
	__u32 slow; /* first of the slots of enum slow_slot */
	__u8 pad[4];
	struct value values[MAX_VALUES];
};

#include "abi_filters.h"

enum abi_id {
	ID_OUTSIDE = 0x80000000, /* set in a key's id if the process is outside the exporter's pid namespace */
};

/* Counts of each probe. hits = aggregated + delivered + filtered + every lost_*. */
enum accounting_slot {
	ACCT_HITS, /* hits begun; not written for a probe that only counts, whose hits end at once */
	ACCT_AGGREGATED, /* all of the hit's metrics were updated in the kernel */
	ACCT_DELIVERED, /* the hit was put on the ring buffer, whole */
	ACCT_FILTERED, /* of a process that the target does not select, or not the end of one of its calls */
	ACCT_LOST_RING, /* no room in the ring buffer */
	ACCT_LOST_FAULT, /* a number that a metric needs could not be read */
	ACCT_LOST_NO_START, /* end of a span without a start */
	ACCT_LOST_STARTS_FULL, /* no room for the start of a span */
	ACCT_LOST_NEGATIVE, /* a negative amount for a counter, which can only grow */
	ACCT_READ_FAULTS, /* failed reads of the application's memory; not an outcome of a hit */
	ACCT_LAST_HIT, /* jiffies; overwritten, not added to */
	ACCT_LABEL_OVERFLOW, /* label sets counted as "other"; not an outcome of a hit */
	ACCT_PASSED, /* traps that are not hits: a passage, a jump within its function, or a false condition */
	ACCT_STEPPED, /* hits and such traps at single-stepped instructions */
	ACCT_FORGOTTEN, /* starts found to be over without an end, by a later start or return; not an outcome */
	ACCT_SLOTS = 16,
};

/* Counts of a probe's slow hits. */
enum slow_slot {
	SLOW_SEEN,
	SLOW_LOST, /* those of them for which the ring buffer had no room */
	SLOW_SLOTS,
};

/*
 * The value at or below which no hit is among the worst of its hour. Not sharded: always in the first shard's slots.
 * Written by the exporter.
 */
enum floor_slot {
	FLOOR_UNTIL, /* CLOCK_MONOTONIC nanoseconds at which the floor expires */
	FLOOR_ABOVE, /* signed, and itself below the floor; written before FLOOR_UNTIL, read after it */
	FLOOR_SLOTS,
};

enum action_kind {
	ACTION_COUNT, /* slot 0 += 1 */
	ACTION_ADD, /* slot 0 += value, slot 1 += 1 */
	ACTION_HISTOGRAM, /* slot 0 += value, slot 1 + bucket += 1 */
	ACTION_LAST, /* slot 0 = value, slot 1 = its time; not sharded (first shard's slots), like the next two */
	ACTION_MIN, /* slot 0 = min(slot 0, value + bias + 1), where 0 means "none yet" */
	ACTION_MAX,
	ACTION_SLOW, /* value > bias (signed): a slow hit; slot SLOW_SEEN += 1, and sent to the ring buffer */
	ACTION_WORST, /* the same, except for hits not above the floor */
};

enum abi_none {
	NO_VALUE = 0xff, /* the action counts, or the pattern needs no value */
	NO_MATCH = 0xff, /* a label's value matches none of its patterns */
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
	__u64 operand; /* with bias already added */
	__u64 bias; /* added to the value: 1 << 63 if it is signed, so that all comparisons are unsigned */
	__u8 value;
	__u8 op; /* enum condition_op */
	__u8 pad[6];
};

enum label_flag {
	LABEL_RAW = 1 << 0, /* a value that matches no pattern is used as is, up to a limit of distinct values */
	LABEL_TEXT = 1 << 1, /* the value is text, otherwise an integer */
	LABEL_NUL = 1 << 2, /* its text has a length, but also ends at a NUL */
};

/* A label's value becomes a small number: one of these, or ID_PATTERN + npatterns + its number in an interner. */
enum label_id {
	ID_OTHER, /* a raw value beyond the interner's limit */
	ID_UNREADABLE,
	ID_PATTERN, /* the first pattern; then the next ones, and last "none matches" unless LABEL_RAW */
};

struct label {
	__u32 interner;
	__u32 first_pattern;
	__u32 multiplier; /* of the label's number in the series number */
	__u8 npatterns;
	__u8 value;
	__u8 flags; /* enum label_flag */
	__u8 words; /* words of text to read */
};

struct action {
	__u8 kind; /* enum action_kind */
	__u8 value; /* or NO_VALUE */
	__u8 nconditions;
	__u8 nlabels;
	__u8 needs_nonnegative; /* reject negative values: the value is signed, and the metric is a counter */
	__u8 pad[3];
	__u32 slot; /* first slot of series 0 */
	__u32 stride; /* slots of one series */
	__u32 bounds; /* histogram: which set; ACTION_WORST: first of the slots of enum floor_slot */
	__u32 label_sets; /* an interner, or NO_LABEL_SETS: the series is the sum of number * multiplier */
	__u64 bias; /* as in struct condition; ACTION_SLOW and ACTION_WORST: a slow hit is above it */
	struct condition conditions[MAX_CONDITIONS];
	struct label labels[MAX_LABELS];
};

/*
 * A string matches a pattern if (string ^ word) & mask is zero everywhere: the mask of an exact pattern covers its
 * NUL, the mask of a prefix ends before it. Integers use the first word.
 */
struct pattern {
	__u64 word[PATTERN_WORDS];
	__u64 mask[PATTERN_WORDS];
};

/* Ascending, with bias added; unused ones have all bits set. The bucket is the number of bounds below the value. */
struct bounds {
	__u64 upper[MAX_BOUNDS + 1];
};

/*
 * Assigns numbers: to the distinct values of one label, or to the distinct label sets of a metric with too many
 * possible ones to reserve a slot for each. The values behind the numbers are in entries.
 */
struct interner {
	__u32 first_entry;
	__u32 capacity; /* numbers that there is room for: the limit and a few spare ones */
	__u32 limit;
	__u32 accepted; /* written by both sides: distinct values in use */
	__u32 next; /* written by the kernel: numbers assigned for the first time */
	__u32 pad;
	/*
	 * Numbers that were returned, as a stack: the low half is the top number plus 1, or 0; the next one down is
	 * in the first word of the top's entry. The high half counts changes, so that a stack that was changed and
	 * changed back is detected.
	 */
	__u64 free;
};

struct word_key {
	__u32 interner;
	__u32 pad;
	__u64 words[TEXT_WORDS];
};

/*
 * Most integers used as labels are small: their number plus 1, or 0 if it is not known yet, is in a table that takes
 * no helper call to look up.
 */
struct small_integers {
	__u32 number[SMALL_INTEGERS];
};

/* Key of the map in which the number of a larger integer is found quickly. */
struct integer_key {
	__u32 interner;
	__u32 pad;
	__u64 value;
};

/* The same for text of a few words: the beginning of a word_key. */
struct short_key {
	__u32 interner;
	__u32 pad;
	__u64 words[PATTERN_WORDS];
};

/* Written once by the kernel, read by the exporter once ready is 1. */
struct entry {
	__u32 ready;
	__u32 pad;
	__u64 words[TEXT_WORDS];
};

#include "abi_starts.h"
#include "abi_processes.h"

/* What the drain thread requests to be woken for. */
enum wake {
	WAKE_NEVER,
	WAKE_FIRST, /* the next event */
	WAKE_FULL, /* when wake_bytes are waiting */
};

/* One page shared with the drain thread. */
struct control {
	__u32 wake; /* enum wake; the kernel clears it when it wakes the thread */
	__u32 wake_bytes;
	__u64 stray; /* hits with an unknown cookie */
	__u64 jiffies; /* written by the clock program */
	__u64 now; /* CLOCK_MONOTONIC nanoseconds, likewise */
};

/*
 * An event on the ring buffer, followed by its values, six or twelve depending on its class, and then by bytes of
 * text. A value that is text is (offset << 32 | length) of those bytes. Bit i of faults: value i could not be read;
 * see also LARGE_VALUE.
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

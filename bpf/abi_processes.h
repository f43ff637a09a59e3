/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The part of abi.h about texts of processes: the executable's path and the command line. */
#ifndef ABI_PROCESSES_H
#define ABI_PROCESSES_H

enum process_text_kind {
	PROCESS_EXE,
	PROCESS_CMDLINE,
	PROCESS_TEXT_KINDS,
};

/* Instead of the number of a text. */
enum process_number {
	PROCESS_NOT_READ, /* not yet */
	PROCESS_NO_ROOM,
	PROCESS_UNREADABLE,
	PROCESS_FIRST_NUMBER = 256,
};

/* A process between two execs. */
struct process_key {
	__u64 began;
	__u32 tgid;
	__u32 execs;
};

/* The numbers of its texts, which do not change while it is that. */
struct process_numbers {
	__u64 number[PROCESS_TEXT_KINDS];
};

/* The value of a text's number, which is a hash of it. Zeros around the text. */
struct process_text {
	__u32 from;
	__u32 length;
	/* A path is written from the end of the first half backwards: the verifier has to see room behind that for any name. */
	__u8 bytes[2 * PROCESS_TEXT];
};

#endif

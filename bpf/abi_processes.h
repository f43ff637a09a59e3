/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The part of abi.h about process texts: the executable's path and the command line. */
#ifndef ABI_PROCESSES_H
#define ABI_PROCESSES_H

enum process_text_kind {
	PROCESS_EXE,
	PROCESS_CMDLINE,
	PROCESS_TEXT_KINDS,
};

/* Values in place of a text's number. */
enum process_number {
	PROCESS_NOT_READ, /* not read yet */
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

/* The numbers of its texts, which do not change between two execs. */
struct process_numbers {
	__u64 number[PROCESS_TEXT_KINDS];
};

/* The text behind a number, which is a hash of the text. The text is surrounded by zeros. */
struct process_text {
	__u32 from;
	__u32 length;
	/*
	 * A path is written backwards from the end of the first half: the verifier must see room for any name beyond
	 * that.
	 */
	__u8 bytes[2 * PROCESS_TEXT];
};

#endif

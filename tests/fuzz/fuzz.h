/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the fuzz targets share. A target is one file with LLVMFuzzerTestOneInput():
 * linked with libFuzzer it is fuzzed, linked with replay.c it runs files. It does the
 * same thing each time it gets the same bytes: no clock, no random number, no thread,
 * no process, and whatever it opened it has closed when it returns.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

/* What is left of the input. Behind its end there are only zeros. */
struct input {
	const uint8_t *bytes;
	size_t len;
};

uint8_t input_u8(struct input *input);
uint16_t input_u16(struct input *input);
uint32_t input_u32(struct input *input);
uint64_t input_u64(struct input *input);
/* A number below n, which is at most 65536: of one byte where that is enough. */
uint32_t input_below(struct input *input, uint32_t n);
void input_copy(struct input *input, void *ret_bytes, size_t len);

/* Say what does not hold, and abort: the finding. */
#define CLAIM(is_true)                                                                             \
	do {                                                                                       \
		if (!(is_true))                                                                    \
			fuzz_fail(#is_true, __FILE__, __LINE__);                                   \
	} while (0)
void fuzz_fail(const char *claim, const char *file, int line) __attribute__((noreturn));

/*
 * A new fd that input chooses: of the kind that is expected where it goes, or any
 * other. Non-blocking, close-on-exec, the caller's; never -1.
 */
enum fuzz_fd {
	FUZZ_FD_EVENT,
	FUZZ_FD_MEMORY,
	FUZZ_FD_SEALED,
	FUZZ_FD_PIPE_READ,
	FUZZ_FD_PIPE_WRITE,
	FUZZ_FD_UNIX,
	FUZZ_FD_KINDS_USUAL,
	FUZZ_FD_PACKET = FUZZ_FD_KINDS_USUAL,
	FUZZ_FD_INET,
	FUZZ_FD_DEVICE,
	FUZZ_FD_DIRECTORY,
	FUZZ_FD_FILE,
	FUZZ_FD_EPOLL,
	FUZZ_FD_KINDS,
};
int fuzz_open(enum fuzz_fd kind);
int fuzz_open_any(struct input *input);
#define FUZZ_MEMORY_SIZE 65536 /* of what FUZZ_FD_MEMORY and FUZZ_FD_SEALED make */

/* The fds of this process, below 256. */
#define FUZZ_FDS_MAX 256
size_t fuzz_count_fds(void);

/* Where a process would end, and its fds with it: close those that were opened since. */
struct fuzz_fds {
	bool is_open[FUZZ_FDS_MAX];
};
void fuzz_note_fds(struct fuzz_fds *ret);
void fuzz_close_later_fds(const struct fuzz_fds *fds);

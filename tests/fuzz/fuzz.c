/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/fuzz.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

void input_copy(struct input *input, void *ret_bytes, size_t len)
{
	size_t n = len < input->len ? len : input->len;

	memset(ret_bytes, 0, len);
	if (n == 0)
		return;
	memcpy(ret_bytes, input->bytes, n);
	input->bytes += n;
	input->len -= n;
}

uint8_t input_u8(struct input *input)
{
	uint8_t value;

	input_copy(input, &value, sizeof(value));
	return value;
}

uint16_t input_u16(struct input *input)
{
	uint16_t value;

	input_copy(input, &value, sizeof(value));
	return value;
}

uint32_t input_u32(struct input *input)
{
	uint32_t value;

	input_copy(input, &value, sizeof(value));
	return value;
}

uint64_t input_u64(struct input *input)
{
	uint64_t value;

	input_copy(input, &value, sizeof(value));
	return value;
}

uint32_t input_below(struct input *input, uint32_t n)
{
	return (n <= 256 ? input_u8(input) : input_u16(input)) % n;
}

void fuzz_fail(const char *claim, const char *file, int line)
{
	fprintf(stderr, "%s:%d: not so: %s\n", file, line, claim);
	abort();
}

/* One end of a pair; the other one is closed. */
static int keep(int *pair, int which)
{
	close(pair[!which]);
	return pair[which];
}

static int open_memory(unsigned int seals)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, FUZZ_MEMORY_SIZE) < 0 ||
	    (seals && fcntl(fd, F_ADD_SEALS, seals) < 0))
		abort();
	return fd;
}

static int open_kind(enum fuzz_fd kind)
{
	int pair[2];

	switch (kind) {
	case FUZZ_FD_EVENT:
		return eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	case FUZZ_FD_MEMORY:
		return open_memory(0);
	case FUZZ_FD_SEALED:
		return open_memory(F_SEAL_SHRINK);
	case FUZZ_FD_PIPE_READ:
	case FUZZ_FD_PIPE_WRITE:
		return pipe2(pair, O_NONBLOCK | O_CLOEXEC) < 0
			       ? -1
			       : keep(pair, kind == FUZZ_FD_PIPE_WRITE);
	case FUZZ_FD_UNIX:
	case FUZZ_FD_PACKET:
		return socketpair(AF_UNIX,
				  (kind == FUZZ_FD_UNIX ? SOCK_STREAM : SOCK_SEQPACKET) |
					  SOCK_NONBLOCK | SOCK_CLOEXEC,
				  0, pair) < 0
			       ? -1
			       : keep(pair, 0);
	case FUZZ_FD_INET:
		return socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	case FUZZ_FD_DEVICE:
		return open("/dev/null", O_RDWR | O_CLOEXEC);
	case FUZZ_FD_DIRECTORY:
		return open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	case FUZZ_FD_FILE:
		return open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	case FUZZ_FD_EPOLL:
	case FUZZ_FD_KINDS:
		break;
	}
	return epoll_create1(EPOLL_CLOEXEC);
}

int fuzz_open(enum fuzz_fd kind)
{
	int fd = open_kind(kind);

	if (fd < 0) {
		perror("cannot open what the input asks for");
		abort();
	}
	return fd;
}

int fuzz_open_any(struct input *input)
{
	return fuzz_open((enum fuzz_fd)input_below(input, FUZZ_FD_KINDS));
}

/* One system call: what is no fd is said to be none. */
void fuzz_note_fds(struct fuzz_fds *ret)
{
	struct pollfd fds[FUZZ_FDS_MAX];

	for (int i = 0; i < FUZZ_FDS_MAX; i++)
		fds[i] = (struct pollfd){.fd = i};
	if (poll(fds, FUZZ_FDS_MAX, 0) < 0)
		abort();
	for (size_t i = 0; i < FUZZ_FDS_MAX; i++)
		ret->is_open[i] = !(fds[i].revents & POLLNVAL);
}

size_t fuzz_count_fds(void)
{
	struct fuzz_fds fds;
	size_t n = 0;

	fuzz_note_fds(&fds);
	for (size_t i = 0; i < FUZZ_FDS_MAX; i++)
		n += fds.is_open[i];
	return n;
}

void fuzz_close_later_fds(const struct fuzz_fds *fds)
{
	struct fuzz_fds now;

	fuzz_note_fds(&now);
	for (int i = 0; i < FUZZ_FDS_MAX; i++)
		if (now.is_open[i] && !fds->is_open[i])
			close(i);
}

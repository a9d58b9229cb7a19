/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker that does no work: it starts up as vsockd-worker does, says "READY"
 * and then does what one-byte orders on its channel say, until that ends.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "policy/policy.h"

static uint64_t option(int argc, char **argv, const char *name)
{
	size_t len = strlen(name);

	for (int i = 1; i < argc; i++) {
		if (!strncmp(argv[i], name, len))
			return strtoull(argv[i] + len, NULL, 10);
	}
	return 0;
}

static void say(const char *text)
{
	struct iovec part = {(void *)(uintptr_t)text, strlen(text)};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	if (sendmsg(POLICY_WORKER_CHANNEL_FD, &message, MSG_NOSIGNAL) < 0)
		_exit(3);
}

/* One allowed set of calls, and one way out for each wall that is to hold. */
static void obey(char order, char *buffer, size_t len)
{
	switch (order) {
	case 'b': /* use the buffer and give its pages back */
		buffer[len - 1] = 1;
		say(madvise(buffer, len, MADV_REMOVE) || buffer[len - 1] ? "no" : "yes");
		break;
	case 'o':
		(void)open("/", O_RDONLY);
		say("no");
		break;
	case 'f': /* a file that everybody may read */
		say(open("/proc/self/status", O_RDONLY) < 0 && errno == EACCES ? "yes" : "no");
		break;
	case 's':
		(void)socket(AF_UNIX, SOCK_STREAM, 0);
		say("no");
		break;
	case 'q':
		_exit(7);
	default:
		__builtin_trap();
	}
}

int main(int argc, char **argv)
{
	struct policy_limits limits = {
		.insecure = (uint32_t)option(argc, argv, "--insecure="),
		.n_files = option(argc, argv, "--files="),
	};
	size_t len = (size_t)option(argc, argv, "--buffer=");
	struct policy_failure failure;
	struct epoll_event event = {.events = EPOLLIN};
	char order;
	char *buffer;

	if (epoll_create1(EPOLL_CLOEXEC) != POLICY_WORKER_EPOLL_FD)
		return 2;
	buffer = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
		      POLICY_WORKER_BUFFER_FD, 0);
	if (buffer == MAP_FAILED)
		return 2;
	if (policy_enter(POLICY_WORKER, &limits, &failure)) {
		(void)fprintf(stderr, "%s\n", failure.text);
		return 1;
	}
	close(POLICY_WORKER_BUFFER_FD);
	say("READY");

	if (epoll_ctl(POLICY_WORKER_EPOLL_FD, EPOLL_CTL_ADD, POLICY_WORKER_CHANNEL_FD, &event))
		_exit(3);
	for (;;) {
		struct iovec part = {&order, 1};
		struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

		if (epoll_wait(POLICY_WORKER_EPOLL_FD, &event, 1, -1) != 1)
			_exit(3);
		if (recvmsg(POLICY_WORKER_CHANNEL_FD, &message, 0) != 1)
			_exit(0);
		obey(order, buffer, len);
	}
}

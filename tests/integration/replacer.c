/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/integration/replacer.h"

#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/tool.h"

char replacer_failure[256];

/* Request: version 1, command 16, the CID; three fields of fixed width. */
static bool send_request(int fd, uint64_t cid)
{
	uint8_t bytes[19] = {0x0d, 1, 0, 0, 0, 0x15, 16, 0, 0, 0, 0x19};

	memcpy(bytes + 11, &cid, sizeof(cid));
	return send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL) == sizeof(bytes);
}

/* Reply: End, which is empty where all is well, or has the text in its field 2. */
static bool read_reply(int fd, char *ret_failure, size_t size)
{
	uint8_t bytes[256];
	ssize_t n = recv(fd, bytes, sizeof(bytes), 0);
	size_t at = 2;

	assert_true(n >= 2);
	assert_int_equal(bytes[0], 0x0a);
	if (bytes[1] == 0)
		return true;
	if (bytes[1] & 0x80)
		at++; /* a length of two bytes */
	at += 5;      /* the status */
	assert_int_equal(bytes[at], 0x12);
	at += bytes[at + 1] & 0x80 ? 3 : 2;
	snprintf(ret_failure, size, "%.*s", (int)((size_t)n - at), (const char *)bytes + at);
	return false;
}

static void ask_next(struct replacer *replacer)
{
	if (replacer->is_asking || replacer->n_left == 0)
		return;
	replacer->n_left--;
	replacer->is_asking = true;
	assert_true(send_request(replacer->watch.fd, replacer->cid));
}

static void take_reply(struct watch *watch, short events)
{
	struct replacer *replacer = (struct replacer *)(void *)watch;

	(void)events;
	replacer->is_asking = false;
	if (read_reply(watch->fd, replacer->failure, sizeof(replacer->failure)))
		replacer->n_good++;
	else
		replacer->n_failed++;
	ask_next(replacer);
}

static int connect_control(const struct setup *setup)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/" TOOL_CONTROL, setup->daemon.directory);
	fd = socket_connect(path, SOCK_SEQPACKET, SETUP_LIMIT);
	assert_true(fd >= 0);
	return fd;
}

void replacer_start(struct replacer *replacer, struct setup *setup, struct guest *guest,
		    uint64_t cid, uint32_t n)
{
	*replacer = (struct replacer){
		.watch = {.fd = connect_control(setup), .events = POLLIN, .ready = take_reply},
		.cid = cid,
		.n_left = n,
	};
	guest_watch(guest, &replacer->watch);
	ask_next(replacer);
}

bool replacer_is_done(const struct replacer *replacer)
{
	return !replacer->is_asking && replacer->n_left == 0;
}

void replacer_end(struct replacer *replacer, struct guest *guest)
{
	guest_unwatch(guest, &replacer->watch);
	close(replacer->watch.fd);
}

static bool is_done(void *context)
{
	return replacer_is_done(context);
}

int replace_worker(struct setup *setup, struct guest *guest, uint64_t cid)
{
	struct replacer replacer;

	replacer_start(&replacer, setup, guest, cid, 1);
	assert_int_equal(guest_wait_until(guest, is_done, &replacer, SETUP_LIMIT), 0);
	replacer_end(&replacer, guest);
	snprintf(replacer_failure, sizeof(replacer_failure), "%s", replacer.failure);
	return replacer.n_good == 1 ? 0 : -1;
}

/* Until the daemon, or who started this, ends. */
static _Noreturn void replace_for_ever(const struct setup *setup, int fd, int milliseconds)
{
	const struct timespec pause = {.tv_sec = milliseconds / 1000,
				       .tv_nsec = milliseconds % 1000 * 1000000L};
	struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
	uint8_t bytes[256];

	for (size_t vm = 0;; vm = (vm + 1) % setup->n_vms) {
		if (!send_request(fd, setup_cid(vm)))
			_exit(0);
		poll(&poll_fd, 1, -1);
		if (recv(fd, bytes, sizeof(bytes), 0) <= 0)
			_exit(0);
		nanosleep(&pause, NULL);
	}
}

pid_t replacer_fork(const struct setup *setup, int milliseconds)
{
	pid_t parent = getpid(), pid;
	char refusal[256];
	int fd = connect_control(setup);

	/* Answered, so it was accepted: the fds of vsockd may be counted. */
	assert_true(send_request(fd, setup_cid(0)));
	assert_int_equal(socket_wait(fd, POLLIN, deadline_in(SETUP_LIMIT)), 0);
	assert_false(read_reply(fd, refusal, sizeof(refusal))); /* nobody is connected */
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(0);
		/* What a guest of this process closes is to be closed. */
		dup2(fd, STDERR_FILENO + 1);
		closefrom(STDERR_FILENO + 2);
		replace_for_ever(setup, STDERR_FILENO + 1, milliseconds);
	}
	close(fd);
	return pid;
}

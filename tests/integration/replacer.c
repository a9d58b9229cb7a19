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

#include "tests/frontend/operator.h"
#include "tests/integration/tool.h"

char replacer_failure[256];

static void ask_next(struct replacer *replacer)
{
	if (replacer->is_asking || replacer->n_left == 0)
		return;
	replacer->n_left--;
	replacer->is_asking = true;
	assert_int_equal(operator_ask_replace(replacer->watch.fd, replacer->cid), 0);
}

static void take_reply(struct watch *watch, short events)
{
	struct replacer *replacer = (struct replacer *)(void *)watch;
	int answer;

	(void)events;
	replacer->is_asking = false;
	answer = operator_take_answer(watch->fd, replacer->failure, sizeof(replacer->failure));
	assert_true(answer >= 0);
	if (answer == 0)
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
	fd = operator_connect(path, SETUP_LIMIT);
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
		if (operator_ask_replace(fd, setup_cid(vm)) < 0)
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
	assert_int_equal(operator_ask_replace(fd, setup_cid(0)), 0);
	assert_int_equal(socket_wait(fd, POLLIN, deadline_in(SETUP_LIMIT)), 0);
	/* Nobody is connected. */
	assert_int_equal(operator_take_answer(fd, refusal, sizeof(refusal)), 1);
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

/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A VMM that hands a running back-end to another process of the same host, as QEMU's work
 * on local migration has it: the vhost-user socket goes along by SCM_RIGHTS, the first
 * process exits, and no message says so. The session does not depend on who began it.
 */

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/setup.h"

#define KIB   1024u
#define LEN   (100 * KIB) /* each way in each part of a life; less than a window */
#define PORT  1234u
#define LIMIT SETUP_LIMIT

static uint8_t up[3 * LEN], down[3 * LEN];

/* In a child nothing may be asserted: it would go on with the other tests. */
static void must(bool is_true, int code)
{
	if (!is_true)
		_exit(code);
}

static void exchange(struct guest_connection *connection, size_t part)
{
	static uint8_t bytes[LEN];

	must(guest_send_all(connection, up + part * LEN, LEN, LIMIT) == 0, 10);
	must(guest_receive_all(connection, bytes, LEN, LIMIT) == (ssize_t)LEN, 11);
	must(memcmp(bytes, down + part * LEN, LEN) == 0, 12);
}

/* The second process: all that the first one knew, and the socket anew. */
static _Noreturn void live_on(struct guest *guest, struct guest_connection *connection, int socket,
			      int report)
{
	close(guest->vhost.fd);
	guest->vhost.fd = socket_take_fd(socket);
	must(guest->vhost.fd >= 0, 20);
	exchange(connection, 1);
	must(guest_stop(guest) == 0, 30);
	must(guest_resume(guest) == 0, 31);
	exchange(connection, 2);
	must(guest_finish(connection, LIMIT) == 0, 32);
	must(guest_violations(guest)[0] == '\0', 33);
	guest_end(guest);
	must(write(report, "", 1) == 1, 34);
	_exit(0);
}

/* The first process: it starts the guest, and leaves in the midst of its life. */
static _Noreturn void live(struct setup *setup, int report)
{
	const struct guest_options options = {.socket = setup->sockets[0], .timeout = LIMIT};
	struct guest_connection *connection;
	static struct guest guest;
	int pair[2];
	pid_t pid;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	must(guest_start(&guest, &options) == 0, 1);
	connection = guest_connect_wait(&guest, PACKET_HOST_CID, PORT, LIMIT);
	must(connection != NULL, 2);
	exchange(connection, 0);
	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, 3);
	pid = fork();
	must(pid >= 0, 4);
	if (pid == 0) {
		close(pair[0]);
		live_on(&guest, connection, pair[1], report);
	}
	must(socket_pass_fd(pair[0], guest.vhost.fd), 21);
	_exit(0);
}

static void test_a_session_outlives_the_process_that_began_it(void **state)
{
	struct setup *setup = *state;
	int listener = host_listen(setup->uds_paths[0], PORT), fd, status, report[2];
	static uint8_t bytes[3 * LEN];
	char byte;
	pid_t pid;

	pattern_fill(up, sizeof(up), 1, 0);
	pattern_fill(down, sizeof(down), 2, 0);
	assert_true(listener >= 0);
	assert_int_equal(pipe2(report, O_CLOEXEC), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		live(setup, report[1]);
	close(report[1]);
	fd = host_accept(listener, LIMIT);
	assert_true(fd >= 0);
	for (size_t i = 0; i < 3; i++) {
		assert_int_equal(host_write(fd, down + i * LEN, LEN, LIMIT), 0);
		assert_int_equal(host_read(fd, bytes + i * LEN, LEN, LIMIT), 0);
	}
	assert_memory_equal(bytes, up, sizeof(up));
	assert_int_equal(host_wait_end(fd, LIMIT), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	/* The second one is nobody's child here: it says that all was well, or just ends. */
	assert_int_equal(socket_wait(report[0], POLLIN, deadline_in(LIMIT)), 0);
	assert_int_equal(read(report[0], &byte, 1), 1);
	close(report[0]);
	close(fd);
	close(listener);
	assert_false(daemon_log_has(&setup->daemon, "session closed"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_a_session_outlives_the_process_that_began_it,
						setup_start_one, setup_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

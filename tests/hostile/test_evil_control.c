/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A client of the control socket that breaks every rule loses its connection;
 * guests, and other clients, feel nothing.
 */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "ipc/control_message.h"
#include "tests/frontend/socket.h"
#include "tests/hostile/rig.h"

#define CLIENTS_MAX 16 /* as in vsockctl(1) */

static struct rig rig;
static uint64_t seed = 1;

static uint8_t draw(void)
{
	seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint8_t)(seed >> 40);
}

static int set_up(void **state)
{
	(void)state;
	rig_start(&rig, "max-connections=16");
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	rig_stop(&rig);
	return 0;
}

static int connect_client(void)
{
	int fd = socket_connect(daemon_path(&rig.daemon, "control"), SOCK_SEQPACKET, RIG_LIMIT);

	assert_true(fd >= 0);
	return fd;
}

static void send_request(int fd, uint32_t version, uint32_t command, uint64_t cid, int passed)
{
	Control__Request request = CONTROL__REQUEST__INIT;
	struct channel_packet packet;

	request.version = version;
	request.command = command;
	request.cid = cid;
	control_encode_request(&request, passed, &packet);
	(void)channel_send(fd, &packet);
}

/* The status that ends the answer, or 1 when the connection ended instead. */
static int read_answer(int fd, char *ret_text)
{
	int64_t deadline = deadline_in(RIG_LIMIT);
	struct channel_packet packet;

	for (;;) {
		const Control__Reply *reply;
		int r = channel_receive(fd, &packet);

		if (r == CHANNEL_E_AGAIN) {
			assert_int_equal(socket_wait(fd, POLLIN, deadline), 0);
			continue;
		}
		if (r != 0)
			return 1;
		reply = control_decode_reply(&packet);
		assert_non_null(reply);
		if (reply->body_case != CONTROL__REPLY__BODY_END)
			continue;
		snprintf(ret_text, CONTROL_TEXT_MAX + 1, "%s", reply->end->text);
		return reply->end->status;
	}
}

static void check_client(const char *what)
{
	char text[CONTROL_TEXT_MAX + 1];
	int fd = connect_client();

	send_request(fd, CONTROL_VERSION, CONTROL_STATUS, 0, -1);
	if (read_answer(fd, text) != 0)
		fail_msg("%s: another client is not served", what);
	close(fd);
}

static void test_packets_that_are_no_requests_end_the_connection(void **state)
{
	static uint8_t bytes[70000];

	(void)state;
	for (int round = 0; round < 300; round++) {
		size_t len = round % 10 == 9 ? sizeof(bytes) : 1u + draw() % 255u;
		char text[CONTROL_TEXT_MAX + 1];
		int fd = connect_client();

		for (size_t i = 0; i < len; i++)
			bytes[i] = draw();
		(void)send(fd, bytes, len, MSG_NOSIGNAL);
		/* What happens to be one is answered. */
		(void)read_answer(fd, text);
		close(fd);
	}
	check_client("garbage");
	rig_check(&rig, "garbage on the control socket");
}

static void test_what_is_not_known_is_refused_in_words(void **state)
{
	char text[CONTROL_TEXT_MAX + 1];
	int fd = connect_client(), null = open("/dev/null", O_RDWR | O_CLOEXEC);

	(void)state;
	send_request(fd, CONTROL_VERSION + 1, CONTROL_STATUS, 0, -1);
	assert_int_equal(read_answer(fd, text), -EPROTONOSUPPORT);
	assert_non_null(strstr(text, "speaks version"));
	send_request(fd, CONTROL_VERSION, 0xffffffff, 0, -1);
	assert_int_equal(read_answer(fd, text), -ENOSYS);
	/* It is still good for what is right. */
	send_request(fd, CONTROL_VERSION, CONTROL_STATUS, 0, -1);
	assert_int_equal(read_answer(fd, text), 0);
	/* An fd is wanted with nothing. */
	send_request(fd, CONTROL_VERSION, CONTROL_STATUS, 0, null);
	assert_int_equal(read_answer(fd, text), 1);
	close(fd);
	close(null);
	rig_check(&rig, "requests that nobody knows");
}

static void test_more_clients_than_there_may_be_are_turned_away(void **state)
{
	char text[CONTROL_TEXT_MAX + 1];
	int fds[CLIENTS_MAX], fd;

	(void)state;
	for (int i = 0; i < CLIENTS_MAX; i++) {
		fds[i] = connect_client();
		send_request(fds[i], CONTROL_VERSION, CONTROL_STATUS, 0, -1);
		assert_int_equal(read_answer(fds[i], text), 0);
	}
	fd = connect_client();
	assert_int_equal(read_answer(fd, text), -EBUSY);
	assert_non_null(strstr(text, "too many"));
	close(fd);
	/* Those that were there are served still; one that leaves makes room. */
	send_request(fds[0], CONTROL_VERSION, CONTROL_STATUS, 0, -1);
	assert_int_equal(read_answer(fds[0], text), 0);
	for (int i = 0; i < CLIENTS_MAX; i++)
		close(fds[i]);
	rig_check(&rig, "a crowd of clients");
	check_client("a crowd of clients");
}

/* Asks and asks and reads no answer: it is left waiting, and dropped in the end. */
static void test_a_client_that_does_not_read_is_dropped(void **state)
{
	int64_t deadline = deadline_in(2 * RIG_LIMIT);
	int fd = connect_client();
	struct pollfd event = {.fd = fd, .events = POLLOUT};

	(void)state;
	while (!(event.revents & (POLLHUP | POLLERR))) {
		send_request(fd, CONTROL_VERSION, CONTROL_STATUS, 0, -1);
		assert_true(poll(&event, 1, deadline_left(deadline)) >= 0);
		if (deadline_left(deadline) == 0)
			fail_msg("a client that reads nothing is kept");
	}
	close(fd);
	check_client("one that does not read");
	rig_check(&rig, "a client that does not read");
}

static void test_a_client_may_leave_at_any_moment(void **state)
{
	static const struct {
		uint32_t command;
		uint64_t cid;
	} commands[] = {
		{CONTROL_STATUS, 0},   {CONTROL_SHOW, 3},	   {CONTROL_CONNECTIONS, 0},
		{CONTROL_METRICS, 0},  {CONTROL_CONNECT, 3},	   {CONTROL_LISTEN, 3},
		{CONTROL_COUNTERS, 0}, {CONTROL_CONNECT, RIG_CID}, {CONTROL_KILL, 3},
	};

	(void)state;
	for (int round = 0; round < 200; round++) {
		size_t i = (size_t)round % (sizeof(commands) / sizeof(commands[0]));
		int fd = connect_client();

		if (round % 4)
			send_request(fd, CONTROL_VERSION, commands[i].command, commands[i].cid, -1);
		if (round % 4 == 2)
			shutdown(fd, SHUT_WR);
		close(fd);
	}
	check_client("those that left");
	rig_check(&rig, "clients that leave");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_packets_that_are_no_requests_end_the_connection),
		cmocka_unit_test(test_what_is_not_known_is_refused_in_words),
		cmocka_unit_test(test_more_clients_than_there_may_be_are_turned_away),
		cmocka_unit_test(test_a_client_that_does_not_read_is_dropped),
		cmocka_unit_test(test_a_client_may_leave_at_any_moment),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/spawner_channel.h"
#include "tests/unit/failing_calls.h"

/* The spawner's end and the front's, and what goes along with a reply. */
static struct {
	int spawner, front;
	int fds[SPAWNER_CHANNEL_FDS_MAX];
} rig;

static int set_up(void **state)
{
	int pair[2];

	(void)state;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0 || pipe(rig.fds) < 0)
		return -1;
	rig.spawner = pair[0];
	rig.front = pair[1];
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	close(rig.spawner);
	close(rig.front);
	close(rig.fds[0]);
	close(rig.fds[1]);
	return 0;
}

static int send_spawned(uint32_t number)
{
	const struct spawner_reply reply = {.kind = SPAWNER_SPAWNED, .number = number};

	return spawner_channel_send(rig.spawner, &reply, rig.fds, SPAWNER_CHANNEL_FDS_MAX);
}

/* The next reply, with so many fds; -1: there is none. */
static int take(struct spawner_reply *ret_reply)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(4 * sizeof(int))];
	} control;
	struct iovec part = {ret_reply, sizeof(*ret_reply)};
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control.room),
	};
	const struct cmsghdr *header;
	int n_fds, fd;

	if (recvmsg(rig.front, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) < 0)
		return -1;
	header = CMSG_FIRSTHDR(&message);
	n_fds = header ? (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int)) : 0;
	for (int i = 0; i < n_fds; i++) {
		memcpy(&fd, CMSG_DATA(header) + (size_t)i * sizeof(fd), sizeof(fd));
		close(fd);
	}
	return n_fds;
}

static void test_a_reply_whose_fds_cannot_go_along_says_so(void **state)
{
	struct spawner_reply reply;

	(void)state;
	failing_call_plan(CALL_SENDMSG, rig.spawner, 1, ETOOMANYREFS);
	assert_int_equal(send_spawned(7), SPAWNER_CHANNEL_E_BARE);
	assert_true(failing_call_has_come());
	assert_int_equal(take(&reply), 0);
	assert_int_equal(reply.error, ETOOMANYREFS);
	assert_int_equal(reply.number, 7);
	assert_int_equal(take(&reply), -1);
}

/* By the time there is room again there may be some for the fds, too. */
static void test_a_reply_that_finds_no_room_either_goes_out_later_once_and_whole(void **state)
{
	struct spawner_reply reply;
	uint32_t n = 0;

	(void)state;
	while (send_spawned(n) == 0)
		n++;
	assert_true(n > 0);
	failing_call_plan(CALL_SENDMSG, rig.spawner, 1, ETOOMANYREFS);
	assert_int_equal(send_spawned(n), SPAWNER_CHANNEL_E_AGAIN);
	assert_true(failing_call_has_come());
	for (uint32_t i = 0; i < n; i++) {
		assert_int_equal(take(&reply), SPAWNER_CHANNEL_FDS_MAX);
		assert_int_equal(reply.number, i);
	}
	assert_int_equal(take(&reply), -1);
	assert_int_equal(send_spawned(n), 0);
	assert_int_equal(take(&reply), SPAWNER_CHANNEL_FDS_MAX);
	assert_int_equal(reply.number, n);
	assert_int_equal(reply.error, 0);
	assert_int_equal(take(&reply), -1);
}

static void test_what_passes_is_tried_again_and_what_does_not_is_told(void **state)
{
	static const struct {
		int error, result;
	} rows[] = {
		{EAGAIN, SPAWNER_CHANNEL_E_AGAIN},
		{EINTR, SPAWNER_CHANNEL_E_AGAIN},
		{ENOBUFS, SPAWNER_CHANNEL_E_AGAIN},
		{ENOMEM, SPAWNER_CHANNEL_E_AGAIN},
		{EPIPE, SPAWNER_CHANNEL_E_CLOSED},
		{ECONNRESET, SPAWNER_CHANNEL_E_CLOSED},
		{EMSGSIZE, -EMSGSIZE},
	};
	struct spawner_reply reply;

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		failing_call_plan(CALL_SENDMSG, rig.spawner, 1, rows[i].error);
		assert_int_equal(send_spawned(0), rows[i].result);
		assert_int_equal(take(&reply), -1);
	}
}

#define WITH_RIG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_RIG(test_a_reply_whose_fds_cannot_go_along_says_so),
		WITH_RIG(test_a_reply_that_finds_no_room_either_goes_out_later_once_and_whole),
		WITH_RIG(test_what_passes_is_tried_again_and_what_does_not_is_told),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

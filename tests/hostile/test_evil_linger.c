/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A TCP connection whose other end reads nothing, and which is to linger when it is
 * closed: whoever closes it last waits a minute. A VMM hands such sockets over, keeps
 * none, and puts them where nobody looks. The front serves all VMs and must not wait.
 */

#include <errno.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/frontend/guest.h"
#include "tests/hostile/rig.h"

#define LINGER_S 300 /* more than any wait of this test */
#define FDS_SENT 40  /* of one message; more than any may have */

static struct rig rig;
static int peers[8], n_peers; /* the ends that stay here, and read nothing */

static int set_up(void **state)
{
	(void)state;
	rig_start(&rig, "max-connections=16,offer=inband-notifications");
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	while (n_peers > 0)
		close(peers[--n_peers]);
	rig_stop(&rig);
	return 0;
}

static int make_lingering(void)
{
	const struct linger linger = {.l_onoff = 1, .l_linger = LINGER_S};
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(address);
	static uint8_t bytes[65536];
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(listener >= 0 && fd >= 0);
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0) {
		print_message("skipped: this host has no loopback device\n");
		skip();
	}
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &len), 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&address, len), 0);
	peers[n_peers] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	assert_true(peers[n_peers++] >= 0);
	close(listener);
	while (send(fd, bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
		;
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)), 0);
	return fd;
}

/* false when the other end is closed already. */
static bool try_send(const struct vhost *vhost, const void *bytes, size_t len, const int *fds,
		     size_t n_fds)
{
	union {
		char room[CMSG_SPACE(FDS_SENT * sizeof(int))];
		struct cmsghdr header;
	} control = {.room = {0}};
	struct iovec part = {(void *)(uintptr_t)bytes, len};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	if (n_fds > 0) {
		message.msg_control = control.room;
		message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(&control.header), fds, n_fds * sizeof(int));
	}
	return sendmsg(vhost->fd, &message, MSG_NOSIGNAL) == (ssize_t)len;
}

static void send_bytes(const struct vhost *vhost, const void *bytes, size_t len, const int *fds,
		       size_t n_fds)
{
	assert_true(try_send(vhost, bytes, len, fds, n_fds));
}

/* A new session of the same VM would wait as long as the front does. */
static void end_session(struct vhost *vhost, const char *what)
{
	vhost_close(vhost);
	rig_check_service(&rig, what);
}

static void test_a_socket_behind_a_message_that_ends_the_session_is_not_waited_for(void **state)
{
	const uint32_t bad[3] = {VHOST_GET_FEATURES, /* no version */ 0, 0};
	const uint32_t good[3] = {VHOST_GET_FEATURES, VHOST_FLAG_VERSION, 0};
	struct vhost vhost;
	int fd = make_lingering();

	(void)state;
	rig.n_kept_max++;
	/* Until the second message is there before the first one has ended the session. */
	for (;;) {
		rig_connect_frontend(&rig, &vhost);
		send_bytes(&vhost, bad, sizeof(bad), NULL, 0);
		if (try_send(&vhost, good, sizeof(good), &fd, 1))
			break;
		vhost_close(&vhost);
	}
	close(fd);
	assert_int_equal(vhost_wait_closed(&vhost), 0);
	end_session(&vhost, "behind a message");
	rig_check(&rig, "behind a message");
}

static void test_a_socket_beyond_those_that_a_message_may_have_is_not_waited_for(void **state)
{
	const uint32_t message[3] = {VHOST_GET_FEATURES, VHOST_FLAG_VERSION, 0};
	int fds[FDS_SENT], pair[2];
	struct vhost vhost;

	(void)state;
	assert_int_equal(pipe(pair), 0);
	for (size_t i = 0; i < FDS_SENT - 1; i++)
		fds[i] = pair[0];
	fds[FDS_SENT - 1] = make_lingering();
	rig.n_kept_max++;
	rig_connect_frontend(&rig, &vhost);
	send_bytes(&vhost, message, sizeof(message), fds, FDS_SENT);
	close(fds[FDS_SENT - 1]);
	close(pair[0]);
	close(pair[1]);
	end_session(&vhost, "one of many");
	rig_check(&rig, "one of many");
}

static void test_a_socket_that_comes_with_a_later_byte_is_not_waited_for(void **state)
{
	const uint32_t header[3] = {VHOST_SET_FEATURES, VHOST_FLAG_VERSION, 8};
	const uint64_t payload = 0;
	struct vhost vhost;
	int fd = make_lingering();

	(void)state;
	rig.n_kept_max++;
	rig_connect_frontend(&rig, &vhost);
	send_bytes(&vhost, header, sizeof(header), NULL, 0);
	send_bytes(&vhost, &payload, sizeof(payload), &fd, 1);
	close(fd);
	end_session(&vhost, "with a later byte");
	rig_check(&rig, "with a later byte");
}

/* Its worker closes it, and is ended when the next one is dismissed. */
static void test_a_socket_in_the_queue_of_the_back_end_channel_is_not_waited_for(void **state)
{
	const uint64_t features = BIT64(VHOST_PROTOCOL_REPLY_ACK) |
				  BIT64(VHOST_PROTOCOL_BACKEND_REQ) |
				  BIT64(VHOST_PROTOCOL_INBAND_NOTIFICATIONS);

	(void)state;
	for (unsigned int i = 0; i < 2; i++) {
		int channel[2], next[2], fd = make_lingering();
		struct vhost vhost, theirs = {.fd = -1};

		rig_connect_frontend(&rig, &vhost);
		assert_int_equal(vhost_set_u64(&vhost, VHOST_SET_PROTOCOL_FEATURES, features), 0);
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, channel), 0);
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, next), 0);
		assert_int_equal(
			vhost_send(&vhost, VHOST_SET_BACKEND_REQ_FD, NULL, 0, &channel[1], 1), 0);
		theirs.fd = channel[0];
		send_bytes(&theirs, "x", 1, &fd, 1);
		close(fd);
		close(channel[0]);
		close(channel[1]);
		/* Replaced, or there until the end. */
		if (i == 0)
			assert_int_equal(
				vhost_send(&vhost, VHOST_SET_BACKEND_REQ_FD, NULL, 0, &next[1], 1),
				0);
		close(next[0]);
		close(next[1]);
		end_session(&vhost, "channel");
	}
	rig_check_service(&rig, "channel");
	rig_check(&rig, "channel");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_a_socket_behind_a_message_that_ends_the_session_is_not_waited_for),
		TEST(test_a_socket_beyond_those_that_a_message_may_have_is_not_waited_for),
		TEST(test_a_socket_that_comes_with_a_later_byte_is_not_waited_for),
		TEST(test_a_socket_in_the_queue_of_the_back_end_channel_is_not_waited_for),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */

/* Front-ends that break the protocol: by one message, by many, by silence. */

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/setup.h"
#include "tests/integration/transfer.h"

#define KIB   1024u
#define LIMIT SETUP_LIMIT

#define NO_FD	  VHOST_RING_NO_FD
#define FDS_SENT  40 /* more than a message may have */
#define BYTES_MAX 1280

/* What fds are sent, one letter each. */
enum { EVENTFD = 'e', MEMORY = 'm', PIPE = 'p', SOCKET = 's' };

static void open_fds(const char *kinds, int *ret_fds)
{
	int pair[2];

	for (size_t i = 0; kinds[i]; i++) {
		switch (kinds[i]) {
		case EVENTFD:
			ret_fds[i] = eventfd(0, EFD_CLOEXEC);
			break;
		case MEMORY:
			ret_fds[i] = memfd_create("guest", MFD_CLOEXEC);
			assert_int_equal(ftruncate(ret_fds[i], 1 << 20), 0);
			break;
		case PIPE:
			assert_int_equal(pipe(pair), 0);
			close(pair[1]);
			ret_fds[i] = pair[0];
			break;
		default:
			ret_fds[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		}
		assert_true(ret_fds[i] >= 0);
	}
}

/* More fds than the library lets a test send. Returns bytes sent or -1. */
static ssize_t send_with_fds(int socket, const void *bytes, size_t len, const char *kinds)
{
	union {
		char bytes[CMSG_SPACE(FDS_SENT * sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct iovec part = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = len};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	size_t n = strlen(kinds);
	int fds[FDS_SENT];
	ssize_t sent;

	open_fds(kinds, fds);
	if (n > 0) {
		message.msg_control = control.bytes;
		message.msg_controllen = CMSG_SPACE(n * sizeof(int));
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		control.align.cmsg_len = CMSG_LEN(n * sizeof(int));
		memcpy(CMSG_DATA(&control.align), fds, n * sizeof(int));
	}
	sent = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (n > 0)
		close(fds[--n]);
	return sent;
}

static void check_works(struct setup *setup)
{
	setup_guest(setup, 0, (struct guest_options){0});
	transfer_all(setup, 0, 1000, 50 * KIB);
	setup_end_guest(setup, 0);
}

/* ---- one message ---- */

struct malformed {
	uint32_t request, size;
	uint64_t words[6];
	const char *fds;
	const char *text; /* in the log */
};

#define RING(ring, value) ((uint64_t)(value) << 32 | (ring))

static const struct malformed cases[] = {
	/* Sizes. */
	{VHOST_GET_FEATURES, 8, {0}, "", "GET_FEATURES"},
	{VHOST_SET_FEATURES, 0, {0}, "", "SET_FEATURES"},
	{VHOST_SET_FEATURES, 4, {0}, "", "SET_FEATURES"},
	{VHOST_SET_FEATURES, 16, {0}, "", "SET_FEATURES"},
	{VHOST_SET_OWNER, 8, {0}, "", "SET_OWNER"},
	{VHOST_RESET_OWNER, 8, {0}, "", "RESET_OWNER"},
	{VHOST_RESET_DEVICE, 8, {0}, "", "RESET_DEVICE"},
	{VHOST_SET_VRING_NUM, 4, {0}, "", "SET_VRING_NUM"},
	{VHOST_SET_VRING_ADDR, 32, {0}, "", "SET_VRING_ADDR"},
	{VHOST_SET_VRING_ADDR, 48, {0}, "", "SET_VRING_ADDR"},
	{VHOST_GET_VRING_BASE, 16, {0}, "", "GET_VRING_BASE"},
	{VHOST_SET_VRING_KICK, 4, {0}, "e", "SET_VRING_KICK"},
	{VHOST_GET_CONFIG, 8, {0}, "", "GET_CONFIG"},
	{VHOST_GET_CONFIG, 12 + 8, {RING(0, 4)}, "", "GET_CONFIG"},
	{VHOST_GET_CONFIG, 12 + 300, {RING(0, 300)}, "", "GET_CONFIG"},
	{VHOST_SET_CONFIG, 12 + 8, {RING(0, 4)}, "", "SET_CONFIG"},
	{VHOST_ADD_MEM_REG, 32, {0}, "m", "ADD_MEM_REG"},
	{VHOST_SET_MEM_TABLE, 4, {0}, "", "SET_MEM_TABLE"},
	{VHOST_SET_MEM_TABLE, 8 + 32, {2, 0, 4096}, "mm", "SET_MEM_TABLE"},
	{VHOST_SET_MEM_TABLE, 8 + 32, {0, 0, 4096}, "m", "SET_MEM_TABLE"},
	{VHOST_SET_MEM_TABLE, 8 + 32, {UINT32_MAX, 0, 4096}, "m", "SET_MEM_TABLE"},
	{VHOST_SET_MEM_TABLE,
	 8 + 33 * 32,
	 {33},
	 "mmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm",
	 "SET_MEM_TABLE"},
	/* Values. */
	{VHOST_SET_FEATURES, 8, {UINT64_MAX}, "", "SET_FEATURES"},
	{VHOST_SET_VRING_NUM, 8, {RING(0, 0)}, "", "SET_VRING_NUM"},
	{VHOST_SET_VRING_NUM, 8, {RING(0, 3)}, "", "SET_VRING_NUM"},
	{VHOST_SET_VRING_NUM, 8, {RING(0, 65536)}, "", "SET_VRING_NUM"},
	{VHOST_SET_VRING_NUM, 8, {RING(3, 128)}, "", "SET_VRING_NUM"},
	{VHOST_SET_VRING_NUM, 8, {RING(UINT32_MAX, 128)}, "", "SET_VRING_NUM"},
	{VHOST_SET_VRING_BASE, 8, {RING(3, 0)}, "", "SET_VRING_BASE"},
	{VHOST_GET_VRING_BASE, 8, {RING(3, 0)}, "", "GET_VRING_BASE"},
	{VHOST_SET_VRING_ENABLE, 8, {RING(3, 1)}, "", "SET_VRING_ENABLE"},
	{VHOST_SET_VRING_ENABLE, 8, {RING(0, 2)}, "", "SET_VRING_ENABLE"},
	{VHOST_SET_VRING_ADDR, 40, {RING(3, 0)}, "", "SET_VRING_ADDR"},
	{VHOST_SET_VRING_ADDR, 40, {RING(0, 0), 8, 0, 0}, "", "SET_VRING_ADDR"},
	{VHOST_SET_VRING_ADDR, 40, {RING(0, 0), 0, 2, 0}, "", "SET_VRING_ADDR"},
	{VHOST_SET_VRING_ADDR, 40, {RING(0, 0), 0, 0, 1}, "", "SET_VRING_ADDR"},
	{VHOST_SET_VRING_KICK, 8, {3}, "e", "SET_VRING_KICK"},
	{VHOST_SET_VRING_KICK, 8, {0xff | NO_FD}, "", "SET_VRING_KICK"},
	{VHOST_SET_VRING_KICK, 8, {0}, "e", "SET_VRING_KICK: ring 0 has no size"},
	{VHOST_SET_VRING_CALL, 8, {3}, "e", "SET_VRING_CALL"},
	{VHOST_SET_VRING_ERR, 8, {3}, "e", "SET_VRING_ERR"},
	{VHOST_REM_MEM_REG, 40, {0, 4096, 4096, 4096}, "", "REM_MEM_REG"},
	/* Fds: too few, too many, of another kind. */
	{VHOST_SET_OWNER, 0, {0}, "e", "SET_OWNER"},
	{VHOST_SET_VRING_NUM, 8, {RING(0, 128)}, "e", "SET_VRING_NUM"},
	{VHOST_GET_FEATURES, 0, {0}, "e", "GET_FEATURES"},
	{VHOST_SET_VRING_CALL, 8, {0}, "", "SET_VRING_CALL"},
	{VHOST_SET_VRING_CALL, 8, {0}, "ee", "SET_VRING_CALL"},
	{VHOST_SET_VRING_CALL, 8, {NO_FD}, "e", "SET_VRING_CALL"},
	{VHOST_SET_VRING_CALL, 8, {0}, "m", "SET_VRING_CALL"},
	{VHOST_SET_VRING_CALL, 8, {0}, "p", "SET_VRING_CALL"},
	{VHOST_SET_VRING_ERR, 8, {0}, "s", "SET_VRING_ERR"},
	{VHOST_SET_VRING_KICK, 8, {0}, "s", "SET_VRING_KICK"},
	{VHOST_ADD_MEM_REG, 40, {0, 0, 4096}, "", "ADD_MEM_REG"},
	{VHOST_ADD_MEM_REG, 40, {0, 0, 4096}, "mm", "ADD_MEM_REG"},
	{VHOST_ADD_MEM_REG, 40, {0, 0, 4096}, "e", "ADD_MEM_REG"},
	{VHOST_ADD_MEM_REG, 40, {0, 0, 4096}, "p", "ADD_MEM_REG"},
	{VHOST_SET_MEM_TABLE, 8 + 32, {1, 0, 4096}, "", "SET_MEM_TABLE"},
	{VHOST_SET_MEM_TABLE, 8 + 32, {1, 0, 4096}, "mm", "SET_MEM_TABLE"},
	{VHOST_SET_MEM_TABLE, 8 + 32, {1, 0, 4096}, "s", "SET_MEM_TABLE"},
	/* Requests that this device does not know. */
	{0, 0, {0}, "", "message 0 "},
	{19, 8, {0}, "", "message 19 "},
	{28, 0, {0}, "e", "message 28 "},
	{99, 8, {0}, "em", "message 99 "},
	{UINT32_MAX, 0, {0}, "", "message 4294967295 "},
};

#define N_CASES (sizeof(cases) / sizeof(cases[0]))

static void start_session(struct setup *setup, struct vhost *ret_vhost, bool has_acks)
{
	uint64_t features;

	assert_int_equal(vhost_connect(setup->sockets[0], LIMIT, ret_vhost), 0);
	assert_int_equal(vhost_get_u64(ret_vhost, VHOST_GET_FEATURES, &features), 0);
	features &= ~BIT64(VIRTIO_RING_PACKED); /* whose size may be anything */
	assert_int_equal(vhost_set_u64(ret_vhost, VHOST_SET_FEATURES, features), 0);
	assert_int_equal(vhost_get_u64(ret_vhost, VHOST_GET_PROTOCOL_FEATURES, &features), 0);
	if (!has_acks)
		features &= ~BIT64(VHOST_PROTOCOL_REPLY_ACK);
	assert_int_equal(vhost_set_u64(ret_vhost, VHOST_SET_PROTOCOL_FEATURES, features), 0);
}

/* Requests with a reply of their own are not NACKed. */
static bool has_reply(uint32_t request)
{
	return request == VHOST_GET_FEATURES || request == VHOST_GET_VRING_BASE ||
	       request == VHOST_GET_CONFIG;
}

static void send_malformed(struct vhost *vhost, const struct malformed *malformed)
{
	const struct vhost_header header = {
		.request = malformed->request,
		.flags = VHOST_FLAG_VERSION | VHOST_FLAG_NEED_REPLY,
		.size = malformed->size,
	};
	uint8_t bytes[BYTES_MAX] = {0};
	size_t len = sizeof(header) + malformed->size;

	assert_true(len <= sizeof(bytes));
	memcpy(bytes, &header, sizeof(header));
	memcpy(bytes + sizeof(header), malformed->words, sizeof(malformed->words));
	assert_int_equal(send_with_fds(vhost->fd, bytes, len, malformed->fds), len);
}

/* close() of a socket may have to wait, so vsockd keeps those that nobody asked for. */
static void expect_kept(struct setup *setup, const char *fds)
{
	for (; setup->n_fds >= 0 && *fds; fds++)
		setup->n_fds += *fds == SOCKET;
}

static void check_malformed(struct setup *setup, const struct malformed *malformed, bool has_acks)
{
	struct vhost vhost;
	uint64_t value = 0;

	start_session(setup, &vhost, has_acks);
	send_malformed(&vhost, malformed);
	if (has_acks && !has_reply(malformed->request)) {
		assert_int_equal(vhost_receive(&vhost, malformed->request, &value, 8, NULL), 8);
		assert_int_not_equal(value, 0);
		assert_int_equal(vhost_get_u64(&vhost, VHOST_GET_FEATURES, &value), 0);
	} else {
		assert_int_equal(vhost_wait_closed(&vhost), 0);
	}
	vhost_close(&vhost);
	expect_kept(setup, malformed->fds);
	assert_int_equal(daemon_wait_log(&setup->daemon, malformed->text, LIMIT), 0);
	check_works(setup);
}

/* A daemon for each: the log of one VM is limited, and no line may be an older one's. */
static void test_each_malformed_message_is_refused_with_its_name_in_the_log(void **state)
{
	(void)state;
	for (size_t i = 0; i < 2 * N_CASES; i++) {
		struct setup *setup;
		const struct malformed *at = &cases[i / 2];

		print_message("request %u, size %u, words 0x%lx 0x%lx, fds \"%s\", %s\n",
			      at->request, at->size, (unsigned long)at->words[0],
			      (unsigned long)at->words[1], at->fds, i % 2 ? "acks" : "no acks");
		assert_int_equal(setup_start_one((void **)&setup), 0);
		check_malformed(setup, at, i % 2);
		setup_end((void **)&setup);
	}
}

static void test_a_message_that_was_not_negotiated_is_refused(void **state)
{
	static const uint32_t requests[] = {
		VHOST_GET_QUEUE_NUM,	 VHOST_GET_CONFIG,  VHOST_SET_CONFIG, VHOST_RESET_DEVICE,
		VHOST_GET_MAX_MEM_SLOTS, VHOST_ADD_MEM_REG, VHOST_REM_MEM_REG};
	struct setup *setup = *state;

	for (size_t i = 0; i < sizeof(requests) / sizeof(requests[0]); i++) {
		const uint32_t message[] = {requests[i], VHOST_FLAG_VERSION, 0};
		struct vhost vhost;

		assert_int_equal(vhost_connect(setup->sockets[0], LIMIT, &vhost), 0);
		assert_int_equal(vhost_send_raw(&vhost, message, sizeof(message), NULL, 0), 0);
		assert_int_equal(vhost_wait_closed(&vhost), 0);
		vhost_close(&vhost);
	}
	assert_int_equal(daemon_wait_log(&setup->daemon, "REM_MEM_REG", LIMIT), 0);
	check_works(setup);
}

static void send_sockets(struct setup *setup, const char *fds)
{
	const struct vhost_header header = {VHOST_SET_OWNER, VHOST_FLAG_VERSION, 0};
	struct vhost vhost;

	assert_int_equal(vhost_connect(setup->sockets[0], LIMIT, &vhost), 0);
	assert_int_equal(send_with_fds(vhost.fd, &header, sizeof(header), fds), sizeof(header));
	assert_int_equal(vhost_wait_closed(&vhost), 0);
	vhost_close(&vhost);
	expect_kept(setup, fds);
}

static void test_too_many_fds_that_cannot_be_closed_cost_that_vm_alone(void **state)
{
	struct setup *setup = *state;
	struct vhost vhost;
	uint64_t features;

	send_sockets(setup, "ssssssssssssssss");
	check_works(setup);
	assert_false(daemon_log_has(&setup->daemon, "cannot be closed"));
	send_sockets(setup, "s");
	assert_int_equal(daemon_wait_log(&setup->daemon, "cannot be closed", LIMIT), 0);
	assert_int_equal(vhost_connect(setup->sockets[0], LIMIT, &vhost), 0);
	vhost.timeout = 50;
	assert_int_equal(vhost_get_u64(&vhost, VHOST_GET_FEATURES, &features), -ETIMEDOUT);
	vhost_close(&vhost);
	setup_guest(setup, 1, (struct guest_options){0});
	transfer_all(setup, 1, 1000, 300 * KIB);
}

/* ---- framing ---- */

static void expect_closed(struct setup *setup, const void *bytes, size_t len, const char *fds,
			  const char *text)
{
	struct vhost vhost;

	assert_int_equal(vhost_connect(setup->sockets[0], LIMIT, &vhost), 0);
	assert_int_equal(send_with_fds(vhost.fd, bytes, len, fds), len);
	assert_int_equal(vhost_wait_closed(&vhost), 0);
	vhost_close(&vhost);
	assert_int_equal(daemon_wait_log(&setup->daemon, text, LIMIT), 0);
	check_works(setup);
}

static void test_a_malformed_header_ends_the_session(void **state)
{
	static const struct {
		struct vhost_header header;
		const char *text;
	} headers[] = {
		{{VHOST_GET_FEATURES, 0, 0}, "flags 0x0"},
		{{VHOST_GET_FEATURES, 2, 0}, "flags 0x2"},
		{{VHOST_GET_FEATURES, 3, 0}, "flags 0x3"},
		{{VHOST_GET_FEATURES, 5, 0}, "flags 0x5"},
		{{VHOST_GET_FEATURES, 0x11, 0}, "flags 0x11"},
		{{VHOST_GET_FEATURES, 0x80000001, 0}, "flags 0x80000001"},
		{{VHOST_SET_FEATURES, 1, 4097}, "payload of 4097 bytes"},
		{{VHOST_SET_FEATURES, 1, UINT32_MAX}, "payload of 4294967295 bytes"},
	};

	for (size_t i = 0; i < sizeof(headers) / sizeof(headers[0]); i++)
		expect_closed(*state, &headers[i].header, sizeof(headers[i].header), "",
			      headers[i].text);
}

static void test_more_fds_than_any_message_has_end_the_session(void **state)
{
	const struct vhost_header header = {VHOST_GET_FEATURES, VHOST_FLAG_VERSION, 0};

	expect_closed(*state, &header, sizeof(header), "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee",
		      "more than 32 fds");
}

static void test_fds_with_a_later_byte_end_the_session(void **state)
{
	const struct vhost_header header = {VHOST_SET_VRING_CALL, VHOST_FLAG_VERSION, 8};
	struct setup *setup = *state;
	struct vhost vhost;

	assert_int_equal(vhost_connect(setup->sockets[0], LIMIT, &vhost), 0);
	assert_int_equal(send_with_fds(vhost.fd, &header, 12, ""), 12);
	assert_int_equal(send_with_fds(vhost.fd, "\0\0\0\0\0\0\0", 8, "e"), 8);
	assert_int_equal(vhost_wait_closed(&vhost), 0);
	vhost_close(&vhost);
	assert_int_equal(daemon_wait_log(&setup->daemon, "fds came with byte", LIMIT), 0);
	check_works(setup);
}

static void test_a_front_end_that_leaves_within_a_message_is_noted(void **state)
{
	const struct vhost_header header = {VHOST_SET_VRING_CALL, VHOST_FLAG_VERSION, 8};
	struct setup *setup = *state;
	struct vhost vhost;

	for (size_t len = 1; len < 20; len++) {
		uint8_t message[20] = {0};

		memcpy(message, &header, sizeof(header));
		/* One that has its worker: it reads at once. */
		start_session(setup, &vhost, false);
		assert_int_equal(send_with_fds(vhost.fd, message, len, "ememem"), len);
		vhost_close(&vhost);
	}
	assert_int_equal(daemon_wait_log(&setup->daemon, "ended at byte 1 ", LIMIT), 0);
	check_works(setup);
}

static void test_a_message_may_come_byte_by_byte_and_hangs_nobody_meanwhile(void **state)
{
	const struct vhost_header header = {VHOST_GET_FEATURES, VHOST_FLAG_VERSION, 0};
	struct setup *setup = *state;
	struct vhost vhost;
	uint64_t features;

	assert_int_equal(vhost_connect(setup->sockets[0], LIMIT, &vhost), 0);
	for (size_t i = 0; i < sizeof(header); i++) {
		assert_int_equal(vhost_send_raw(&vhost, (const char *)&header + i, 1, NULL, 0), 0);
		if (i == 6) {
			setup_guest(setup, 1, (struct guest_options){0});
			transfer_all(setup, 1, 1000, 50 * KIB);
		}
	}
	assert_int_equal(vhost_receive(&vhost, VHOST_GET_FEATURES, &features, 8, NULL), 8);
	vhost_close(&vhost);
}

static void test_a_front_end_that_takes_no_answer_hangs_nobody(void **state)
{
	const struct vhost_header header = {VHOST_GET_FEATURES, VHOST_FLAG_VERSION, 0};
	struct setup *setup = *state;
	struct vhost vhost;
	size_t n_sent = 0, n_answers = 0;
	uint64_t features;

	assert_int_equal(vhost_connect(setup->sockets[0], LIMIT, &vhost), 0);
	/* Until both directions are full: then it has stopped to read. */
	while (socket_wait(vhost.fd, POLLOUT, deadline_in(100)) == 0 && n_sent < 1000000)
		n_sent += send_with_fds(vhost.fd, &header, 12, "") == 12;
	assert_in_range(n_sent, 10, 999999);
	setup_guest(setup, 1, (struct guest_options){0});
	transfer_all(setup, 1, 1000, 300 * KIB);
	while (n_answers < n_sent) {
		assert_int_equal(vhost_receive(&vhost, VHOST_GET_FEATURES, &features, 8, NULL), 8);
		n_answers++;
	}
	vhost_close(&vhost);
}

/* ---- very many ---- */

static uint64_t random_state = 88172645463325252u;

static uint64_t next_random(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static uint32_t random_below(uint32_t n)
{
	return (uint32_t)(next_random() >> 20) % n;
}

/* Numbers that mean something, and some that mean nothing. */
static uint64_t random_word(void)
{
	static const uint64_t words[] = {0,
					 1,
					 2,
					 3,
					 0x100,
					 4096,
					 1 << 20,
					 UINT64_MAX,
					 UINT32_MAX,
					 128,
					 1 << 7,
					 UINT64_C(128) << 32,
					 UINT64_C(1) << 32,
					 0x140000000};

	return random_below(8) ? words[random_below(sizeof(words) / sizeof(words[0]))]
			       : next_random();
}

static const char *random_fds(void)
{
	static const char *const fds[] = {
		"",  "",  "",	"",   "",	  "e",
		"e", "m", "mm", "ep", "eeeeeeee", "mmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm"};

	return fds[random_below(sizeof(fds) / sizeof(fds[0]))];
}

static bool send_garbage(int socket)
{
	static const uint32_t sizes[] = {0, 0, 8, 8, 8, 8, 40, 40, 40, 20, 12, 1032, 3, 100};
	struct vhost_header header = {
		.request = random_below(46),
		.flags = random_below(16) ? VHOST_FLAG_VERSION | (random_below(2) ? 8 : 0)
					  : (uint32_t)random_word(),
		.size = sizes[random_below(sizeof(sizes) / sizeof(sizes[0]))],
	};
	size_t len = sizeof(header) + header.size;
	uint8_t bytes[BYTES_MAX];

	memcpy(bytes, &header, sizeof(header));
	for (size_t at = sizeof(header); at + 8 <= sizeof(bytes); at += 8) {
		uint64_t word = random_word();

		memcpy(bytes + at, &word, sizeof(word));
	}
	return send_with_fds(socket, bytes, len, random_fds()) == (ssize_t)len;
}

static void check_workers_lived(struct setup *setup)
{
	assert_false(daemon_log_has(&setup->daemon, "ended by signal"));
	assert_false(daemon_log_has(&setup->daemon, "ended with exit code"));
}

static void test_a_thousand_sessions_of_garbage_leave_nothing_behind(void **state)
{
	struct setup *setup = *state;

	for (int i = 0; i < 1000; i++) {
		int fd = socket_connect(setup->sockets[0], SOCK_STREAM, LIMIT);

		assert_true(fd >= 0);
		for (uint32_t n = random_below(12); n > 0 && send_garbage(fd); n--)
			;
		close(fd);
	}
	setup_wait_idle(setup);
	check_works(setup);
	check_workers_lived(setup);
}

static void test_garbage_amid_traffic_leaves_nothing_behind(void **state)
{
	struct setup *setup = *state;
	struct transfer other;

	setup->expects_violations = true;
	setup_guest(setup, 1, (struct guest_options){0});
	transfer_start(&other, setup, 1, 2000, 2048 * KIB);
	for (size_t i = 0; i < 100; i++) {
		struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
		struct guest_connection *connection;
		struct host_stream stream;

		connection = setup_connect(setup, 0, 1000, &stream);
		for (int k = 0; k < 10 && send_garbage(guest->vhost.fd); k++) {
			guest_send(connection, NULL, 1000);
			(void)guest_poll(guest, 0);
			ring_kick(&guest->rings[GUEST_RX]);
		}
		setup_end_stream(setup, 0, &stream);
		setup_end_guest(setup, 0);
		transfer_run_to(&other, (i + 1) * 10 * KIB);
	}
	transfer_finish(&other);
	assert_string_equal(guest_violations(&setup->guests[1]), "");
	setup_end_guest(setup, 1);
	setup_wait_idle(setup);
	check_workers_lived(setup);
}

/* Of spawner and front, in pages: workers come and go. */
static long resident(const struct setup *setup)
{
	pid_t pids[DAEMON_PIDS_MAX];
	long n_pages = 0;

	assert_true(daemon_pids(&setup->daemon, pids) >= 2);
	for (size_t i = 0; i < 2; i++) {
		char path[64];
		FILE *file;
		long n;

		snprintf(path, sizeof(path), "/proc/%d/statm", pids[i]);
		file = fopen(path, "r");
		assert_non_null(file);
		assert_int_equal(fscanf(file, "%*d %ld", &n), 1);
		fclose(file);
		n_pages += n;
	}
	return n_pages;
}

static void test_two_hundred_sessions_leave_no_fd_and_no_memory_behind(void **state)
{
	struct setup *setup = *state;
	long n_pages = 0;

	for (unsigned int i = 0; i < 200; i++) {
		struct transfer transfer;

		setup_guest(setup, 0, (struct guest_options){.style = i % 3});
		transfer_all(setup, 0, 1000, 20 * KIB);
		/* And some that end in the middle. */
		transfer_start(&transfer, setup, 0, 1001, 200 * KIB);
		transfer_run_to(&transfer, 20 * KIB);
		guest_unwatch(&setup->guests[0], &transfer.stream.watch);
		setup_end_guest(setup, 0);
		transfer_abandon(&transfer);
		if (i % 50 == 9)
			setup_wait_idle(setup);
		if (i == 9)
			n_pages = resident(setup);
	}
	setup_wait_idle(setup);
	if (!daemon_log_has(&setup->daemon, "built with sanitizers"))
		assert_in_range(resident(setup), 1, n_pages + 32);
}

#define ONE_VM(test)  cmocka_unit_test_setup_teardown(test, setup_start_one, setup_end)
#define TWO_VMS(test) cmocka_unit_test_setup_teardown(test, setup_start_two, setup_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_each_malformed_message_is_refused_with_its_name_in_the_log),
		ONE_VM(test_a_message_that_was_not_negotiated_is_refused),
		TWO_VMS(test_too_many_fds_that_cannot_be_closed_cost_that_vm_alone),
		ONE_VM(test_a_malformed_header_ends_the_session),
		ONE_VM(test_more_fds_than_any_message_has_end_the_session),
		ONE_VM(test_fds_with_a_later_byte_end_the_session),
		ONE_VM(test_a_front_end_that_leaves_within_a_message_is_noted),
		TWO_VMS(test_a_message_may_come_byte_by_byte_and_hangs_nobody_meanwhile),
		TWO_VMS(test_a_front_end_that_takes_no_answer_hangs_nobody),
		ONE_VM(test_a_thousand_sessions_of_garbage_leave_nothing_behind),
		TWO_VMS(test_garbage_amid_traffic_leaves_nothing_behind),
		ONE_VM(test_two_hundred_sessions_leave_no_fd_and_no_memory_behind),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

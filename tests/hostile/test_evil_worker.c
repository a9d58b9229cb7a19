/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A worker in an attacker's hands does what it likes on its channel. Its front
 * believes nothing that the rules do not permit, ends it, says so in one line,
 * and serves the other VM as if nothing had happened.
 */

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "ipc/message.h"
#include "tests/frontend/guest.h"
#include "tests/frontend/host.h"
#include "tests/hostile/rig.h"

#define DISBELIEVED "is not believed: "
#define PORT	    7000
#define CONNECTIONS 16 /* of the VM under attack */

static struct rig rig;

static int set_up(void **state)
{
	(void)state;
	rig_start_evil(&rig, "max-connections=16");
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	rig_stop(&rig);
	return 0;
}

/* ---- orders ---- */

static void order(enum orders_when when, uint32_t command, enum orders_then then)
{
	struct orders *orders = rig.orders;

	memset((char *)orders + offsetof(struct orders, when), 0,
	       sizeof(*orders) - offsetof(struct orders, when));
	orders->when = when;
	orders->command = command;
	orders->then = then;
	orders->n_repeat = 1;
	rig_mark(&rig);
}

static struct orders_packet *add_packet(size_t len, uint32_t n_fds)
{
	struct orders_packet *packet = &rig.orders->packets[rig.orders->n_packets++];

	assert_true(rig.orders->n_packets <= ORDERS_PACKETS_MAX && len <= ORDERS_PADDED_MAX);
	packet->len = (uint32_t)len;
	packet->n_fds = n_fds;
	return packet;
}

static void add_message(const Vsockd__Envelope *envelope)
{
	struct channel_packet encoded;

	message_encode(envelope, -1, &encoded);
	memcpy(add_packet(encoded.len, 0)->bytes, encoded.bytes, encoded.len);
}

static void add_connect_to(uint32_t request, uint32_t cid, uint32_t port, uint32_t type)
{
	Vsockd__Connect connect = VSOCKD__CONNECT__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	connect.request = request;
	connect.port = port;
	connect.type = type;
	connect.cid = cid;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_CONNECT;
	envelope.connect = &connect;
	add_message(&envelope);
}

static void add_connect(uint32_t request, uint32_t port, uint32_t type)
{
	add_connect_to(request, PACKET_HOST_CID, port, type);
}

static void add_cancel(uint32_t request)
{
	Vsockd__Cancel cancel = VSOCKD__CANCEL__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	cancel.request = request;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_CANCEL;
	envelope.cancel = &cancel;
	add_message(&envelope);
}

static void add_answered(uint32_t endpoint)
{
	Vsockd__Answered answered = VSOCKD__ANSWERED__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	answered.endpoint = endpoint;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_ANSWERED;
	envelope.answered = &answered;
	add_message(&envelope);
}

static void add_closed(uint32_t endpoint)
{
	Vsockd__Closed closed = VSOCKD__CLOSED__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	closed.endpoint = endpoint;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_CLOSED;
	envelope.closed = &closed;
	add_message(&envelope);
}

static void add_opened(uint32_t endpoint)
{
	Vsockd__Opened opened = VSOCKD__OPENED__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	opened.endpoint = endpoint;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_OPENED;
	envelope.opened = &opened;
	add_message(&envelope);
}

static void add_report(uint32_t event)
{
	Vsockd__Report report = VSOCKD__REPORT__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	report.event = event;
	report.first = report.second = report.third = UINT64_MAX;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_REPORT;
	envelope.report = &report;
	add_message(&envelope);
}

static void add_ready(uint32_t version)
{
	Vsockd__Ready ready = VSOCKD__READY__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	ready.version = version;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_READY;
	envelope.ready = &ready;
	add_message(&envelope);
}

static void give(int32_t n)
{
	atomic_store(&rig.orders->n_taken, 0);
	atomic_store(&rig.orders->n_left, n);
}

static void wait_taken(uint32_t n, const char *what)
{
	int64_t deadline = deadline_in(RIG_LIMIT);

	while (atomic_load(&rig.orders->n_taken) < n)
		rig_wait_a_moment(deadline, what);
}

/* ---- what brings the order about ---- */

static void start_guest(struct guest *guest, const char *what)
{
	const struct guest_options options = {.socket = rig.socket, .timeout = RIG_LIMIT};
	int error = guest_start(guest, &options);

	if (error)
		fail_msg("%s: the attacked VM's guest: %s: %s", what, strerror(-error),
			 vhost_error(&guest->vhost));
}

/* A session is enough for a worker to get Assign. */
static void open_session(struct vhost *vhost)
{
	rig_connect_frontend(&rig, vhost);
}

/*
 * A spare is taken, so the next one is started, and carries the order out. More
 * than once where there was more than one spare. The session stays open: the
 * worker may be given to it.
 */
static void start_a_spare(struct vhost *vhost, const char *what)
{
	int64_t deadline = deadline_in(RIG_LIMIT);

	for (;;) {
		int64_t turn = deadline_in(RIG_LIMIT / 20);

		open_session(vhost);
		while (atomic_load(&rig.orders->n_taken) == 0 && deadline_left(turn) > 0)
			rig_wait_a_moment(deadline, what);
		if (atomic_load(&rig.orders->n_taken) > 0)
			return;
		vhost_close(vhost);
	}
}

/* "worker lost" would say it too, but is one of the lines that are limited. */
static void wait_ended(const char *what)
{
	int64_t deadline = deadline_in(RIG_LIMIT);

	while (rig_count_log(&rig, " ended by signal ") == 0 &&
	       rig_count_log(&rig, " ended with exit code ") == 0)
		rig_wait_a_moment(deadline, what);
}

/*
 * Close when another worker serves the session: one that gets Assign only later
 * would take the next order.
 */
static void close_session(struct vhost *vhost, const char *what)
{
	uint64_t acknowledged = BIT64(VHOST_PROTOCOL_REPLY_ACK);

	vhost->ack_requests = ~UINT64_C(0);
	if (vhost_set_u64(vhost, VHOST_SET_PROTOCOL_FEATURES, acknowledged) ||
	    vhost_set_u64(vhost, VHOST_SET_FEATURES, BIT64(VIRTIO_VERSION_1)))
		fail_msg("%s: no service: %s", what, vhost_error(vhost));
	vhost_close(vhost);
}

static void bring_about(const char *what)
{
	enum orders_when when = (enum orders_when)rig.orders->when;
	struct guest guest;
	struct vhost vhost;
	int host;

	if (when == ORDERS_AT_COMMAND && rig.orders->command == 0) {
		open_session(&vhost);
		wait_taken(1, what);
		wait_ended(what);
		close_session(&vhost, what);
	} else if (when == ORDERS_AT_COMMAND) {
		/* The guest notices nothing: another worker goes on. */
		start_guest(&guest, what);
		guest_end(&guest);
	} else if (when == ORDERS_AT_ACCEPTED) {
		start_guest(&guest, what);
		host = rig_connect(rig.uds_path);
		wait_taken(1, what);
		wait_ended(what);
		close(host);
		close_session(&guest.vhost, what);
		guest_end(&guest);
	} else {
		start_a_spare(&vhost, what);
		wait_ended(what);
		close_session(&vhost, what);
	}
	wait_taken(1, what);
}

/* One worker carries the order out, and is ended for it, in one line with the reason. */
static void expect_disbelief(const char *reason, const char *what)
{
	char line[160];

	snprintf(line, sizeof(line), "%s%.120s", DISBELIEVED, reason);
	give(1);
	bring_about(what);
	rig_wait_log(&rig, line, what);
	if (rig_count_log(&rig, DISBELIEVED) != 1)
		fail_msg("%s: more than one line", what);
	rig_check_neighbour(&rig, 1, what);
}

/* ---- messages ---- */

enum shape {
	BARE, /* the type, all fields zero */
	WITH_FD,
	CUT,  /* says that it is longer than it is */
	LONG, /* CHANNEL_MESSAGE_MAX + 1 */
	HUGE_ONE,
	WITH_FIELD, /* one that the protocol does not know */
	SHAPES,
};

static const char *const shapes[SHAPES] = {"bare",	   "with an fd", "cut off",
					   "of 257 bytes", "huge",	 "with a field"};

/* A field number of the envelope is the number of the oneof's case. */
static void add_shaped(uint32_t field, enum shape shape)
{
	uint8_t bytes[8];
	size_t n = 0, len;

	if (field > 15)
		bytes[n++] = (uint8_t)(0x80 | (field << 3 & 0x7f) | 2);
	bytes[n++] = (uint8_t)(field > 15 ? field >> 4 : field << 3 | 2);
	bytes[n++] = shape == CUT ? 100 : shape == WITH_FIELD ? 2 : 0;
	if (shape == WITH_FIELD) {
		bytes[n++] = 0x78; /* field 15, a varint */
		bytes[n++] = 1;
	}
	len = shape == LONG ? CHANNEL_MESSAGE_MAX + 1 : shape == HUGE_ONE ? ORDERS_PADDED_MAX : n;
	memcpy(add_packet(len, shape == WITH_FD)->bytes, bytes, n);
}

static void try_message(enum orders_when when, uint32_t command, uint32_t field, const char *name,
			enum shape shape)
{
	char what[128];

	snprintf(what, sizeof(what), "%.40s %.20s, when %d, command %u", name, shapes[shape],
		 (int)when, command);
	order(when, command, ORDERS_GO_ON);
	add_shaped(field, shape);
	expect_disbelief("", what);
}

/*
 * With all fields zero some messages are right: about endpoint 0, which the host
 * program has, or about something that may be over already.
 */
static bool is_harmless(enum orders_when when, const char *name)
{
	if (strcmp(name, "ResetHandled") == 0 || strcmp(name, "Cancel") == 0)
		return true;
	return when == ORDERS_AT_ACCEPTED &&
	       (strcmp(name, "Opened") == 0 || strcmp(name, "Closed") == 0);
}

static void try_messages(enum orders_when when, uint32_t command)
{
#ifdef RIG_IS_SANITIZED
	const bool is_slow = true;
#else
	const bool is_slow = false;
#endif

	for (size_t i = 0; i <= n_message_rules; i++) {
		uint32_t field = i < n_message_rules ? (uint32_t)message_rules[i].type : 2047;
		const char *name = i < n_message_rules ? message_rules[i].name : "unknown";

		for (int shape = 0; shape < SHAPES; shape++) {
			/* One shape of each is as good where processes start slowly. */
			if ((shape == BARE && is_harmless(when, name)) ||
			    (is_slow && i % SHAPES != (size_t)shape))
				continue;
			try_message(when, command, field, name, (enum shape)shape);
		}
	}
}

static void test_no_message_out_of_order_is_believed_where_done_is_due(void **state)
{
	(void)state;
	try_messages(ORDERS_AT_COMMAND, 0);
	rig_check(&rig, "Assign");
}

static void test_no_message_out_of_order_is_believed_while_the_guest_runs(void **state)
{
	(void)state;
	try_messages(ORDERS_AT_ACCEPTED, 0);
	rig_check(&rig, "Accepted");
}

/* A few: the front takes its time before it starts workers again that die early. */
static void try_few(enum orders_when when)
{
	static const struct {
		uint32_t field;
		const char *name;
		enum shape shape;
	} cases[] = {
		{VSOCKD__ENVELOPE__BODY_DONE, "Done", BARE},
		{VSOCKD__ENVELOPE__BODY_CONNECT, "Connect", BARE},
		{VSOCKD__ENVELOPE__BODY_READY, "Ready", WITH_FD},
		{VSOCKD__ENVELOPE__BODY_ASSIGN, "Assign", BARE},
		{VSOCKD__ENVELOPE__BODY_REPORT, "Report", HUGE_ONE},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		try_message(when, 0, cases[i].field, cases[i].name, cases[i].shape);
}

static void test_no_message_of_a_worker_without_a_vm_is_believed(void **state)
{
	(void)state;
	try_few(ORDERS_BEFORE_READY);
	try_few(ORDERS_AS_SPARE);
	order(ORDERS_BEFORE_READY, 0, ORDERS_GO_ON);
	add_ready(MESSAGE_VERSION + 1);
	give(1);
	bring_about("another version");
	rig_wait_log(&rig, "restart vsockd to use it", "another version");
	order(ORDERS_AS_SPARE, 0, ORDERS_GO_ON);
	add_ready(MESSAGE_VERSION);
	expect_disbelief("message not permitted in this state", "Ready twice");
	rig_check(&rig, "without a VM");
}

static void test_no_fd_of_a_worker_is_kept(void **state)
{
	static const uint32_t counts[] = {2, 3, 4, 5, 6, 253};

	(void)state;
	for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
		order(ORDERS_AT_COMMAND, 0, ORDERS_GO_ON);
		add_report(REPORT_PACKET_DROPPED);
		rig.orders->packets[0].n_fds = counts[i];
		expect_disbelief("packet too long, or with fds", "fds");
	}
	/* As many as there is room for, in messages that would be welcome without them. */
	order(ORDERS_AT_ACCEPTED, 0, ORDERS_GO_ON);
	add_report(REPORT_PACKET_DROPPED);
	rig.orders->packets[0].n_fds = 250;
	rig.orders->n_repeat = 4;
	expect_disbelief("packet too long, or with fds", "1000 fds");
	rig_check(&rig, "fds");
}

static void test_an_empty_packet_reads_as_the_end(void **state)
{
	(void)state;
	order(ORDERS_AT_COMMAND, 0, ORDERS_GO_ON);
	add_packet(0, 0);
	give(1);
	bring_about("empty");
	order(ORDERS_AT_COMMAND, 0, ORDERS_GO_ON);
	add_packet(0, 1);
	expect_disbelief("packet too long, or with fds", "empty with an fd");
	rig_check(&rig, "empty packets");
}

static void test_done_is_believed_once_in_order_and_in_range(void **state)
{
	static const struct {
		uint32_t n, added;
		int32_t status;
		uint32_t value;
		const char *reason;
	} cases[] = {
		{2, 0, 0, 0, "Done that nobody waits for"},
		{1, UINT32_MAX, 0, 0, "Done that nobody waits for"},
		{1, 1, 0, 0, "Done that nobody waits for"},
		{1, 0x80000000u, 0, 0, "Done that nobody waits for"},
		{1, 0, 1, 0, "Done with a value out of range"},
		{1, 0, -4096, 0, "Done with a value out of range"},
		{1, 0, INT32_MIN, 0, "Done with a value out of range"},
		{1, 0, 0, UINT16_MAX + 1, "Done with a value out of range"},
	};

	(void)state;
	for (uint32_t command = 0; command < 10; command += 3) {
		for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
			/* The second Done comes before the next command only if that is the last.
			 */
			if (cases[i].n > 1 && command > 0)
				continue;
			order(ORDERS_AT_COMMAND, command, ORDERS_GO_ON);
			rig.orders->n_done = cases[i].n;
			rig.orders->done_added = cases[i].added;
			rig.orders->done_status = cases[i].status;
			rig.orders->done_value = cases[i].value;
			expect_disbelief(cases[i].reason, cases[i].reason);
		}
	}
	rig_check(&rig, "Done");
}

/* ---- values ---- */

static void test_closed_and_opened_name_only_what_is_open(void **state)
{
	static const uint32_t endpoints[] = {1,	    CONNECTIONS - 1, CONNECTIONS,
					     65536, 0x7fffffff,	     UINT32_MAX};

	(void)state;
	for (size_t i = 0; i < sizeof(endpoints) / sizeof(endpoints[0]); i++) {
		order(ORDERS_AT_ACCEPTED, 0, ORDERS_GO_ON);
		add_closed(endpoints[i]);
		expect_disbelief("Closed for a connection that is not open", "Closed");
		order(ORDERS_AT_ACCEPTED, 0, ORDERS_GO_ON);
		add_opened(endpoints[i]);
		expect_disbelief("Opened for a connection that is not in its handshake", "Opened");
	}
	/* The one that it was given has number 0. */
	order(ORDERS_AT_ACCEPTED, 0, ORDERS_GO_ON);
	add_closed(0);
	add_closed(0);
	expect_disbelief("Closed for a connection that is not open", "Closed twice");
	order(ORDERS_AT_ACCEPTED, 0, ORDERS_GO_ON);
	add_opened(0);
	add_opened(0);
	expect_disbelief("Opened for a connection that is not in its handshake", "Opened twice");
	rig_check(&rig, "endpoints");
}

static int set_up_apart(void **state)
{
	(void)state;
	rig_start_evil(&rig, "max-connections=16,groups=apart");
	return 0;
}

/* CIDs that are nobody's, reserved, its own, or of a guest that it may not reach. */
static void test_a_worker_reaches_no_guest_outside_its_groups(void **state)
{
	static const uint32_t cids[] = {3, 3, 0, 1, 4, RIG_CID, UINT32_MAX};
	static const uint32_t n = sizeof(cids) / sizeof(cids[0]);

	(void)state;
	order(ORDERS_AT_ACCEPTED, 0, ORDERS_GO_ON);
	for (uint32_t i = 0; i < n; i++)
		add_connect_to(i, cids[i], PORT, PACKET_STREAM);
	add_closed(UINT32_MAX);
	expect_disbelief("Closed for a connection that is not open", "groups");
	assert_int_equal(rig_count_log(&rig, "CID 3, port 7000: that guest is in none of its"), 2);
	assert_int_equal(rig_count_log(&rig, ": no guest has that CID"), n - 2);
	rig_check(&rig, "groups");
}

static void test_what_a_worker_says_of_other_guests_is_checked(void **state)
{
	(void)state;
	order(ORDERS_AT_ACCEPTED, 0, ORDERS_GO_ON);
	add_answered(0);
	expect_disbelief("Answered for a connection that no guest asked for", "a host program's");
	order(ORDERS_AT_ACCEPTED, 0, ORDERS_GO_ON);
	add_answered(UINT32_MAX);
	expect_disbelief("Answered for a connection that no guest asked for", "nobody's");
	order(ORDERS_AT_ACCEPTED, 0, ORDERS_GO_ON);
	add_cancel(2 * CONNECTIONS);
	expect_disbelief("Cancel with a number out of range", "Cancel");
	/* Asked, taken back, asked again, and gone while the pair is made. */
	order(ORDERS_AT_ACCEPTED, 0, ORDERS_GO_ON);
	for (uint32_t i = 0; i < CONNECTIONS - 1; i++) {
		add_connect_to(i, 3, PORT, PACKET_STREAM);
		add_cancel(i);
		add_cancel(i);
	}
	add_answered(1);
	expect_disbelief("Answered for a connection that no guest asked for", "its own request");
	rig_check(&rig, "other guests");
}

/* A host program whose backlog is full: connecting to it takes seconds. */
static int listen_full(int *ret_fd)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%.90s_%d", rig.uds_path, PORT);
	unlink(address.sun_path);
	assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(listener, 0), 0);
	*ret_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	assert_int_equal(connect(*ret_fd, (struct sockaddr *)&address, sizeof(address)), 0);
	return listener;
}

static void test_connects_are_bounded_by_number_and_count(void **state)
{
	int waiting, listener = listen_full(&waiting);

	(void)state;
	order(ORDERS_AT_ACCEPTED, 0, ORDERS_GO_ON);
	add_connect(2 * CONNECTIONS, PORT, PACKET_STREAM);
	expect_disbelief("Connect with a number that is in use or out of range", "out of range");
	order(ORDERS_AT_ACCEPTED, 0, ORDERS_GO_ON);
	add_connect(UINT32_MAX, PORT, PACKET_STREAM);
	expect_disbelief("Connect with a number that is in use or out of range", "out of range");
	order(ORDERS_AT_ACCEPTED, 0, ORDERS_GO_ON);
	add_connect(3, PORT, PACKET_STREAM);
	add_connect(3, PORT + 1, PACKET_STREAM);
	expect_disbelief("Connect with a number that is in use or out of range", "in use");
	order(ORDERS_AT_ACCEPTED, 0, ORDERS_GO_ON);
	add_connect(0, PORT, PACKET_SEQPACKET + 1);
	expect_disbelief("Connect of a type that was not offered", "type");
	order(ORDERS_AT_ACCEPTED, 0, ORDERS_GO_ON);
	for (uint32_t i = 0; i < 2 * CONNECTIONS; i++)
		add_connect(i, PORT, PACKET_STREAM);
	/* More than there are connections: refused, and nobody else is. */
	give(1);
	bring_about("beyond");
	rig_check(&rig, "beyond");
	/* While connecting, before Done of Assign even. */
	order(ORDERS_AT_COMMAND, 0, ORDERS_EXIT);
	for (uint32_t i = 0; i < CONNECTIONS; i++)
		add_connect(i, PORT, PACKET_STREAM);
	give(1);
	bring_about("Connect and exit");
	rig_check(&rig, "Connect");
	close(waiting);
	close(listener);
}

/* What answers a flood finds no room in the channel in the end. */
static void test_a_flood_of_connects_whose_answers_nobody_reads_ends_the_worker(void **state)
{
	(void)state;
	order(ORDERS_AT_ACCEPTED, 0, ORDERS_SLEEP);
	for (uint32_t i = 0; i < CONNECTIONS; i++)
		add_connect(i, PORT + 1, PACKET_STREAM);
	rig.orders->n_repeat = 1000;
	expect_disbelief("", "Connect flood");
	assert_true(rig_count_log(&rig, "guest refused") < 100);
	rig_check(&rig, "Connect flood");
}

static void test_a_flood_of_reports_is_limited_in_the_log(void **state)
{
	const uint32_t n = 20000;
	struct guest guest;
	int host;

	(void)state;
	order(ORDERS_AT_ACCEPTED, 0, ORDERS_SWALLOW);
	add_report(REPORT_RING_BROKEN);
	add_report(REPORT_HANDSHAKE_FAILED);
	rig.orders->n_repeat = n / 2;
	start_guest(&guest, "Report flood");
	give(1);
	host = rig_connect(rig.uds_path);
	wait_taken(1, "Report flood");
	/* It goes on serving after the flood. */
	close(host);
	assert_null(guest_connect_wait(&guest, PACKET_HOST_CID, 9, RIG_LIMIT));
	assert_string_equal(guest_violations(&guest), "");
	guest_end(&guest);
	assert_in_range(rig_count_log(&rig, "vm=100"), 20, 100);
	order(ORDERS_AT_ACCEPTED, 0, ORDERS_GO_ON);
	add_report(REPORT_EVENT_MAX);
	expect_disbelief("Report of an unknown event", "unknown event");
	rig_check(&rig, "Report flood");
}

/* ---- the end, and no end ---- */

static void test_a_worker_that_ends_at_any_command_is_replaced(void **state)
{
	uint32_t command = 0;

	(void)state;
	for (bool was_taken = true; was_taken; command++) {
		struct guest guest;
		char what[32];

		snprintf(what, sizeof(what), "exit at command %u", command);
		order(ORDERS_AT_COMMAND, command, ORDERS_EXIT);
		give(1);
		start_guest(&guest, what);
		assert_null(guest_connect_wait(&guest, PACKET_HOST_CID, 9, RIG_LIMIT));
		assert_string_equal(guest_violations(&guest), "");
		was_taken = atomic_load(&rig.orders->n_taken) == 1;
		if (was_taken)
			rig_wait_log(&rig, "ended with exit code 7", what);
		guest_end(&guest);
		rig_check_neighbour(&rig, 1, what);
	}
	give(0);
	assert_in_range(command, 12, 40);
	rig_check(&rig, "exits");
}

static void test_the_log_says_how_a_worker_ended(void **state)
{
	static const struct {
		enum orders_when when;
		enum orders_then then;
		const char *line;
	} cases[] = {
		{ORDERS_AT_START, ORDERS_EXIT, "ended with exit code 7"},
		{ORDERS_BEFORE_READY, ORDERS_EXIT, "ended with exit code 7"},
		{ORDERS_AS_SPARE, ORDERS_EXIT, "ended with exit code 7"},
		{ORDERS_AT_ACCEPTED, ORDERS_EXIT, "ended with exit code 7"},
		{ORDERS_AS_SPARE, ORDERS_TRAP, "ended by signal 4"},
		{ORDERS_AT_COMMAND, ORDERS_TRAP, "ended by signal 4"},
#ifndef RIG_IS_SANITIZED
		{ORDERS_AS_SPARE, ORDERS_FORBIDDEN, "ended by signal 31"},
		{ORDERS_AT_COMMAND, ORDERS_FORBIDDEN, "ended by signal 31"},
#endif
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		order(cases[i].when, 0, cases[i].then);
		give(1);
		bring_about(cases[i].line);
		rig_wait_log(&rig, cases[i].line, cases[i].line);
		rig_check_rest(&rig, cases[i].line);
	}
	rig_check(&rig, "ends");
}

/*
 * Its front-end waits, and nobody else. A worker that is left may take its time to
 * end, until another one of the same VM is left too.
 */
static void test_a_worker_that_never_answers_stops_only_its_own_front_end(void **state)
{
	static const enum orders_then ways[] = {ORDERS_SWALLOW, ORDERS_SLEEP, ORDERS_SPIN};

	(void)state;
	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		struct vhost vhost;
		uint64_t features;
		char what[64];

		snprintf(what, sizeof(what), "no answer, %d", (int)ways[i]);
		order(ORDERS_AT_COMMAND, 0, ways[i]);
		give(1);
		open_session(&vhost);
		vhost.timeout = 50;
		wait_taken(1, what);
		assert_int_equal(vhost_get_u64(&vhost, VHOST_GET_FEATURES, &features), -ETIMEDOUT);
		rig_check_neighbour(&rig, 100, what);
		vhost_close(&vhost);
		rig_check_service(&rig, what);
		rig_check_rest(&rig, what);
	}
	rig_check(&rig, "no answer");
}

static void test_a_worker_that_never_reads_gets_no_more_than_there_may_be(void **state)
{
	int hosts[3 * CONNECTIONS];
	struct guest guest;

	(void)state;
	order(ORDERS_AT_ACCEPTED, 0, ORDERS_SPIN);
	start_guest(&guest, "never reads");
	give(1);
	for (size_t i = 0; i < 3 * CONNECTIONS; i++)
		hosts[i] = rig_connect(rig.uds_path);
	rig_wait_log(&rig, "as many connections as there may be", "never reads");
	rig_check_neighbour(&rig, 100, "never reads");
	for (size_t i = 0; i < 3 * CONNECTIONS; i++)
		close(hosts[i]);
	guest_end(&guest);
	rig_check_service(&rig, "never reads");
	rig_check(&rig, "never reads");
}

static void test_a_worker_that_is_never_ready_is_given_up(void **state)
{
	int64_t began = deadline_in(0);
	struct guest guest;
	struct vhost vhost;

	(void)state;
	order(ORDERS_BEFORE_READY, 0, ORDERS_SLEEP);
	give(1);
	start_a_spare(&vhost, "never ready");
	vhost_close(&vhost);
	/* It counts as the spare until then, and whoever comes gets one nevertheless. */
	start_guest(&guest, "never ready");
	guest_end(&guest);
	rig_check_neighbour(&rig, 20, "never ready");
	while (rig_count_log(&rig, "does not start in time") == 0)
		rig_wait_a_moment(began + 10000 + RIG_LIMIT, "never ready");
	rig_check(&rig, "never ready");
}

/*
 * Whatever makes each worker die as it starts, lack of memory say, must not make
 * vsockd fork and log as fast as it can.
 */
static void try_early_ends(enum orders_when when, const char *what)
{
	int64_t began = deadline_in(0);
	struct vhost vhost;
	uint32_t n_taken, n_seconds;

	order(when, 0, ORDERS_EXIT);
	give(1000000);
	start_a_spare(&vhost, what);
	vhost_close(&vhost);
	rig_check_neighbour(&rig, 500, what);
	n_taken = atomic_load(&rig.orders->n_taken);
	n_seconds = (uint32_t)(deadline_in(0) - began) / 1000;
	give(0);
	/* The first ones at once, then one a second. */
	if (n_taken > 20 + n_seconds)
		fail_msg("%s: %u workers in %u seconds", what, n_taken, n_seconds);
	rig_check(&rig, what);
}

static void test_workers_that_die_before_ready_are_started_seldom(void **state)
{
	(void)state;
	try_early_ends(ORDERS_BEFORE_READY, "each worker dies before Ready");
}

static void test_workers_that_die_as_spares_are_started_seldom(void **state)
{
	(void)state;
	try_early_ends(ORDERS_AS_SPARE, "each worker dies after Ready");
}

#define WITH_RIG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_RIG(test_no_message_out_of_order_is_believed_where_done_is_due),
		WITH_RIG(test_no_message_out_of_order_is_believed_while_the_guest_runs),
		WITH_RIG(test_no_message_of_a_worker_without_a_vm_is_believed),
		WITH_RIG(test_no_fd_of_a_worker_is_kept),
		WITH_RIG(test_an_empty_packet_reads_as_the_end),
		WITH_RIG(test_done_is_believed_once_in_order_and_in_range),
		WITH_RIG(test_closed_and_opened_name_only_what_is_open),
		WITH_RIG(test_connects_are_bounded_by_number_and_count),
		cmocka_unit_test_setup_teardown(test_a_worker_reaches_no_guest_outside_its_groups,
						set_up_apart, tear_down),
		WITH_RIG(test_what_a_worker_says_of_other_guests_is_checked),
		WITH_RIG(test_a_flood_of_connects_whose_answers_nobody_reads_ends_the_worker),
		WITH_RIG(test_a_flood_of_reports_is_limited_in_the_log),
		WITH_RIG(test_a_worker_that_ends_at_any_command_is_replaced),
		WITH_RIG(test_the_log_says_how_a_worker_ended),
		WITH_RIG(test_a_worker_that_never_answers_stops_only_its_own_front_end),
		WITH_RIG(test_a_worker_that_never_reads_gets_no_more_than_there_may_be),
		WITH_RIG(test_a_worker_that_is_never_ready_is_given_up),
		WITH_RIG(test_workers_that_die_before_ready_are_started_seldom),
		WITH_RIG(test_workers_that_die_as_spares_are_started_seldom),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

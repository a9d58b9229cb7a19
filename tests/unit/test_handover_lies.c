/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A successor that is told what cannot be: out of its turn, twice, cut short, or of more
 * than there may be. It refuses, and the device goes on where it was.
 */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/handover_rig.h"
#include "tests/unit/open_files.h"

/*
 * Entries of the table: one with bytes of the guest in chunks, one with nothing to do, one
 * that is free, one with the rest of a message, one that waits for the front, and one with
 * a timer.
 */
enum { BUSY, IDLE, HOLE, MESSAGES, ASKING, SHAKING, ENTRIES };

static struct rig_peer peers[ENTRIES];
static uint8_t message[30000];

static void make_all_kinds(void)
{
	rig_start(&(struct rig_options){.features = RIG_F_SEQPACKET, .num = 256});
	rig.after_run = NULL;
	rig_offer(4, 4096);
	peers[BUSY] = rig_guest_connects(1000, 80);
	peers[IDLE] = rig_guest_connects(1001, 80);
	peers[HOLE] = rig_guest_connects(1002, 80);
	peers[MESSAGES] = rig_guest_connects_messages(1003, 80);
	rig_offer(1, 1000);
	rig_host_writes(&peers[MESSAGES], message, sizeof(message));
	rig_run();
	rig_expect(&peers[MESSAGES], PACKET_OP_RW);
	assert_true(rig.device.has_rest);
	rig_narrow(&peers[BUSY]);
	rig_choke(&peers[BUSY], 1, 20000);
	peers[ASKING] = rig_ask(1004, 80);
	peers[SHAKING] = (struct rig_peer){.guest_port = 1005};
	peers[SHAKING].endpoint = rig_accept(&peers[SHAKING].host);
	rig_run();
	rig_say(&peers[HOLE], PACKET_OP_RST, 0);
	assert_true(rig_is_closed(peers[HOLE].endpoint));
	assert_int_equal(rig.device.connections.n_touched, ENTRIES);
	assert_int_equal(rig.device.connections.all[HOLE].state, CONNECTION_FREE);
}

static int set_up(void **state)
{
	(void)state;
	make_all_kinds();
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	for (size_t i = 0; i < ENTRIES; i++)
		if (i != ASKING)
			rig_close_host(&peers[i]);
	rig_end();
	return 0;
}

static struct connection *entry(uint32_t index)
{
	return &rig.device.connections.all[index];
}

/* Nothing was lost by what a successor was told. */
static void expect_all_goes_on(void)
{
	static struct rig_packet packet;
	uint32_t len = 0;

	assert_int_equal(entry(BUSY)->buffer.len, 20000);
	rig_rw(&peers[IDLE], "on", 2);
	rig_host_reads(&peers[IDLE], "on", 2);
	rig_offer(30, 4096);
	rig_run();
	while (rig_take(&packet))
		len += packet.header.type == PACKET_TYPE_SEQPACKET ? packet.header.len : 0;
	assert_int_equal(len, sizeof(message) - (1000 - PACKET_HEADER_LEN));
}

static void post(ProtobufCMessage *body, int fd)
{
	struct channel_packet packet;
	Vsockd__Envelope envelope;

	message_wrap(body, &envelope);
	if (message_rule(envelope.body_case)->is_command)
		envelope.sequence = ++rig.sequence;
	message_encode(&envelope, fd, &packet);
	assert_int_equal(channel_send(*rig_other.front, &packet), 0);
}

/* The other one is told something that its predecessor never said. */
static void say(ProtobufCMessage *body, int fd)
{
	post(body, fd);
	rig_run_worker(&rig_other);
}

static void say_device(void)
{
	Vsockd__HandoverDevice told = VSOCKD__HANDOVER_DEVICE__INIT;

	say(&told.base, -1);
}

static void say_ring(void)
{
	Vsockd__HandoverRing told = VSOCKD__HANDOVER_RING__INIT;

	say(&told.base, -1);
}

static void say_counters(void)
{
	Vsockd__HandoverMore told = VSOCKD__HANDOVER_MORE__INIT;

	say(&told.base, -1);
}

static void say_no_connections(void)
{
	Vsockd__HandoverConnections told = VSOCKD__HANDOVER_CONNECTIONS__INIT;

	say(&told.base, -1);
}

static void say_in_list(uint32_t list, uint32_t item)
{
	Vsockd__HandoverList told = VSOCKD__HANDOVER_LIST__INIT;

	told.list = list;
	told.n = 1;
	told.item_0 = item;
	say(&told.base, -1);
}

static void say_chunk(void)
{
	say_in_list(HANDOVER_TAPE, 100);
}

static void say_ready(void)
{
	say_in_list(HANDOVER_READY, MESSAGES);
}

static void say_ready_hole(void)
{
	say_in_list(HANDOVER_READY, HOLE);
}

static void say_timer(void)
{
	say_in_list(HANDOVER_TIMERS + CONNECTION_TIMER_HANDSHAKE, SHAKING);
}

static void say_orphan(void)
{
	Vsockd__HandoverOrphan told = VSOCKD__HANDOVER_ORPHAN__INIT;

	told.type = UINT16_MAX + 1;
	say(&told.base, -1);
}

static void say_many_orphans(void)
{
	Vsockd__HandoverOrphan told = VSOCKD__HANDOVER_ORPHAN__INIT;

	for (uint32_t i = 0; i <= ORPHANS_MAX; i++)
		say(&told.base, -1);
}

/* There is no endpoint of that number; and what comes with it is not kept. */
static void say_socket(void)
{
	Vsockd__HandoverSocket told = VSOCKD__HANDOVER_SOCKET__INIT;
	size_t n_open = open_files_count();

	told.endpoint = RIG_ENDPOINTS;
	say(&told.base, STDIN_FILENO);
	assert_int_equal(open_files_count(), n_open);
}

typedef void saying(void);

static void refuse(saying *before, saying *after)
{
	rig_make_other();
	if (before)
		before();
	rig_relay(NULL, UINT32_MAX);
	if (after)
		after();
	assert_int_equal(rig_check_other(), before || after ? -EBADMSG : 0);
	rig_resume_first();
}

static void test_what_comes_before_its_turn_is_refused(void **state)
{
	static saying *const sayings[] = {
		say_device, say_ring,  say_counters, say_no_connections,
		say_chunk,  say_ready, say_orphan,   say_socket,
	};

	(void)state;
	refuse(NULL, NULL);
	for (size_t i = 0; i < sizeof(sayings) / sizeof(sayings[0]); i++)
		refuse(sayings[i], NULL);
	expect_all_goes_on();
}

static void test_what_comes_after_its_turn_is_refused(void **state)
{
	static saying *const sayings[] = {
		say_device,	say_ring,  say_counters, say_no_connections, say_chunk,	 say_ready,
		say_ready_hole, say_timer, say_orphan,	 say_many_orphans,   say_socket,
	};

	(void)state;
	for (size_t i = 0; i < sizeof(sayings) / sizeof(sayings[0]); i++)
		refuse(NULL, sayings[i]);
	expect_all_goes_on();
}

/* As they may come before. */
static void say_good_orphan(void)
{
	Vsockd__HandoverOrphan told = VSOCKD__HANDOVER_ORPHAN__INIT;

	say(&told.base, -1);
}

static void say_good_socket(void)
{
	Vsockd__HandoverSocket told = VSOCKD__HANDOVER_SOCKET__INIT;

	told.endpoint = peers[IDLE].endpoint;
	say(&told.base, rig.copies[told.endpoint]);
}

static void check_again(void)
{
	assert_int_equal(rig_check_other(), -EBADMSG);
}

static void test_nothing_is_taken_once_all_was_checked(void **state)
{
	static saying *const sayings[] = {say_good_orphan, say_good_socket, say_ready, say_socket,
					  check_again};

	(void)state;
	for (size_t i = 0; i < sizeof(sayings) / sizeof(sayings[0]); i++) {
		Vsockd__HandoverCommit commit = VSOCKD__HANDOVER_COMMIT__INIT;

		rig_make_other();
		rig_relay(NULL, UINT32_MAX);
		assert_int_equal(rig_check_other(), 0);
		sayings[i]();
		assert_int_equal(rig_check_other(), -EBADMSG);
		/* A front that goes on all the same has lost its mind. */
		post(&commit.base, -1);
		assert_false(control_receive(rig_other.device));
		rig_resume_first();
	}
	expect_all_goes_on();
}

static void test_nobody_serves_who_was_not_told_that_all_is_well(void **state)
{
	Vsockd__HandoverCommit commit = VSOCKD__HANDOVER_COMMIT__INIT;

	(void)state;
	rig_make_other();
	rig_relay(NULL, UINT32_MAX);
	post(&commit.base, -1);
	assert_false(control_receive(rig_other.device));
	rig_resume_first();
	expect_all_goes_on();
}

/* An endpoint that was given, had its end, and is given again as another one's. */
static void test_the_last_socket_of_an_endpoint_counts(void **state)
{
	Vsockd__HandoverSocket told = VSOCKD__HANDOVER_SOCKET__INIT;
	size_t n_open;

	(void)state;
	rig_make_other();
	n_open = open_files_count();
	for (uint32_t i = 0; i < 3; i++) {
		/* Not in the order of their numbers, either. */
		told.endpoint = peers[i % 2 ? SHAKING : IDLE].endpoint;
		say(&told.base, rig.copies[told.endpoint]);
	}
	assert_int_equal(open_files_count(), n_open);
	rig_relay(NULL, UINT32_MAX);
	assert_int_equal(rig_check_other(), 0);
	rig_commit_other();
	expect_all_goes_on();
}

static void test_what_could_not_be_said_goes_along(void **state)
{
	struct rig_peer peer = {.guest_port = 1100, .host_port = 80, .buf_alloc = 4096};
	const struct packet_header header = rig_header(&peer, PACKET_OP_REQUEST);
	struct rig_told told;
	int small = 1;

	(void)state;
	/* A front that does not listen: the channel is full of lines for the log. */
	assert_int_equal(
		setsockopt(rig.device.channel, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
	for (uint32_t i = 0; i < 100; i++)
		control_report(&rig.device, REPORT_PACKET_DROPPED, i, 0, 0);
	rig_put(&header, NULL);
	rig_run_worker(&rig_first);
	assert_false(link_is_empty(&rig.device.connections.tell));
	rig_hand_over();
	rig_expect_told(VSOCKD__ENVELOPE__BODY_CONNECT, &told);
	assert_int_equal(told.values[3], 1100);
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_CONNECT, &told));
	rig.n_told = 0;
	expect_all_goes_on();
}

static bool swap_ready(Vsockd__Envelope *envelope)
{
	Vsockd__HandoverList *told = envelope->handover_list;
	uint32_t *items = &told->item_0;

	if (envelope->body_case == VSOCKD__ENVELOPE__BODY_HANDOVER_LIST &&
	    told->list == HANDOVER_READY)
		for (uint32_t i = 0; i + 1 < told->n; i++) {
			uint32_t last = items[told->n - 1];

			memmove(items + 1, items, (told->n - 1) * sizeof(items[0]));
			items[0] = last;
			break;
		}
	return true;
}

/* Who is first may be a lie. Two that have a rest would need more room than there is. */
static void test_messages_stay_whole_in_whatever_order_they_are_served(void **state)
{
	static struct rig_packet packet;
	struct rig_peer other;
	uint32_t lens[2] = {0};

	tear_down(state);
	rig_start(&(struct rig_options){.features = RIG_F_SEQPACKET, .num = 256});
	rig.after_run = NULL;
	rig_offer(2, 4096);
	peers[MESSAGES] = rig_guest_connects_messages(1003, 80);
	other = rig_guest_connects_messages(1004, 80);
	rig_offer(1, 1000);
	for (uint32_t i = 0; i < 2; i++) {
		rig_host_writes(i == 0 ? &peers[MESSAGES] : &other, message, sizeof(message));
		rig_run();
	}
	assert_true(rig.device.has_rest);
	rig_make_other();
	rig_relay(swap_ready, UINT32_MAX);
	assert_int_equal(rig_check_other(), 0);
	rig_commit_other();
	for (uint32_t round = 0; round < 80; round++) {
		rig_offer(1, 1000);
		rig_run();
		assert_true(entry(0)->rest.len == 0 || entry(1)->rest.len == 0);
	}
	while (rig_take(&packet)) {
		uint32_t *len = &lens[packet.header.dst_port - 1003];

		assert_int_equal(packet.header.op, PACKET_OP_RW);
		*len += packet.header.len;
		assert_int_equal(packet.header.flags, *len == sizeof(message));
	}
	assert_int_equal(lens[0], sizeof(message));
	assert_int_equal(lens[1], sizeof(message));
	rig_close_host(&peers[MESSAGES]);
	rig_close_host(&other);
	rig_end();
	make_all_kinds();
}

/* ---- what is missing ---- */

static uint32_t cut_len;

static bool cut_tape(Vsockd__Envelope *envelope)
{
	if (envelope->body_case == VSOCKD__ENVELOPE__BODY_HANDOVER_DEVICE)
		envelope->handover_device->tape_len = cut_len;
	return true;
}

static void test_a_tape_that_was_cut_is_refused_wherever_that_was(void **state)
{
	uint32_t len;

	(void)state;
	rig_make_other();
	rig_relay(NULL, UINT32_MAX);
	len = rig.device.handover.tape.len;
	rig_resume_first();
	assert_in_range(len, 100, BUFFER_CHUNK_LEN);
	/* And one that has a byte too much. */
	for (cut_len = 0; cut_len <= len + 1; cut_len++) {
		if (cut_len == len)
			continue;
		rig_make_other();
		rig_relay(cut_tape, UINT32_MAX);
		assert_int_equal(rig_check_other(), -EBADMSG);
		rig_resume_first();
	}
	expect_all_goes_on();
}

static uint32_t n_relayed, nth_lost;
static bool is_list_of_what_can_be_found; /* all entries are looked at anyway */

static bool lose_nth(Vsockd__Envelope *envelope)
{
	if (n_relayed++ != nth_lost)
		return true;
	is_list_of_what_can_be_found =
		envelope->body_case == VSOCKD__ENVELOPE__BODY_HANDOVER_LIST &&
		envelope->handover_list->list < HANDOVER_TIMERS;
	return false;
}

static void test_whatever_gets_lost_is_missed(void **state)
{
	(void)state;
	for (nth_lost = 0;; nth_lost++) {
		int r;

		n_relayed = 0;
		is_list_of_what_can_be_found = false;
		rig_make_other();
		rig_relay(lose_nth, UINT32_MAX);
		r = rig_check_other();
		rig_resume_first();
		if (n_relayed <= nth_lost)
			break;
		assert_int_equal(r, is_list_of_what_can_be_found ? 0 : -EBADMSG);
	}
	assert_in_range(nth_lost, 7, 100);
	expect_all_goes_on();
}

/* ---- more than there may be ---- */

static void test_there_is_one_rest_of_a_message(void **state)
{
	struct iovec parts[BUFFER_PARTS_MAX];
	struct rig_peer other;

	(void)state;
	rig_offer(30, 4096);
	rig_run();
	while (rig_has_packet())
		rig_take(&(struct rig_packet){0});
	other = rig_guest_connects_messages(1006, 80);
	peers[HOLE] = other; /* to be closed with the rest of them */
	/* As a worker would have it that lost count. */
	for (uint32_t i = 0; i < 2; i++) {
		struct connection *connection = entry(i == 0 ? MESSAGES : HOLE);

		assert_int_equal(connection->type, PACKET_TYPE_SEQPACKET);
		assert_int_equal(connection->rest.len, 0);
		assert_true(buffer_make(&rig.device.pool, &connection->rest, 100, parts) > 0);
		rig_make_other();
		rig_relay(NULL, UINT32_MAX);
		assert_int_equal(rig_check_other(), i == 0 ? 0 : -EBADMSG);
		rig_resume_first();
		buffer_consume(&rig.device.pool, &connection->rest, i == 0 ? 0 : 100);
	}
	buffer_consume(&rig.device.pool, &entry(MESSAGES)->rest, 100);
}

static void test_entries_that_the_front_does_not_count_are_bounded(void **state)
{
	uint32_t n_allowed = rig.device.connections.n_allowed;

	(void)state;
	/* A guest that was refused has no rx buffer for the answers, and may ask on. */
	rig.device.connections.n_allowed = rig.device.connections.n_max;
	for (uint32_t n = 0; n <= n_allowed; n++) {
		struct rig_peer peer = rig_ask(2000 + n, 80);

		refuse(NULL, NULL);
		rig_refused(&peer, -ECONNREFUSED);
		rig_run();
	}
	rig_make_other();
	rig_relay(NULL, UINT32_MAX);
	assert_int_equal(rig_check_other(), -EBADMSG);
	rig_resume_first();
}

static void test_handshakes_are_bounded(void **state)
{
	uint32_t endpoint;
	int host;

	(void)state;
	endpoint = rig_accept(&host);
	rig_run();
	assert_false(rig_is_closed(endpoint));
	refuse(NULL, NULL);
	rig.options.n_handshakes = 1; /* of which the successor is told */
	rig_make_other();
	rig_relay(NULL, UINT32_MAX);
	assert_int_equal(rig_check_other(), -EBADMSG);
	rig_resume_first();
	close(host);
}

static bool swap_timers(Vsockd__Envelope *envelope)
{
	Vsockd__HandoverList *told = envelope->handover_list;
	uint32_t first;

	if (envelope->body_case != VSOCKD__ENVELOPE__BODY_HANDOVER_LIST ||
	    told->list != HANDOVER_TIMERS + CONNECTION_TIMER_HANDSHAKE)
		return true;
	assert_int_equal(told->n, 2);
	first = told->item_0;
	told->item_0 = told->item_1;
	told->item_1 = first;
	return true;
}

/* Only the first of a list is looked at. */
static void test_timers_run_in_the_order_of_their_ends(void **state)
{
	int host;

	(void)state;
	rig_sleep(100);
	rig_accept(&host);
	rig_run();
	refuse(NULL, NULL);
	rig_make_other();
	rig_relay(swap_timers, UINT32_MAX);
	assert_int_equal(rig_check_other(), -EBADMSG);
	rig_resume_first();
	close(host);
}

/* ---- the pool ---- */

static int take_pool(uint64_t size, int fd)
{
	Vsockd__HandoverPool pool = VSOCKD__HANDOVER_POOL__INIT;

	pool.size = size;
	return rig_command_of(&pool.base, fd);
}

static void test_a_pool_that_cannot_be_had_leaves_the_worker_its_own(void **state)
{
	uint64_t len = (uint64_t)rig.device.pool.n_chunks * BUFFER_CHUNK_LEN;
	int no_memory = eventfd(0, EFD_CLOEXEC);

	(void)state;
	assert_int_equal(take_pool(len, rig.pool_fd), -EBUSY); /* it has connections */
	expect_all_goes_on();
	tear_down(NULL);
	rig_start(&(struct rig_options){.features = RIG_F_SEQPACKET, .num = 256});
	rig.after_run = NULL;
	assert_int_equal(take_pool(len, no_memory), -ENODEV);
	assert_int_equal(take_pool(len - BUFFER_CHUNK_LEN, rig.pool_fd), -ENOSPC);
	assert_int_equal(take_pool(0, rig.pool_fd), -ENOSPC);
	/* More chunks than it has places to count them in. */
	assert_int_equal(take_pool(len + BUFFER_CHUNK_LEN, rig.pool_fd), -ENOSPC);
	close(no_memory);
	rig_end();
	make_all_kinds();
	expect_all_goes_on();
}

/* Other than all the rest this is never to happen: the pool was made with room for it. */
static void test_a_worker_without_room_for_the_tape_goes_on(void **state)
{
	Vsockd__Handover handover = VSOCKD__HANDOVER__INIT;
	uint8_t bytes[BUFFER_CHUNK_LEN] = {0};
	struct iovec part = {bytes, sizeof(bytes)};
	struct buffer all = {0};

	(void)state;
	while (buffer_append(&rig.device.pool, &all, &part, 1))
		;
	assert_int_equal(rig_command_of(&handover.base, -1), -ENOSPC);
	buffer_consume(&rig.device.pool, &all, all.len);
	expect_all_goes_on();
}

static void test_a_tape_of_more_chunks_than_a_message_names_goes_along(void **state)
{
	uint32_t n = 0;
	struct rig_peer last;

	tear_down(state);
	rig_start(&(struct rig_options){.num = 256, .n_connections = 4000, .buffer_size = 8192});
	rig.after_run = NULL;
	rig_offer(2, 4096);
	while (n < 3999)
		rig_ask(1000 + n++, 80);
	last = rig_ask(1000 + n, 80);
	rig_make_other();
	rig_relay(NULL, UINT32_MAX);
	assert_true(buffer_n_chunks(&rig.device.handover.tape) > HANDOVER_LIST_MAX);
	assert_int_equal(rig_check_other(), 0);
	rig_commit_other();
	assert_int_equal(rig.device.connections.n_used, 4000);
	rig_connected(&last);
	rig_run();
	rig_expect(&last, PACKET_OP_RESPONSE);
	rig_rw(&last, "on", 2);
	rig_host_reads(&last, "on", 2);
	rig_close_host(&last);
	rig_end();
	make_all_kinds();
}

static void test_lists_of_more_than_a_message_names_go_along(void **state)
{
	enum { N = 2 * HANDOVER_LIST_MAX + 5 };
	uint32_t endpoints[N];
	int hosts[N];

	tear_down(state);
	rig_start(&(struct rig_options){.n_connections = 100, .n_handshakes = 100});
	rig.after_run = NULL;
	for (uint32_t i = 0; i < N; i++) {
		endpoints[i] = rig_accept(&hosts[i]);
		rig_sleep(1);
	}
	rig_hand_over();
	/* Each at its time. */
	rig_sleep(CONNECTION_HANDSHAKE_MS - N);
	for (uint32_t i = 0; i < N; i++) {
		assert_false(rig_is_closed(endpoints[i]));
		rig_sleep(1);
		assert_true(rig_is_closed(endpoints[i]));
		close(hosts[i]);
	}
	rig_end();
	make_all_kinds();
}

/* ---- records ---- */

#define REFUSED(good, change)                                                                      \
	do {                                                                                       \
		struct connection bad = *(good);                                                   \
		change;                                                                            \
		if (rig_is_believed(&bad))                                                         \
			fail_msg("%s is believed", #change);                                       \
	} while (0)

static void test_messages_that_cannot_be_are_refused(void **state)
{
	const struct connection *stream = entry(IDLE), *messages = entry(MESSAGES);
	struct connection waiting = *messages;

	(void)state;
	assert_true(rig_is_believed(stream));
	assert_true(rig_is_believed(messages));
	REFUSED(stream, bad.n_kept = 1);
	REFUSED(stream, bad.has_open = true);
	REFUSED(stream, bad.n_empty = 1);
	REFUSED(stream, bad.n_maybe = 1);
	REFUSED(stream, bad.rest = messages->rest);
	/* Who reads no more has no rest of anything. */
	REFUSED(messages, (bad.state = CONNECTION_CLOSING, bad.timer = CONNECTION_TIMER_CLOSING,
			   bad.due = 0));

	/* Three bytes of the guest behind one length. */
	waiting.n_kept = 1;
	waiting.buffer.len = 7;
	waiting.credit.rx_cnt += 3;
	assert_true(rig_is_believed(&waiting));
	waiting.has_open = true;
	waiting.open_len = 3;
	assert_true(rig_is_believed(&waiting));
	REFUSED(&waiting, bad.n_kept = 0);
	REFUSED(&waiting, (bad.n_kept = 0, bad.credit.rx_cnt += 4));
	REFUSED(&waiting, bad.n_kept = 2);
	REFUSED(&waiting, bad.n_kept = UINT32_MAX);
	REFUSED(&waiting, bad.open_len = 4);
	REFUSED(&waiting, bad.open_len = UINT32_MAX);
	/* More lengths of messages than a full window leaves room for. */
	REFUSED(&waiting, (bad.n_kept = 3000, bad.has_open = false,
			   bad.buffer.len = bad.credit.buf_alloc + 3000 * 4,
			   bad.credit.rx_cnt = bad.credit.fwd_cnt + bad.credit.buf_alloc));
}

static void test_what_nothing_would_ever_end_is_refused(void **state)
{
	const struct connection *idle = entry(IDLE), *shaking = entry(SHAKING);

	(void)state;
	assert_true(rig_is_believed(shaking));
	REFUSED(idle, (bad.state = CONNECTION_DEAD, bad.due = 0, bad.tell = 0));
	REFUSED(shaking, (bad.early_len = 2, bad.early_skip = 1));
	REFUSED(idle, (bad.buffer_max = rig.device.buffer_size + 1,
		       bad.credit.buf_alloc = bad.buffer_max));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_what_comes_before_its_turn_is_refused),
		TEST(test_what_comes_after_its_turn_is_refused),
		TEST(test_nothing_is_taken_once_all_was_checked),
		TEST(test_nobody_serves_who_was_not_told_that_all_is_well),
		TEST(test_the_last_socket_of_an_endpoint_counts),
		TEST(test_what_could_not_be_said_goes_along),
		TEST(test_messages_stay_whole_in_whatever_order_they_are_served),
		TEST(test_a_tape_that_was_cut_is_refused_wherever_that_was),
		TEST(test_whatever_gets_lost_is_missed),
		TEST(test_there_is_one_rest_of_a_message),
		TEST(test_entries_that_the_front_does_not_count_are_bounded),
		TEST(test_handshakes_are_bounded),
		TEST(test_timers_run_in_the_order_of_their_ends),
		TEST(test_a_pool_that_cannot_be_had_leaves_the_worker_its_own),
		TEST(test_a_worker_without_room_for_the_tape_goes_on),
		TEST(test_a_tape_of_more_chunks_than_a_message_names_goes_along),
		TEST(test_lists_of_more_than_a_message_names_go_along),
		TEST(test_messages_that_cannot_be_are_refused),
		TEST(test_what_nothing_would_ever_end_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

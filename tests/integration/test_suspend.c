/* SPDX-License-Identifier: Apache-2.0 */

/*
 * "Suspended device state": with all rings stopped, or suspended by the operator or
 * by the VMM, the device does nothing but answer the front-end, however hard host
 * programs push; and afterwards nothing was lost.
 */

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/migration.h"
#include "tests/integration/tool.h"
#include "tests/integration/transfer.h"

/* Messages and feature bit of our own, written down a second time. */
enum { SUSPEND = 200, RESUME = 201, SUSPEND_BIT = 56 };

#define MEMORY_START (UINT64_C(1) << 20)
#define MEMORY_SIZE  (UINT64_C(64) << 20)
#define LOG_LEN	     ((MEMORY_START + MEMORY_SIZE) / PAGE / 8 + 1)

enum way { STOPPED, BY_OPERATOR, BY_MESSAGE, WAYS };
static const char *const names[WAYS] = {"stopped", "by the operator", "by a message"};

static struct tool tool;

static int start(void **state)
{
	static const char *const arguments[] = {"--control", "@/" TOOL_CONTROL,
						"--experimental-suspend", NULL};

	*state = calloc(1, sizeof(struct setup));
	assert_non_null(*state);
	setup_start(*state, 2, "offer=inband-notifications", arguments);
	return 0;
}

static void operate(struct setup *setup, const char *command, const char *which)
{
	assert_int_equal(tool_run(&tool, setup, (const char *const[]){command, which, NULL}), 0);
}

/* The answer to any question says that the order before it was carried out. */
static void order(struct guest *guest, uint32_t request)
{
	uint64_t features;

	assert_int_equal(vhost_order(&guest->vhost, request), 0);
	assert_int_equal(vhost_get_u64(&guest->vhost, VHOST_GET_FEATURES, &features), 0);
}

static void quiet(struct setup *setup, struct guest *guest, enum way way)
{
	if (way == STOPPED)
		assert_int_equal(guest_stop(guest), 0);
	else if (way == BY_OPERATOR)
		operate(setup, "suspend", "3");
	else
		order(guest, SUSPEND);
}

static void wake(struct setup *setup, struct guest *guest, enum way way)
{
	if (way == STOPPED)
		migration_resume(guest);
	else if (way == BY_OPERATOR)
		operate(setup, "resume", "3");
	else
		order(guest, RESUME);
}

static struct guest *start_guest(struct setup *setup, enum guest_signals signals)
{
	struct guest *guest = setup_guest(setup, 0,
					  (struct guest_options){
						  .style = GUEST_LIKE_CROSVM,
						  .protocol_features = UINT64_MAX,
						  .signals = signals,
						  .is_prefilled = true,
					  });
	uint64_t features;

	/* Without acks: an answer says that it has a worker, which knows all of it. */
	assert_int_equal(vhost_get_u64(&guest->vhost, VHOST_GET_FEATURES, &features), 0);
	return guest;
}

/* ---- the log of what is written ---- */

static uint8_t *start_logging(struct guest *guest)
{
	int fd = memfd_create("log", MFD_CLOEXEC);
	uint8_t *bits;

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, LOG_LEN), 0);
	bits = mmap(NULL, LOG_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(bits, MAP_FAILED);
	assert_int_equal(vhost_set_log(&guest->vhost, LOG_LEN, 0, fd), 0);
	close(fd);
	assert_int_equal(vhost_set_u64(&guest->vhost, VHOST_SET_FEATURES,
				       guest->vhost.features | BIT64(VIRTIO_LOG_ALL)),
			 0);
	for (uint32_t i = 0; i < guest->n_rings; i++) {
		struct vhost_ring_address address = ring_addresses(&guest->rings[i], i);

		address.flags = 1;
		assert_int_equal(vhost_set_ring_address(&guest->vhost, &address), 0);
	}
	return bits;
}

/* ---- all that there is to be seen of a device ---- */

struct look {
	uint8_t *memory;
	uint8_t *log;
	size_t state_len; /* 0: not to be had */
	uint8_t state[4 * KIB];
};

static void clear(int fd)
{
	uint64_t count;

	while (read(fd, &count, sizeof(count)) > 0)
		;
}

static size_t take_state(struct guest *guest, enum way way)
{
	/* Rings are started, and the front-end knows of no reason why they should not run. */
	return way == BY_OPERATOR ? 0 : migration_save(&guest->vhost, false);
}

static void look(struct guest *guest, enum way way, struct look *look)
{
	for (size_t i = 0; i < guest->n_rings; i++)
		clear(guest->rings[i].call);
	look->state_len = take_state(guest, way);
	assert_true(look->state_len <= sizeof(look->state));
	memcpy(look->state, migration_state, look->state_len);
	memcpy(look->memory, memory_at(&guest->memory, MEMORY_START), MEMORY_SIZE);
	memset(look->log, 0, LOG_LEN);
}

static void assert_unchanged(struct guest *guest, enum way way, const struct look *look)
{
	uint8_t byte;

	assert_int_equal(memcmp(look->memory, memory_at(&guest->memory, MEMORY_START), MEMORY_SIZE),
			 0);
	for (size_t i = 0; i < LOG_LEN; i++)
		assert_int_equal(look->log[i], 0);
	for (size_t i = 0; i < guest->n_rings; i++)
		assert_int_equal(socket_wait(guest->rings[i].call, POLLIN, 0), -ETIMEDOUT);
	assert_int_equal(recv(guest->backend_fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK), -1);
	assert_int_equal(take_state(guest, way), look->state_len);
	assert_memory_equal(migration_state, look->state, look->state_len);
}

/* ---- pushing ---- */

struct crowd {
	struct guest_connection *streaming, *ending, *resetting, *asking;
	struct host_stream streams[3];
	struct program after;
	int listener;
	size_t n_pushed, n_checked;
};

static void gather(struct setup *setup, struct guest *guest, struct crowd *crowd)
{
	crowd->streaming = setup_connect(setup, 0, 1000, &crowd->streams[0]);
	crowd->ending = setup_connect(setup, 0, 1001, &crowd->streams[1]);
	crowd->resetting = setup_connect(setup, 0, 1002, &crowd->streams[2]);
	crowd->listener = host_listen(setup->uds_paths[0], 1003);
	assert_true(crowd->listener >= 0);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
}

/* Bytes in order, as many as the socket takes. */
static void push(struct crowd *crowd)
{
	static uint8_t bytes[64 * KIB];
	ssize_t n;

	do {
		pattern_fill(bytes, sizeof(bytes), 5, crowd->n_pushed);
		n = send(crowd->streams[0].watch.fd, bytes, sizeof(bytes),
			 MSG_DONTWAIT | MSG_NOSIGNAL);
		crowd->n_pushed += n > 0 ? (size_t)n : 0;
	} while (n > 0);
}

/* What the driver does while nobody looks: packets and kicks. */
static void offer(struct guest *guest, struct crowd *crowd)
{
	assert_int_equal(guest_send(crowd->streaming, "from the guest", 14), 14);
	crowd->asking = guest_connect(guest, PACKET_HOST_CID, 1003);
	assert_non_null(crowd->asking);
	for (size_t i = 0; i < guest->n_rings; i++) {
		uint64_t one = 1;

		assert_int_equal(write(guest->rings[i].kick, &one, sizeof(one)), sizeof(one));
	}
}

static void press(struct setup *setup, struct guest *guest, struct crowd *crowd)
{
	static const uint8_t unread[4096];

	push(crowd);
	shutdown(crowd->streams[1].watch.fd, SHUT_RDWR);
	assert_true(send(crowd->streams[2].watch.fd, unread, sizeof(unread), MSG_DONTWAIT) > 0);
	shutdown(crowd->streams[2].watch.fd, SHUT_RDWR);
	program_call(setup, guest, &crowd->after, 7002);
	poll(NULL, 0, QUIET);
	push(crowd);
	poll(NULL, 0, QUIET);
}

static bool has_moved(void *context)
{
	const struct crowd *crowd = context;

	return crowd->streams[0].n_received >= 14 &&
	       crowd->streaming->n_received >= crowd->n_pushed &&
	       crowd->asking->state != GUEST_CONNECTING;
}

static void check_bytes(void *context, const uint8_t *bytes, size_t len)
{
	struct crowd *crowd = context;

	assert_true(pattern_is(bytes, len, 5, crowd->n_checked));
	crowd->n_checked += len;
}

static bool have_ended(void *context)
{
	const struct crowd *crowd = context;

	return crowd->ending->state == GUEST_CLOSED || crowd->ending->peer_shutdown != 0;
}

static void expect_all(struct guest *guest, struct crowd *crowd)
{
	crowd->streaming->sink = check_bytes;
	crowd->streaming->sink_context = crowd;
	if (guest_wait_until(guest, has_moved, crowd, LIMIT) != 0)
		fail_msg("guest got %zu of %zu, host %zu, asking %d",
			 (size_t)crowd->streaming->n_received, crowd->n_pushed,
			 crowd->streams[0].n_received, crowd->asking->state);
	assert_int_equal(crowd->streaming->n_received, crowd->n_pushed);
	assert_int_equal(crowd->streams[0].n_received, 14);
	assert_memory_equal(crowd->streams[0].received, "from the guest", 14);
	assert_int_equal(crowd->asking->state, GUEST_ESTABLISHED);
	assert_int_equal(guest_wait_until(guest, have_ended, crowd, LIMIT), 0);
	program_assert_served(guest, &crowd->after);
}

static void disperse(struct setup *setup, struct crowd *crowd)
{
	char path[128];

	for (size_t i = 0; i < 3; i++)
		setup_end_stream(setup, 0, &crowd->streams[i]);
	close(crowd->listener);
	snprintf(path, sizeof(path), "%s_1003", setup->uds_paths[0]);
	assert_int_equal(unlink(path), 0);
}

static void check_way(struct setup *setup, enum way way, enum guest_signals signals)
{
	struct guest *guest = start_guest(setup, signals);
	struct look before = {.memory = malloc(MEMORY_SIZE), .log = start_logging(guest)};
	struct crowd crowd = {.n_pushed = 0};

	assert_non_null(before.memory);
	gather(setup, guest, &crowd);
	quiet(setup, guest, way);
	/* In band a kick is a message, and answered; that is all. */
	offer(guest, &crowd);
	look(guest, way, &before);
	press(setup, guest, &crowd);
	assert_unchanged(guest, way, &before);
	wake(setup, guest, way);
	expect_all(guest, &crowd);
	disperse(setup, &crowd);
	munmap(before.log, LOG_LEN);
	free(before.memory);
	setup_end_guest(setup, 0);
}

static void test_nothing_changes_and_nothing_is_lost(void **state)
{
	for (int way = 0; way < WAYS; way++) {
		print_message("%s\n", names[way]);
		check_way(*state, (enum way)way, GUEST_SIGNALS_FD);
	}
}

static void test_nothing_is_said_in_band_either(void **state)
{
	for (int way = 0; way < WAYS; way++) {
		print_message("%s\n", names[way]);
		check_way(*state, (enum way)way, GUEST_SIGNALS_IN_BAND);
	}
}

static void test_a_polled_ring_is_not_looked_at(void **state)
{
	for (int way = 0; way < WAYS; way++)
		check_way(*state, (enum way)way, GUEST_SIGNALS_POLLED);
}

/* ---- answers that come meanwhile ---- */

/* A listener whose backlog is full: the guest's request is tried for two seconds. */
static void fill_backlog(struct setup *setup, uint32_t port, int *fds, size_t n)
{
	fds[0] = host_listen(setup->uds_paths[0], port);
	assert_true(fds[0] >= 0);
	assert_int_equal(listen(fds[0], 0), 0);
	for (size_t i = 1; i < n; i++) {
		struct sockaddr_un address = {.sun_family = AF_UNIX};

		assert_true(snprintf(address.sun_path, sizeof(address.sun_path), "%s_%u",
				     setup->uds_paths[0], port) < (int)sizeof(address.sun_path));
		fds[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		assert_true(fds[i] >= 0);
		if (connect(fds[i], (struct sockaddr *)&address, sizeof(address)) < 0)
			assert_int_equal(errno, EAGAIN);
	}
}

static void test_a_refusal_that_comes_meanwhile_is_told_afterwards(void **state)
{
	struct setup *setup = *state;

	for (int way = 0; way < WAYS; way++) {
		struct guest *guest = start_guest(setup, GUEST_SIGNALS_FD);
		struct look before = {.memory = malloc(MEMORY_SIZE), .log = start_logging(guest)};
		struct guest_connection *connection;
		int fds[4];
		char path[128];

		assert_non_null(before.memory);
		fill_backlog(setup, 1004, fds, 4);
		connection = guest_connect(guest, PACKET_HOST_CID, 1004);
		assert_int_equal(guest_poll_for(guest, QUIET), 0);
		assert_int_equal(connection->state, GUEST_CONNECTING);
		quiet(setup, guest, (enum way)way);
		look(guest, (enum way)way, &before);
		assert_true(way == BY_OPERATOR || migration_get32(before.state + AT_COUNT) == 1);
		assert_int_equal(daemon_wait_log(&setup->daemon, "host port 1004", LIMIT), 0);
		poll(NULL, 0, QUIET);
		assert_unchanged(guest, (enum way)way, &before);
		wake(setup, guest, (enum way)way);
		assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
		assert_int_equal(connection->error, ECONNRESET);
		guest_forget(connection);
		for (size_t i = 0; i < 4; i++)
			close(fds[i]);
		snprintf(path, sizeof(path), "%s_1004", setup->uds_paths[0]);
		assert_int_equal(unlink(path), 0);
		munmap(before.log, LOG_LEN);
		free(before.memory);
		setup_end_guest(setup, 0);
	}
}

/* ---- transfers ---- */

static void test_every_byte_comes_through_however_often_it_is_suspended(void **state)
{
	struct setup *setup = *state;

	for (int way = 0; way < WAYS; way++) {
		struct guest *guest = start_guest(setup, GUEST_SIGNALS_FD);
		struct transfer transfer;

		transfer_start(&transfer, setup, 0, 1000, 2048 * KIB);
		for (size_t n = 100; n < 2000; n += way == BY_OPERATOR ? 300 : 100) {
			transfer_run_to(&transfer, n * KIB);
			quiet(setup, guest, (enum way)way);
			transfer_step(&transfer, 0);
			wake(setup, guest, (enum way)way);
		}
		transfer_finish(&transfer);
		setup_end_guest(setup, 0);
	}
}

/* ---- other messages meanwhile ---- */

static void test_rings_that_start_and_stop_meanwhile_are_left_alone(void **state)
{
	struct setup *setup = *state;

	for (int way = BY_OPERATOR; way < WAYS; way++) {
		struct guest *guest = start_guest(setup, GUEST_SIGNALS_FD);
		struct host_stream stream;
		struct guest_connection *connection = setup_connect(setup, 0, 1000, &stream);
		uint16_t used[GUEST_RINGS];

		quiet(setup, guest, (enum way)way);
		assert_int_equal(guest_send(connection, "12345", 5), 5);
		assert_int_equal(guest_stop(guest), 0);
		for (size_t i = 0; i < guest->n_rings; i++)
			used[i] = ring_used_idx(&guest->rings[i]);
		migration_resume(guest);
		assert_int_equal(host_write(stream.watch.fd, "abc", 3, LIMIT), 0);
		poll(NULL, 0, QUIET);
		for (size_t i = 0; i < guest->n_rings; i++)
			assert_int_equal(ring_used_idx(&guest->rings[i]), used[i]);
		wake(setup, guest, (enum way)way);
		while (stream.n_received < 5 || connection->n_received < 3)
			assert_true(guest_poll(guest, LIMIT) > 0);
		assert_int_equal(guest_finish(connection, LIMIT), 0);
		setup_end_stream(setup, 0, &stream);
		setup_end_guest(setup, 0);
	}
}

static void test_both_that_suspended_it_have_to_resume_it(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup, GUEST_SIGNALS_FD);
	struct program program;

	operate(setup, "suspend", "all");
	order(guest, SUSPEND);
	program_call(setup, guest, &program, 7000);
	operate(setup, "resume", "3");
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	program_assert_held(guest, &program);
	order(guest, RESUME);
	program_assert_served(guest, &program);
	operate(setup, "resume", "all");
}

static void test_a_reset_ends_what_the_front_end_said_and_nothing_else(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup, GUEST_SIGNALS_FD);
	struct program program;

	order(guest, SUSPEND);
	operate(setup, "suspend", "3");
	assert_int_equal(guest_reset(guest), 0);
	migration_resume(guest);
	operate(setup, "status", NULL);
	assert_non_null(strstr(tool.text, "suspended"));
	operate(setup, "resume", "3");
	program_call(setup, guest, &program, 7000);
	program_assert_served(guest, &program);
}

static void test_what_the_operator_said_outlives_the_session(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup, GUEST_SIGNALS_FD);

	operate(setup, "suspend", "3");
	setup_end_guest(setup, 0);
	guest = start_guest(setup, GUEST_SIGNALS_FD);
	operate(setup, "status", NULL);
	assert_non_null(strstr(tool.text, "suspended"));
	assert_int_equal(ring_used_idx(&guest->rings[GUEST_RX]),
			 (uint16_t)ring_first_base(&guest->rings[GUEST_RX]));
	operate(setup, "resume", "3");
	program_assert_serves(setup, guest);
}

static void test_a_successor_of_a_dead_worker_is_suspended_too(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup, GUEST_SIGNALS_FD);
	struct guest_connection *connection;
	struct host_stream stream;
	uint16_t used[GUEST_RINGS];

	connection = setup_connect(setup, 0, 1000, &stream);
	order(guest, SUSPEND);
	for (size_t i = 0; i < guest->n_rings; i++)
		used[i] = ring_used_idx(&guest->rings[i]);
	assert_int_equal(daemon_kill(setup_worker(setup, 0), LIMIT), 0);
	assert_int_equal(guest_send(connection, "12345", 5), 5);
	assert_true(setup_worker(setup, 0) > 0);
	poll(NULL, 0, QUIET);
	for (size_t i = 0; i < guest->n_rings; i++)
		assert_int_equal(ring_used_idx(&guest->rings[i]), used[i]);
	order(guest, RESUME);
	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	assert_int_equal(connection->error, ECONNRESET);
	guest_forget(connection);
	setup_end_stream(setup, 0, &stream);
	program_assert_serves(setup, guest);
}

static void test_another_vm_goes_on(void **state)
{
	struct setup *setup = *state;

	setup_guest(setup, 1, (struct guest_options){0});
	start_guest(setup, GUEST_SIGNALS_FD);
	operate(setup, "suspend", "3");
	transfer_all(setup, 1, 1000, 300 * KIB);
	operate(setup, "resume", "3");
	transfer_all(setup, 0, 1000, 300 * KIB);
}

static void test_a_vm_that_is_not_there_is_not_suspended(void **state)
{
	static const struct {
		const char *which;
		int status;
	} cases[] = {{"77", 65}, {"0", 65}, {"every", 64}};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		assert_int_equal(tool_run(&tool, *state,
					  (const char *const[]){"suspend", cases[i].which, NULL}),
				 cases[i].status);
	operate(*state, "status", NULL);
	assert_null(strstr(tool.text, "suspended"));
}

static void test_a_state_is_loaded_with_all_rings_stopped_only(void **state)
{
	struct guest *guest = start_guest(*state, GUEST_SIGNALS_FD);
	uint64_t answer;

	order(guest, SUSPEND);
	close(migration_open(&guest->vhost, LOAD, false, &answer));
	assert_int_equal(answer, 0x101);
	order(guest, RESUME);
}

static void test_the_messages_are_not_offered_unasked(void **state)
{
	struct setup *setup = *state;
	struct vhost vhost;
	uint64_t value;

	assert_int_equal(vhost_connect(setup->sockets[0], LIMIT, &vhost), 0);
	assert_int_equal(vhost_get_u64(&vhost, VHOST_GET_PROTOCOL_FEATURES, &value), 0);
	assert_int_equal(value >> SUSPEND_BIT & 1, 0);
	assert_int_equal(vhost_order(&vhost, SUSPEND), 0);
	assert_int_equal(vhost_wait_closed(&vhost), 0);
	vhost_close(&vhost);
}

int main(void)
{
#define TWO(name)    cmocka_unit_test_setup_teardown(name, start, migration_end)
#define KILLED(name) cmocka_unit_test_setup_teardown(name, start, setup_end)
	const struct CMUnitTest tests[] = {
		TWO(test_nothing_changes_and_nothing_is_lost),
		TWO(test_nothing_is_said_in_band_either),
		TWO(test_a_polled_ring_is_not_looked_at),
		TWO(test_a_refusal_that_comes_meanwhile_is_told_afterwards),
		TWO(test_every_byte_comes_through_however_often_it_is_suspended),
		TWO(test_rings_that_start_and_stop_meanwhile_are_left_alone),
		TWO(test_both_that_suspended_it_have_to_resume_it),
		TWO(test_a_reset_ends_what_the_front_end_said_and_nothing_else),
		TWO(test_what_the_operator_said_outlives_the_session),
		KILLED(test_a_successor_of_a_dead_worker_is_suspended_too),
		TWO(test_another_vm_goes_on),
		TWO(test_a_vm_that_is_not_there_is_not_suspended),
		TWO(test_a_state_is_loaded_with_all_rings_stopped_only),
		cmocka_unit_test_setup_teardown(test_the_messages_are_not_offered_unasked,
						setup_start_one, setup_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */

/* Packets in a file: "vsockctl capture". */

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/frontend/socket.h"
#include "tests/integration/setup.h"
#include "tests/integration/tool.h"
#include "tests/integration/transfer.h"

#define LIMIT SETUP_LIMIT

/* sysexits.h */
enum { DATAERR = 65, UNAVAILABLE = 69, TEMPFAIL = 75 };

static struct tool tool, other;

static int start_one(void **state)
{
	*state = calloc(1, sizeof(struct setup));
	setup_start(*state, 1, NULL, TOOL_ARGUMENTS);
	return 0;
}

static int start_two_of_file(void **state)
{
	struct setup *setup = calloc(1, sizeof(*setup));

	*state = setup;
	if (!setup)
		return -1;
	setup_choose_file(setup);
	setup_start(setup, 2, NULL, TOOL_ARGUMENTS);
	return 0;
}

/* ---- the file ---- */

#define FILE_HEADER_LEN 24
#define MONITOR_LEN	32 /* struct af_vsockmon_hdr */
#define PACKET_LEN	44

struct captured {
	uint32_t seconds, microseconds, captured_len, len;
	uint8_t bytes[MONITOR_LEN + PACKET_LEN + 512];
};

static const char *path_of(struct setup *setup)
{
	static char path[128];

	snprintf(path, sizeof(path), "%s", daemon_path(&setup->daemon, "pcap"));
	return path;
}

static uint32_t le32(const uint8_t *bytes)
{
	uint32_t value;

	memcpy(&value, bytes, sizeof(value));
	return value;
}

/* pcap-savefile(5), version 2.4, with the link type of vsock monitors. */
static FILE *open_file(struct setup *setup)
{
	static const uint32_t begin[] = {0xa1b2c3d4, 2 | 4 << 16};
	uint32_t head[6];
	FILE *file = fopen(path_of(setup), "r");

	assert_non_null(file);
	assert_int_equal(fread(head, sizeof(head), 1, file), 1);
	assert_memory_equal(head, begin, sizeof(begin));
	assert_int_equal(head[5], 271);
	return file;
}

/* The next record, or false at the end; one that is not whole is a failure. */
static bool read_captured(FILE *file, struct captured *ret)
{
	size_t n = fread(ret, 1, 16, file);

	if (n == 0)
		return false;
	assert_int_equal(n, 16);
	assert_in_range(ret->captured_len, MONITOR_LEN + PACKET_LEN, sizeof(ret->bytes));
	assert_in_range(ret->len, ret->captured_len, MONITOR_LEN + PACKET_LEN + 65536);
	assert_int_equal(fread(ret->bytes, ret->captured_len, 1, file), 1);
	assert_int_equal(ret->bytes[26], 2); /* virtio */
	assert_int_equal(ret->bytes[28], PACKET_LEN);
	/* Both headers say the same of the two ends. */
	assert_memory_equal(ret->bytes, ret->bytes + MONITOR_LEN, 24);
	return true;
}

static uint64_t count_captured(struct setup *setup)
{
	FILE *file = open_file(setup);
	struct captured captured;
	uint64_t n = 0;

	while (read_captured(file, &captured))
		n++;
	fclose(file);
	return n;
}

static bool has_payload(struct setup *setup, uint64_t src_cid, const char *payload)
{
	FILE *file = open_file(setup);
	struct captured captured;
	size_t len = strlen(payload);
	bool is_found = false;

	while (read_captured(file, &captured))
		is_found |= captured.bytes[24] == 4 && le32(captured.bytes) == src_cid &&
			    captured.captured_len == MONITOR_LEN + PACKET_LEN + len &&
			    memcmp(captured.bytes + MONITOR_LEN + PACKET_LEN, payload, len) == 0;
	fclose(file);
	return is_found;
}

static off_t size_of(const char *path)
{
	struct stat status;

	return stat(path, &status) == 0 ? status.st_size : 0;
}

/* ---- the program ---- */

/* Beside the one that captures. */
static int run_other(struct setup *setup, const char *first, const char *second)
{
	return tool_run(&other, setup, (const char *const[]){first, second, NULL});
}

/* Its head is written when vsockd has agreed; the worker is told before it answers the rest. */
static void start_capture(struct setup *setup, const char *n_bytes)
{
	tool_start(&tool, daemon_path(&setup->daemon, TOOL_CONTROL),
		   (const char *const[]){"capture", "3", path_of(setup), n_bytes, NULL});
	while (size_of(path_of(setup)) < FILE_HEADER_LEN)
		assert_int_equal(run_other(setup, "status", NULL), 0);
	assert_int_equal(run_other(setup, "connections", NULL), 0);
}

/* As an operator does, with ^C. */
static void end_capture(uint64_t *ret_n_packets, uint64_t *ret_n_left_out)
{
	assert_int_equal(kill(tool.pid, SIGINT), 0);
	assert_int_equal(tool_end(&tool), 0);
	assert_int_equal(sscanf(tool.complaint, "%" SCNu64 " packets, %" SCNu64 " left out\n",
				ret_n_packets, ret_n_left_out),
			 2);
}

/* What the device has moved, in both directions, by its own count. */
static uint64_t count_moved(struct setup *setup)
{
	static const char *const names[] = {"to_guest", "from_guest"};
	uint64_t n, sum = 0;

	assert_int_equal(run_other(setup, "metrics", NULL), 0);
	for (size_t i = 0; i < 2; i++) {
		char text[96];
		const char *at;

		snprintf(text, sizeof(text), "\nvsockd_packets_total{vm=\"3\",direction=\"%s\"} ",
			 names[i]);
		at = strstr(other.text, text);
		assert_non_null(at);
		assert_int_equal(sscanf(at + strlen(text), "%" SCNu64, &n), 1);
		sum += n;
	}
	return sum;
}

/* A connection to the host on which each says one thing. */
static void exchange(struct setup *setup, const char *from_guest, const char *from_host)
{
	struct guest *guest = &setup->guests[0];
	struct host_stream stream;
	struct guest_connection *connection = setup_connect(setup, 0, 2000, &stream);
	char answer[64];

	assert_int_equal(guest_send_all(connection, from_guest, strlen(from_guest), LIMIT), 0);
	while (stream.n_received < strlen(from_guest))
		assert_true(guest_poll(guest, LIMIT) > 0);
	assert_int_equal(host_write(stream.watch.fd, from_host, strlen(from_host), LIMIT), 0);
	assert_int_equal(guest_receive_all(connection, answer, strlen(from_host), LIMIT),
			 strlen(from_host));
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

/* ---- tests ---- */

static void test_packets_of_both_directions_come_as_from_a_vsock_monitor(void **state)
{
	struct setup *setup = *state;
	bool saw_request = false, saw_hello = false, saw_answer = false;
	struct captured captured;
	uint64_t n_packets, n_left_out;
	FILE *file;

	setup_guest(setup, 0, (struct guest_options){0});
	start_capture(setup, "5");
	exchange(setup, "hello!", "yes");
	end_capture(&n_packets, &n_left_out);
	assert_int_equal(n_left_out, 0);
	assert_int_equal(count_captured(setup), n_packets);

	file = open_file(setup);
	while (read_captured(file, &captured)) {
		const uint8_t *payload = captured.bytes + MONITOR_LEN + PACKET_LEN;
		uint32_t src_cid = le32(captured.bytes), op = captured.bytes[24];

		saw_request |= op == 1 && src_cid == 3 && le32(captured.bytes + 20) == 2000;
		if (op != 4)
			continue;
		saw_hello |= src_cid == 3 && captured.len == MONITOR_LEN + PACKET_LEN + 6 &&
			     captured.captured_len == MONITOR_LEN + PACKET_LEN + 5 &&
			     memcmp(payload, "hello", 5) == 0;
		saw_answer |= src_cid == 2 && captured.len == captured.captured_len &&
			      memcmp(payload, "yes", 3) == 0;
	}
	fclose(file);
	assert_true(saw_request && saw_hello && saw_answer);
}

static void test_one_at_a_time_looks(void **state)
{
	struct setup *setup = *state;
	uint64_t n_packets, n_left_out;

	start_capture(setup, NULL);
	assert_int_equal(tool_run(&other, setup, (const char *const[]){"capture", "3", "x", NULL}),
			 TEMPFAIL);
	assert_non_null(strstr(other.complaint, "somebody else captures VM 3"));
	end_capture(&n_packets, &n_left_out);
	assert_int_equal(n_packets + n_left_out, 0);
	/* Its place is free again. */
	assert_int_equal(unlink(path_of(setup)), 0);
	start_capture(setup, NULL);
	end_capture(&n_packets, &n_left_out);
	assert_int_equal(
		tool_run(&tool, setup, (const char *const[]){"capture", "9", path_of(setup), NULL}),
		DATAERR);
	assert_non_null(strstr(tool.complaint, "there is no VM with CID 9"));
}

static void test_it_begins_before_the_guest_and_goes_on_with_another_worker(void **state)
{
	struct setup *setup = *state;
	uint64_t n_packets, n_left_out;

	start_capture(setup, NULL);
	setup_guest(setup, 0, (struct guest_options){0});
	exchange(setup, "one", "eno");
	assert_int_equal(run_other(setup, "replace", "3"), 0);
	exchange(setup, "two", "owt");
	assert_int_equal(daemon_kill(setup_worker(setup, 0), LIMIT), 0);
	assert_int_equal(daemon_wait_log(&setup->daemon, "worker lost", LIMIT), 0);
	setup_worker(setup, 0);
	exchange(setup, "three", "eerht");
	setup_end_guest(setup, 0);
	setup_guest(setup, 0, (struct guest_options){0});
	exchange(setup, "four", "ruof");
	end_capture(&n_packets, &n_left_out);
	assert_int_equal(n_left_out, 0);
	assert_int_equal(count_captured(setup), n_packets);
	assert_true(has_payload(setup, 3, "one") && has_payload(setup, 2, "eno"));
	assert_true(has_payload(setup, 3, "two") && has_payload(setup, 2, "owt"));
	assert_true(has_payload(setup, 3, "three") && has_payload(setup, 2, "eerht"));
	assert_true(has_payload(setup, 3, "four") && has_payload(setup, 2, "ruof"));
}

static void test_a_reader_that_stands_still_loses_records_and_nothing_else(void **state)
{
	struct setup *setup = *state;
	uint64_t n_packets, n_left_out, n_moved;

	start_capture(setup, NULL);
	setup_guest(setup, 0, (struct guest_options){0});
	assert_int_equal(kill(tool.pid, SIGSTOP), 0);
	transfer_all(setup, 0, 2000, 8 << 20);
	/* What is counted goes along with the device. */
	assert_int_equal(run_other(setup, "replace", "3"), 0);
	transfer_all(setup, 0, 2001, 1 << 20);
	n_moved = count_moved(setup);
	assert_int_equal(kill(tool.pid, SIGCONT), 0);
	end_capture(&n_packets, &n_left_out);
	assert_true(n_packets > 0 && n_left_out > 0);
	assert_int_equal(n_packets + n_left_out, n_moved);
	assert_int_equal(count_captured(setup), n_packets);
}

static void test_it_ends_with_its_vm(void **state)
{
	struct setup *setup = *state;
	uint64_t n_packets, n_left_out;

	start_capture(setup, NULL);
	setup_write_file(setup, 1u << 1, NULL);
	assert_int_equal(kill(setup->daemon.pid, SIGHUP), 0);
	assert_int_equal(tool_end(&tool), DATAERR);
	assert_non_null(strstr(tool.complaint, "there is no VM with CID 3"));
	setup_write_file(setup, 1u << 0 | 1u << 1, NULL);
	assert_int_equal(kill(setup->daemon.pid, SIGHUP), 0);
	assert_int_equal(daemon_wait_log(&setup->daemon, "reload: 1 added", LIMIT), 0);
	/* The next one has nothing of it. */
	assert_int_equal(unlink(path_of(setup)), 0);
	start_capture(setup, NULL);
	setup_guest(setup, 0, (struct guest_options){0});
	exchange(setup, "one", "eno");
	end_capture(&n_packets, &n_left_out);
	assert_int_equal(n_left_out, 0);
	assert_true(has_payload(setup, 3, "one"));
}

static void test_it_ends_with_vsockd(void **state)
{
	struct setup *setup = *state;

	start_capture(setup, NULL);
	assert_int_equal(kill(setup->daemon.pid, SIGTERM), 0);
	assert_int_equal(tool_end(&tool), UNAVAILABLE);
	assert_non_null(strstr(tool.complaint, "vsockd closed the connection"));
	assert_int_equal(socket_wait(setup->daemon.pidfd, POLLIN, deadline_in(LIMIT)), 0);
}

#define WITH_ONE(test)	cmocka_unit_test_setup_teardown(test, start_one, setup_end)
#define WITH_FILE(test) cmocka_unit_test_setup_teardown(test, start_two_of_file, setup_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_ONE(test_packets_of_both_directions_come_as_from_a_vsock_monitor),
		WITH_ONE(test_one_at_a_time_looks),
		WITH_ONE(test_it_begins_before_the_guest_and_goes_on_with_another_worker),
		WITH_ONE(test_a_reader_that_stands_still_loses_records_and_nothing_else),
		WITH_FILE(test_it_ends_with_its_vm),
		WITH_ONE(test_it_ends_with_vsockd),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

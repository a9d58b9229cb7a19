/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "worker/capture.h"

static struct capture capture;
static int reader;

struct record {
	struct capture_prefix prefix;
	struct packet_header header;
	uint8_t payload[CAPTURE_PAYLOAD_MAX];
} __attribute__((packed));

static struct record record;

static void start(uint32_t payload_max)
{
	int pair[2];

	assert_int_equal(
		socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
	reader = pair[1];
	capture_set(&capture, pair[0], 1, payload_max);
}

static int set_up(void **state)
{
	(void)state;
	/* As the worker has it from its starter. */
	(void)signal(SIGPIPE, SIG_IGN);
	capture_init(&capture);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	capture_set(&capture, -1, 0, 0);
	if (reader >= 0)
		close(reader);
	return 0;
}

static ssize_t read_record(void)
{
	memset(&record, 0, sizeof(record));
	return recv(reader, &record, sizeof(record), MSG_DONTWAIT);
}

static struct packet_header make_header(uint32_t len)
{
	return (struct packet_header){.src_cid = 3,
				      .dst_cid = 2,
				      .src_port = 1000,
				      .dst_port = 80,
				      .len = len,
				      .type = PACKET_TYPE_STREAM,
				      .op = PACKET_OP_RW};
}

/* A packet whose bytes are these, behind a header that is in the first part. */
static void put(const char *payload, uint32_t len)
{
	char place[PACKET_HEADER_LEN];
	struct iovec parts[] = {{place, sizeof(place)}, {(void *)(uintptr_t)payload, len}};
	struct packet_header header = make_header(len);

	capture_packet(&capture, &header, parts, 2, len);
}

static void test_a_record_is_the_header_and_the_first_bytes(void **state)
{
	(void)state;
	start(5);
	put("hello world", 11);
	put("", 0);
	assert_int_equal(read_record(), sizeof(record.prefix) + PACKET_HEADER_LEN + 5);
	assert_int_equal(record.prefix.payload_len, 11);
	assert_int_equal(record.prefix.captured_len, 5);
	assert_int_equal(record.prefix.n_dropped, 0);
	assert_int_equal(record.header.dst_port, 80);
	assert_memory_equal(record.payload, "hello", 5);
	assert_int_equal(read_record(), sizeof(record.prefix) + PACKET_HEADER_LEN);
	assert_int_equal(record.prefix.captured_len, 0);
}

static void test_a_guest_that_says_more_than_it_sends_has_sent_what_is_there(void **state)
{
	char place[PACKET_HEADER_LEN];
	struct iovec parts[] = {{place, sizeof(place)}, {(void *)(uintptr_t) "abc", 3}};
	struct packet_header header = make_header(UINT32_MAX);

	(void)state;
	start(5);
	capture_packet(&capture, &header, parts, 2, UINT32_MAX);
	assert_int_equal(read_record(), sizeof(record.prefix) + PACKET_HEADER_LEN + 3);
	assert_int_equal(record.prefix.payload_len, 3);
	assert_int_equal(record.prefix.captured_len, 3);
	assert_int_equal(record.header.len, UINT32_MAX);
}

static void test_a_payload_in_very_many_parts_is_cut(void **state)
{
	static char bytes[PACKET_HEADER_LEN + 200];
	struct iovec parts[201] = {{bytes, PACKET_HEADER_LEN}};
	struct packet_header header = make_header(200);

	(void)state;
	for (size_t i = 1; i <= 200; i++)
		parts[i] = (struct iovec){bytes + PACKET_HEADER_LEN + i - 1, 1};
	memset(bytes, 'x', sizeof(bytes));
	start(200);
	capture_packet(&capture, &header, parts, 201, 200);
	assert_true(read_record() > 0);
	assert_int_equal(record.prefix.payload_len, 200);
	assert_in_range(record.prefix.captured_len, 32, 199);
	assert_int_equal(record.payload[record.prefix.captured_len - 1], 'x');
	assert_int_equal(record.payload[record.prefix.captured_len], 0);
}

static void test_what_finds_no_room_is_counted_and_waits_for_nobody(void **state)
{
	uint32_t n_put = 0, n_read = 0, n_dropped = 0;

	(void)state;
	start(10);
	for (; n_put < 5000; n_put++)
		put("0123456789", 10);
	while (read_record() > 0) {
		n_read++;
		n_dropped += record.prefix.n_dropped;
	}
	assert_true(n_read < 5000);
	put("x", 1);
	assert_true(read_record() > 0);
	assert_int_equal(n_read + n_dropped + record.prefix.n_dropped, 5000);
	put("y", 1);
	assert_true(read_record() > 0);
	assert_int_equal(record.prefix.n_dropped, 0);
}

static void test_nobody_is_written_to_once_the_reader_is_gone(void **state)
{
	(void)state;
	start(10);
	close(reader);
	reader = -1;
	put("x", 1);
	assert_int_equal(capture.fd, -1);
	put("x", 1);
	/* One that has not read all of it. */
	start(10);
	put("x", 1);
	close(reader);
	reader = -1;
	put("x", 1);
	assert_int_equal(capture.fd, -1);
	/* And another one may come. */
	start(10);
	put("x", 1);
	assert_true(read_record() > 0);
}

/* What does not look at its arguments costs no more than the call. */
static void test_while_nobody_looks_nothing_is_looked_at(void **state)
{
	(void)state;
	capture_packet(&capture, NULL, NULL, 5, 5);
	start(5);
	capture_set(&capture, -1, 0, 0);
	capture_packet(&capture, NULL, NULL, 5, 5);
}

/* A worker that is told the same again, and one that goes on for another. */
static void test_what_was_left_out_is_told_when_the_same_goes_on_and_at_the_end(void **state)
{
	uint32_t n_read = 0, n_dropped = 0;
	ssize_t n;

	(void)state;
	start(10);
	for (uint32_t i = 0; i < 5000; i++)
		put("0123456789", 10);
	capture_set(&capture, dup(capture.fd), 1, 10);
	while (read_record() > 0)
		n_read++;
	capture_set(&capture, -1, 0, 0);
	while ((n = read_record()) > 0) {
		assert_int_equal(n, sizeof(record.prefix));
		n_dropped += record.prefix.n_dropped;
	}
	assert_int_equal(n_read + n_dropped, 5000);
	close(reader);
	/* Somebody else is not told of what the former did not see. */
	start(10);
	put("x", 1);
	assert_true(read_record() > 0);
	assert_int_equal(record.prefix.n_dropped, 0);
}

/* The front-end takes memory away while its guest's packet is looked at. */
static void test_memory_that_is_gone_ends_nothing(void **state)
{
	void *page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char place[PACKET_HEADER_LEN];
	struct iovec parts[] = {{place, sizeof(place)}, {page, 100}};
	struct packet_header header = make_header(100);
	const char *preload = getenv("LD_PRELOAD");

	(void)state;
	/* Valgrind looks at what a system call is given, before the kernel can say no. */
	if (preload && strstr(preload, "vgpreload")) {
		print_message("skipped: valgrind takes memory that is gone for a mistake\n");
		skip();
	}
	start(100);
	capture_packet(&capture, &header, parts, 2, 100);
	assert_true(capture.fd >= 0);
	put("x", 1);
	assert_true(read_record() > 0);
	assert_int_equal(record.prefix.n_dropped, 1);
	munmap(page, 4096);
}

#define WITH_CAPTURE(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_CAPTURE(test_a_record_is_the_header_and_the_first_bytes),
		WITH_CAPTURE(test_a_guest_that_says_more_than_it_sends_has_sent_what_is_there),
		WITH_CAPTURE(test_a_payload_in_very_many_parts_is_cut),
		WITH_CAPTURE(test_what_finds_no_room_is_counted_and_waits_for_nobody),
		WITH_CAPTURE(test_nobody_is_written_to_once_the_reader_is_gone),
		WITH_CAPTURE(test_while_nobody_looks_nothing_is_looked_at),
		WITH_CAPTURE(test_what_was_left_out_is_told_when_the_same_goes_on_and_at_the_end),
		WITH_CAPTURE(test_memory_that_is_gone_ends_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

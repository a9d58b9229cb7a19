/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "worker/dirty_log.h"

#define PAGE 4096u
#define LEN  (4 * PAGE) /* bytes of the file, of which a log is a part */

static struct {
	struct dirty_log log;
	int fd; /* ours: what the log's own fd is a duplicate of */
	uint8_t *bits;
} f;

static int new_file(size_t len)
{
	int fd = memfd_create("log", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)len), 0);
	return fd;
}

static int set_up(void **state)
{
	(void)state;
	dirty_log_init(&f.log);
	f.fd = new_file(LEN);
	f.bits = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, f.fd, 0);
	assert_ptr_not_equal(f.bits, MAP_FAILED);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	if (f.log.bits)
		munmap(f.log.mapping, f.log.mapping_len);
	munmap(f.bits, LEN);
	close(f.fd);
	return 0;
}

static void set(uint64_t size, uint64_t offset)
{
	assert_int_equal(dirty_log_set(&f.log, size, offset, PAGE, dup(f.fd)), 0);
	f.log.is_on = true;
}

static size_t count_bits(void)
{
	size_t n = 0;

	for (size_t i = 0; i < LEN; i++)
		n += (size_t)__builtin_popcount(f.bits[i]);
	return n;
}

/* Exactly the pages first..last of a log that starts at this byte of the file. */
static void assert_marked(uint64_t offset, uint64_t first, uint64_t last)
{
	for (uint64_t page = first; page <= last; page++)
		assert_int_equal(f.bits[offset + page / 8] >> page % 8 & 1, 1);
	assert_int_equal(count_bits(), last - first + 1);
	memset(f.bits, 0, LEN);
}

static void test_a_page_is_the_bit_of_its_number_lowest_first(void **state)
{
	(void)state;
	set(LEN, 0);
	dirty_log_mark(&f.log, 0, 1);
	assert_int_equal(f.bits[0], 0x01);
	dirty_log_mark(&f.log, 1 * PAGE, 1);
	assert_int_equal(f.bits[0], 0x03);
	dirty_log_mark(&f.log, 7 * PAGE, 1);
	assert_int_equal(f.bits[0], 0x83);
	dirty_log_mark(&f.log, 8 * PAGE, 1);
	assert_int_equal(f.bits[1], 0x01);
	assert_int_equal(count_bits(), 4);
}

static void test_every_page_that_a_write_touches_is_marked_and_no_other(void **state)
{
	static const struct {
		uint64_t address, len, first, last;
	} cases[] = {
		{0, 1, 0, 0},
		{0, PAGE, 0, 0},
		{0, PAGE + 1, 0, 1},
		{PAGE - 1, 1, 0, 0},
		{PAGE - 1, 2, 0, 1},
		{PAGE, 1, 1, 1},
		{PAGE - 1, PAGE + 2, 0, 2},
		{3 * PAGE, 5 * PAGE, 3, 7},
		{3 * PAGE + 1, 5 * PAGE, 3, 8},
		{100 * PAGE + 4095, 64 * 1024 + 44, 100, 117},
	};

	(void)state;
	set(LEN, 0);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		dirty_log_mark(&f.log, cases[i].address, cases[i].len);
		assert_marked(0, cases[i].first, cases[i].last);
	}
	dirty_log_mark(&f.log, 5 * PAGE, 0);
	assert_int_equal(count_bits(), 0);
}

static void test_bits_that_others_set_stay(void **state)
{
	(void)state;
	set(LEN, 0);
	memset(f.bits, 0x81, LEN);
	dirty_log_mark(&f.log, 9 * PAGE, 1);
	assert_int_equal(f.bits[0], 0x81);
	assert_int_equal(f.bits[1], 0x83);
	assert_int_equal(f.bits[2], 0x81);
}

/* A log may begin anywhere in its file; nothing outside of it is written. */
static void test_what_lies_beyond_the_log_is_left_alone(void **state)
{
	static const struct {
		uint64_t size, offset;
	} logs[] = {{1, 0}, {1, PAGE - 1}, {7, 24}, {PAGE, PAGE}, {PAGE, 1}, {LEN - 5, 5}};

	(void)state;
	for (size_t i = 0; i < sizeof(logs) / sizeof(logs[0]); i++) {
		uint64_t n_pages = 8 * logs[i].size;

		set(logs[i].size, logs[i].offset);
		dirty_log_mark(&f.log, 0, n_pages * PAGE);
		assert_marked(logs[i].offset, 0, n_pages - 1);
		/* The last page that has a bit, and from there on. */
		dirty_log_mark(&f.log, (n_pages - 1) * PAGE, 3 * PAGE);
		assert_marked(logs[i].offset, n_pages - 1, n_pages - 1);
		dirty_log_mark(&f.log, n_pages * PAGE, PAGE);
		dirty_log_mark(&f.log, UINT64_MAX - PAGE, PAGE);
		dirty_log_mark(&f.log, UINT64_MAX, 1);
		dirty_log_mark(&f.log, UINT64_MAX - 3,
			       8); /* wraps: a used ring's address is a claim */
		assert_int_equal(count_bits(), 0);
	}
}

static void test_nothing_is_marked_unless_it_was_asked_for(void **state)
{
	struct guest_memory memory = {0};
	struct iovec part = {&memory, 1};

	(void)state;
	/* Asked for, and no log was given. */
	f.log.is_on = true;
	dirty_log_mark(&f.log, 0, PAGE);
	dirty_log_mark_parts(&f.log, &memory, &part, 1, 1);
	assert_false(f.log.has_news);
	set(LEN, 0);
	f.log.is_on = false;
	dirty_log_mark(&f.log, 0, PAGE);
	dirty_log_mark_parts(&f.log, &memory, &part, 1, 1);
	assert_false(f.log.has_news);
	assert_int_equal(count_bits(), 0);
}

static void test_a_log_replaces_the_one_before(void **state)
{
	int other = new_file(PAGE);

	(void)state;
	set(LEN, 0);
	assert_int_equal(dirty_log_set(&f.log, PAGE, 0, PAGE, other), 0);
	assert_int_equal(fcntl(other, F_GETFD), -1);
	dirty_log_mark(&f.log, 0, 1);
	assert_int_equal(f.log.bits[0], 1);
	assert_int_equal(count_bits(), 0);
}

static void test_a_log_that_cannot_be_mapped_leaves_the_one_before(void **state)
{
	static const struct {
		uint64_t size, offset, alignment;
	} cases[] = {
		{0, 0, PAGE}, {UINT64_MAX, 0, PAGE}, {PAGE, UINT64_MAX, PAGE}, {PAGE, 0, PAGE - 1},
		{PAGE, 0, 0}, {PAGE, 0, 3 * PAGE},   {INT64_MAX, PAGE, PAGE},
	};

	(void)state;
	set(LEN, 0);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int fd = new_file(PAGE);

		assert_true(dirty_log_set(&f.log, cases[i].size, cases[i].offset,
					  cases[i].alignment, fd) < 0);
		assert_int_equal(fcntl(fd, F_GETFD), -1);
		dirty_log_mark(&f.log, i * PAGE, 1);
		assert_marked(0, i, i);
	}
	/* Something that has no pages. */
	assert_true(dirty_log_set(&f.log, PAGE, 0, PAGE, eventfd(0, EFD_CLOEXEC)) < 0);
	dirty_log_mark(&f.log, 0, 1);
	assert_marked(0, 0, 0);
}

/* Two neighbours in the guest, the second one first in our mappings. */
static void test_parts_are_marked_under_their_guest_addresses(void **state)
{
	static uint8_t here[8 * PAGE];
	struct guest_memory memory = {0};
	struct iovec parts[3];

	(void)state;
	memory.table.n_regions = 2;
	memory.table.regions[0] = (struct guest_region){
		.guest_address = 16 * PAGE,
		.size = 4 * PAGE,
		.start = here + 4 * PAGE,
	};
	memory.table.regions[1] = (struct guest_region){
		.guest_address = 20 * PAGE,
		.size = 4 * PAGE,
		.start = here,
	};
	set(LEN, 0);

	/* A buffer across the border of the two, as a chain has it: in two parts. */
	parts[0] = (struct iovec){here + 8 * PAGE - 10, 10};
	parts[1] = (struct iovec){here, PAGE + 1};
	dirty_log_mark_parts(&f.log, &memory, parts, 2, 10 + PAGE + 1);
	assert_marked(0, 19, 21);
	/* Only as much as was written. */
	dirty_log_mark_parts(&f.log, &memory, parts, 2, 10 + PAGE);
	assert_marked(0, 19, 20);
	dirty_log_mark_parts(&f.log, &memory, parts, 2, 10);
	assert_marked(0, 19, 19);
	dirty_log_mark_parts(&f.log, &memory, parts, 2, 0);
	assert_int_equal(count_bits(), 0);
	/* More than there is: what there is. */
	dirty_log_mark_parts(&f.log, &memory, parts, 1, SIZE_MAX);
	assert_marked(0, 19, 19);

	/* First and last byte of a region, and what lies in none. */
	parts[0] = (struct iovec){here + 4 * PAGE, 1};
	parts[1] = (struct iovec){here + sizeof(here), 1};
	parts[2] = (struct iovec){here + 4 * PAGE - 1, 1};
	dirty_log_mark_parts(&f.log, &memory, parts, 1, 1);
	assert_marked(0, 16, 16);
	dirty_log_mark_parts(&f.log, &memory, parts + 1, 2, 2);
	assert_marked(0, 23, 23);
}

static void test_news_are_signalled_once(void **state)
{
	int event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	uint64_t count;

	(void)state;
	set(LEN, 0);
	/* Without an fd there is nobody to tell, then or later. */
	dirty_log_mark(&f.log, 0, 1);
	dirty_log_signal(&f.log);
	f.log.fd = event;
	dirty_log_signal(&f.log);
	assert_int_equal(read(event, &count, sizeof(count)), -1);

	dirty_log_mark(&f.log, 0, 1);
	dirty_log_mark(&f.log, PAGE, 1);
	dirty_log_signal(&f.log);
	dirty_log_signal(&f.log);
	assert_int_equal(read(event, &count, sizeof(count)), sizeof(count));
	assert_int_equal(count, 1);
	/* A full counter does not block. */
	count = UINT64_MAX - 1;
	assert_int_equal(write(event, &count, sizeof(count)), sizeof(count));
	dirty_log_mark(&f.log, 0, 1);
	dirty_log_signal(&f.log);
	close(event);
}

#define ROUNDS 200000

/* Another device of the VM, with a page that has its bit in the same byte. */
static void *mark_and_fetch(void *context)
{
	size_t *n_lost = context;

	for (size_t i = 0; i < ROUNDS; i++) {
		__atomic_fetch_or(&f.bits[0], 0x80, __ATOMIC_SEQ_CST);
		if (!(__atomic_fetch_and(&f.bits[0], 0x7f, __ATOMIC_SEQ_CST) & 0x80))
			++*n_lost;
	}
	__atomic_store_n(&f.bits[1], 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static void test_bits_that_others_set_at_the_same_time_are_not_lost(void **state)
{
	size_t n_lost = 0;
	pthread_t thread;

	(void)state;
	set(LEN, 0);
	assert_int_equal(pthread_create(&thread, NULL, mark_and_fetch, &n_lost), 0);
	while (!__atomic_load_n(&f.bits[1], __ATOMIC_SEQ_CST))
		dirty_log_mark(&f.log, 0, 1);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(n_lost, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_a_page_is_the_bit_of_its_number_lowest_first),
		TEST(test_every_page_that_a_write_touches_is_marked_and_no_other),
		TEST(test_bits_that_others_set_stay),
		TEST(test_what_lies_beyond_the_log_is_left_alone),
		TEST(test_nothing_is_marked_unless_it_was_asked_for),
		TEST(test_a_log_replaces_the_one_before),
		TEST(test_a_log_that_cannot_be_mapped_leaves_the_one_before),
		TEST(test_parts_are_marked_under_their_guest_addresses),
		TEST(test_news_are_signalled_once),
		TEST(test_bits_that_others_set_at_the_same_time_are_not_lost),
	};

	return cmocka_run_group_tests_name("dirty_log", tests, NULL, NULL);
}

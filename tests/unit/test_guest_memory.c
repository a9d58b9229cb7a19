/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "worker/guest_memory.h"

#define PAGE	  UINT64_C(4096)
#define FILE_SIZE (UINT64_C(64) * PAGE)
#define BASE	  UINT64_C(0x100000000)
#define USER	  UINT64_C(0x7f0000000000)
#define HUGE	  (UINT64_C(2) << 20)

static struct guest_memory memory;
static int file;
static uint8_t *view; /* of the whole file */

static int set_up(void **state)
{
	(void)state;
	memset(&memory, 0, sizeof(memory));
	file = memfd_create("guest", MFD_CLOEXEC);
	assert_true(file >= 0);
	assert_int_equal(ftruncate(file, (off_t)FILE_SIZE), 0);
	view = mmap(NULL, FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	assert_ptr_not_equal(view, MAP_FAILED);
	/* Each byte tells where in the file it is. */
	for (uint64_t i = 0; i < FILE_SIZE; i++)
		view[i] = (uint8_t)(i ^ (i >> 8) * 31);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	guest_memory_commit(&memory);
	guest_memory_commit(&memory);
	munmap(view, FILE_SIZE);
	close(file);
	return 0;
}

static int add_at(uint64_t guest_address, uint64_t size, uint64_t user_address, uint64_t offset,
		  uint64_t alignment, bool is_staged)
{
	struct guest_region region = {
		.guest_address = guest_address,
		.size = size,
		.user_address = user_address,
	};
	int fd = fcntl(file, F_DUPFD_CLOEXEC, 100);
	int r;

	assert_true(fd >= 100);
	r = guest_memory_add(&memory, &region, offset, alignment, fd, is_staged);
	/* In any case. */
	assert_int_equal(fcntl(fd, F_GETFD), -1);
	return r;
}

static int add(uint64_t guest_address, uint64_t size, uint64_t user_address, uint64_t offset)
{
	return add_at(guest_address, size, user_address, offset, PAGE, false);
}

static bool is_mapped(const void *place)
{
	unsigned char resident;

	return mincore((void *)((uintptr_t)place & ~(PAGE - 1)), PAGE, &resident) == 0;
}

/* What of [guest_address, + len) the first part is; 0 when nothing. */
static size_t part_len(uint64_t guest_address, uint32_t len)
{
	struct iovec part;

	return guest_memory_translate(&memory, guest_address, len, &part) ? part.iov_len : 0;
}

static void check_byte(uint64_t guest_address, uint64_t offset)
{
	struct iovec part = {0};

	assert_true(guest_memory_translate(&memory, guest_address, 1, &part));
	assert_int_equal(part.iov_len, 1);
	assert_int_equal(*(uint8_t *)part.iov_base, view[offset]);
}

/* ---- adding ---- */

static void test_a_region_shows_its_part_of_the_file(void **state)
{
	(void)state;
	assert_int_equal(add(BASE, 4 * PAGE, USER, 8 * PAGE), 0);
	for (uint64_t i = 0; i < 4 * PAGE; i += 61)
		check_byte(BASE + i, 8 * PAGE + i);
	check_byte(BASE + 4 * PAGE - 1, 12 * PAGE - 1);
	view[8 * PAGE + 5] = 0x77;
	check_byte(BASE + 5, 8 * PAGE + 5);
	assert_int_equal(part_len(BASE - 1, 1), 0);
	assert_int_equal(part_len(BASE + 4 * PAGE, 1), 0);
}

static void test_an_offset_need_not_be_a_multiple_of_the_page(void **state)
{
	static const uint64_t offsets[] = {1, 100, PAGE - 1, PAGE + 1, 3 * PAGE + 2048};

	(void)state;
	for (size_t i = 0; i < sizeof(offsets) / sizeof(offsets[0]); i++) {
		assert_int_equal(add(BASE, 2 * PAGE + 3, USER, offsets[i]), 0);
		check_byte(BASE, offsets[i]);
		check_byte(BASE + 2 * PAGE + 2, offsets[i] + 2 * PAGE + 2);
		assert_int_equal(part_len(BASE, UINT32_MAX), 2 * PAGE + 3);
		assert_int_equal(guest_memory_remove(&memory, BASE, 2 * PAGE + 3, USER), 0);
	}
}

static void test_a_larger_page_of_the_file_widens_the_mapping(void **state)
{
	const struct guest_region *region = &memory.table.regions[0];
	uint64_t offset = 8 * PAGE + 24;

	(void)state;
	/* As on hugetlbfs: offset and length are multiples of its page. */
	assert_int_equal(add_at(BASE, PAGE, USER, offset, 8 * PAGE, false), 0);
	assert_int_equal(region->mapping_len, 8 * PAGE);
	assert_ptr_equal(region->start, (uint8_t *)region->mapping + 24);
	check_byte(BASE, offset);
	assert_int_equal(guest_memory_remove(&memory, BASE, PAGE, USER), 0);

	assert_int_equal(add_at(BASE, 8 * PAGE, USER, offset, 8 * PAGE, false), 0);
	assert_int_equal(region->mapping_len, 16 * PAGE);
	check_byte(BASE + 8 * PAGE - 1, offset + 8 * PAGE - 1);
	assert_int_equal(guest_memory_remove(&memory, BASE, 8 * PAGE, USER), 0);

	/* Larger than everything before it: it begins at the file's start. */
	assert_int_equal(add_at(BASE, PAGE, USER, offset, HUGE, false), 0);
	assert_int_equal(region->mapping_len, HUGE);
	check_byte(BASE, offset);
}

static void test_numbers_that_make_no_sense_are_refused(void **state)
{
	static const struct {
		uint64_t guest_address, size, user_address, offset, alignment;
	} rows[] = {
		{BASE, 0, USER, 0, PAGE},
		{UINT64_MAX, 2, USER, 0, PAGE},
		{BASE, 2, UINT64_MAX, 0, PAGE},
		{UINT64_MAX - PAGE + 2, PAGE, USER, 0, PAGE},
		{BASE, UINT64_MAX, USER, 0, PAGE},
		{0, UINT64_MAX, 0, 0, PAGE},
		{0, UINT64_MAX, 0, PAGE - 1, PAGE},
		{0, UINT64_MAX - PAGE, 0, PAGE - 1, PAGE},
		{0, UINT64_C(1) << 63, 0, 0, PAGE},
		{BASE, PAGE, USER, UINT64_MAX, PAGE},
		{BASE, PAGE, USER, UINT64_C(1) << 63, PAGE},
		{BASE, PAGE, USER, 0, 0},
		{BASE, PAGE, USER, 0, 1},
		{BASE, PAGE, USER, 0, 2048},
		{BASE, PAGE, USER, 0, 4097},
		{BASE, PAGE, USER, 0, 3 * PAGE},
		{BASE, PAGE, USER, 0, UINT64_MAX},
		{BASE, PAGE, USER, 0, UINT64_C(1) << 63},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		assert_true(add_at(rows[i].guest_address, rows[i].size, rows[i].user_address,
				   rows[i].offset, rows[i].alignment, false) < 0);
		assert_int_equal(memory.table.n_regions, 0);
	}
}

static void test_a_region_may_end_with_the_address_space(void **state)
{
	(void)state;
	assert_int_equal(add(UINT64_MAX - PAGE + 1, PAGE, USER, 0), 0);
	check_byte(UINT64_MAX, PAGE - 1);
	assert_int_equal(part_len(UINT64_MAX, 100), 1);
	assert_int_equal(part_len(0, 1), 0);
}

static void test_an_fd_that_cannot_be_mapped_is_closed(void **state)
{
	struct guest_region region = {.guest_address = BASE, .size = PAGE, .user_address = USER};
	int pipes[2];

	(void)state;
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	assert_true(guest_memory_add(&memory, &region, 0, PAGE, pipes[0], false) < 0);
	assert_int_equal(fcntl(pipes[0], F_GETFD), -1);
	close(pipes[1]);
	assert_int_equal(guest_memory_add(&memory, &region, 0, PAGE, -1, false), -EBADF);
	assert_int_equal(memory.table.n_regions, 0);
}

static void test_regions_may_touch_but_not_overlap(void **state)
{
	static const struct {
		int64_t guest_address, user_address; /* from the first region's */
		uint64_t size;
		int result;
	} rows[] = {
		{0, 100 * PAGE, 4 * PAGE, -EEXIST},
		{3 * PAGE, 100 * PAGE, 4 * PAGE, -EEXIST},
		{-4 * (int64_t)PAGE + 1, 100 * PAGE, 4 * PAGE, -EEXIST},
		{PAGE, 100 * PAGE, PAGE, -EEXIST},
		{-(int64_t)PAGE, 100 * PAGE, 6 * PAGE, -EEXIST},
		{100 * PAGE, 0, 4 * PAGE, -EEXIST},
		{100 * PAGE, 4 * PAGE - 1, PAGE, -EEXIST},
		{100 * PAGE, -(int64_t)PAGE + 1, PAGE, -EEXIST},
		{100 * PAGE, -(int64_t)PAGE, 6 * PAGE, -EEXIST},
		{4 * PAGE, -4 * (int64_t)PAGE, 4 * PAGE, 0},
		{-4 * (int64_t)PAGE, 4 * PAGE, 4 * PAGE, 0},
	};

	(void)state;
	assert_int_equal(add(BASE, 4 * PAGE, USER, 0), 0);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		assert_int_equal(add(BASE + (uint64_t)rows[i].guest_address, rows[i].size,
				     USER + (uint64_t)rows[i].user_address, 0),
				 rows[i].result);
	assert_int_equal(memory.table.n_regions, 3);
}

static void test_a_full_table_takes_no_more(void **state)
{
	(void)state;
	for (uint64_t i = 0; i < GUEST_MEMORY_REGIONS_MAX; i++)
		assert_int_equal(add(BASE + i * 2 * PAGE, PAGE, USER + i * 2 * PAGE, i * PAGE), 0);
	assert_int_equal(add(BASE + PAGE, PAGE, USER + PAGE, 0), -ENOSPC);
	assert_int_equal(guest_memory_remove(&memory, BASE + 10 * PAGE, PAGE, USER + 10 * PAGE), 0);
	assert_int_equal(add(BASE + PAGE, PAGE, USER + PAGE, 40 * PAGE), 0);
	check_byte(BASE + PAGE, 40 * PAGE);
}

/* ---- translating ---- */

static void test_regions_are_found_in_whatever_order_they_came(void **state)
{
	static const uint64_t order[] = {5, 2, 9, 0, 7, 1, 8, 3, 6, 4};

	(void)state;
	for (size_t i = 0; i < 10; i++) {
		uint64_t at = order[i] * 3 * PAGE;

		assert_int_equal(
			add(BASE + at, PAGE, USER + (9 - order[i]) * PAGE, order[i] * PAGE), 0);
		for (size_t k = 0; k <= i; k++)
			check_byte(BASE + order[k] * 3 * PAGE + 17, order[k] * PAGE + 17);
	}
	for (uint64_t i = 0; i < 10; i++) {
		check_byte(BASE + i * 3 * PAGE, i * PAGE);
		check_byte(BASE + i * 3 * PAGE + PAGE - 1, (i + 1) * PAGE - 1);
		assert_int_equal(part_len(BASE + i * 3 * PAGE + PAGE, 1), 0);
		assert_int_equal(part_len(BASE + (i + 1) * 3 * PAGE - 1, 1), 0);
	}
	assert_int_equal(part_len(0, 1), 0);
	assert_int_equal(part_len(UINT64_MAX, 1), 0);
}

static void test_a_piece_over_a_border_is_split_there(void **state)
{
	struct iovec part;

	(void)state;
	/* Neighbours in the guest, apart in the file. */
	assert_int_equal(add(BASE, PAGE, USER, 20 * PAGE), 0);
	assert_int_equal(add(BASE + PAGE, PAGE, USER + 8 * PAGE, 10 * PAGE), 0);
	assert_true(guest_memory_translate(&memory, BASE + PAGE - 10, 30, &part));
	assert_int_equal(part.iov_len, 10);
	assert_memory_equal(part.iov_base, view + 21 * PAGE - 10, 10);
	assert_true(guest_memory_translate(&memory, BASE + PAGE, 20, &part));
	assert_int_equal(part.iov_len, 20);
	assert_memory_equal(part.iov_base, view + 10 * PAGE, 20);

	assert_int_equal(part_len(BASE, (uint32_t)PAGE), PAGE);
	assert_int_equal(part_len(BASE, (uint32_t)PAGE + 1), PAGE);
	assert_int_equal(part_len(BASE, UINT32_MAX), PAGE);
	assert_int_equal(part_len(BASE + 2 * PAGE - 1, UINT32_MAX), 1);
	assert_int_equal(part_len(BASE + 2 * PAGE, 1), 0);
}

static void test_a_piece_by_user_address_lies_whole_in_one_region(void **state)
{
	(void)state;
	assert_int_equal(add(BASE, PAGE, USER, 20 * PAGE), 0);
	assert_int_equal(add(BASE + 8 * PAGE, PAGE, USER + PAGE, 10 * PAGE), 0);
	assert_memory_equal(guest_memory_at_user_address(&memory, USER, PAGE), view + 20 * PAGE,
			    PAGE);
	assert_memory_equal(guest_memory_at_user_address(&memory, USER + PAGE + 5, PAGE - 5),
			    view + 10 * PAGE + 5, PAGE - 5);
	assert_non_null(guest_memory_at_user_address(&memory, USER + PAGE - 1, 1));
	/* Neighbours there are none to the worker. */
	assert_null(guest_memory_at_user_address(&memory, USER + PAGE - 1, 2));
	assert_null(guest_memory_at_user_address(&memory, USER, PAGE + 1));
	assert_null(guest_memory_at_user_address(&memory, USER, UINT64_MAX));
	assert_null(guest_memory_at_user_address(&memory, USER - 1, 1));
	assert_null(guest_memory_at_user_address(&memory, USER + 2 * PAGE, 1));
	assert_null(guest_memory_at_user_address(&memory, BASE, 1)); /* a guest address */
	assert_null(guest_memory_at_user_address(&memory, UINT64_MAX, 1));
	assert_null(guest_memory_at_user_address(&memory, 0, UINT64_MAX));
}

/* ---- changing ---- */

static void test_a_region_goes_by_all_its_numbers(void **state)
{
	void *start;

	(void)state;
	assert_int_equal(add(BASE, PAGE, USER, 0), 0);
	assert_int_equal(add(BASE + PAGE, PAGE, USER + PAGE, PAGE), 0);
	start = memory.table.regions[0].start;
	assert_int_equal(guest_memory_remove(&memory, BASE + 1, PAGE, USER), -ENOENT);
	assert_int_equal(guest_memory_remove(&memory, BASE, PAGE - 1, USER), -ENOENT);
	assert_int_equal(guest_memory_remove(&memory, BASE, PAGE, USER + PAGE), -ENOENT);
	assert_int_equal(memory.table.n_regions, 2);
	check_byte(BASE, 0); /* remembered as the last that was hit */
	assert_int_equal(guest_memory_remove(&memory, BASE, PAGE, USER), 0);
	assert_int_equal(part_len(BASE, 1), 0);
	assert_false(is_mapped(start));
	check_byte(BASE + PAGE, PAGE);
	assert_int_equal(guest_memory_remove(&memory, BASE, PAGE, USER), -ENOENT);
	assert_int_equal(guest_memory_remove(&memory, BASE + PAGE, PAGE, USER + PAGE), 0);
	assert_int_equal(part_len(BASE + PAGE, 1), 0);
}

static void test_the_last_hit_is_not_trusted_after_a_removal(void **state)
{
	(void)state;
	for (uint64_t i = 0; i < 6; i++)
		assert_int_equal(add(BASE + i * PAGE, PAGE, USER + i * PAGE, i * PAGE), 0);
	for (uint64_t i = 5; i > 0; i--) {
		check_byte(BASE + i * PAGE, i * PAGE);
		assert_int_equal(guest_memory_remove(&memory, BASE + (i - 1) * PAGE, PAGE,
						     USER + (i - 1) * PAGE),
				 0);
		check_byte(BASE + i * PAGE, i * PAGE);
		assert_int_equal(part_len(BASE + (i - 1) * PAGE, 1), 0);
		assert_int_equal(
			guest_memory_remove(&memory, BASE + i * PAGE, PAGE, USER + i * PAGE), 0);
		assert_int_equal(part_len(BASE + i * PAGE, 1), 0);
		assert_int_equal(
			add(BASE + (i - 1) * PAGE, PAGE, USER + (i - 1) * PAGE, (i - 1) * PAGE), 0);
	}
}

static void test_staged_regions_replace_the_table_at_once(void **state)
{
	void *old;

	(void)state;
	assert_int_equal(add(BASE, PAGE, USER, 0), 0);
	old = memory.table.regions[0].start;
	/* They may overlap what they replace. */
	assert_int_equal(add_at(BASE, 2 * PAGE, USER, 8 * PAGE, PAGE, true), 0);
	assert_int_equal(add_at(BASE + 2 * PAGE, PAGE, USER + 9 * PAGE, 4 * PAGE, PAGE, true), 0);
	/* But not each other. */
	assert_int_equal(add_at(BASE + PAGE, PAGE, USER + 20 * PAGE, 0, PAGE, true), -EEXIST);
	check_byte(BASE, 0);
	assert_int_equal(part_len(BASE + PAGE, 1), 0);
	assert_null(guest_memory_at_user_address(&memory, USER + PAGE, 1));

	guest_memory_commit(&memory);
	assert_false(is_mapped(old));
	check_byte(BASE, 8 * PAGE);
	check_byte(BASE + PAGE, 9 * PAGE);
	check_byte(BASE + 2 * PAGE, 4 * PAGE);
	assert_int_equal(memory.staged.n_regions, 0);

	/* With nothing staged nothing is left. */
	old = memory.table.regions[0].start;
	guest_memory_commit(&memory);
	assert_int_equal(memory.table.n_regions, 0);
	assert_int_equal(part_len(BASE, 1), 0);
	assert_false(is_mapped(old));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_a_region_shows_its_part_of_the_file),
		TEST(test_an_offset_need_not_be_a_multiple_of_the_page),
		TEST(test_a_larger_page_of_the_file_widens_the_mapping),
		TEST(test_numbers_that_make_no_sense_are_refused),
		TEST(test_a_region_may_end_with_the_address_space),
		TEST(test_an_fd_that_cannot_be_mapped_is_closed),
		TEST(test_regions_may_touch_but_not_overlap),
		TEST(test_a_full_table_takes_no_more),
		TEST(test_regions_are_found_in_whatever_order_they_came),
		TEST(test_a_piece_over_a_border_is_split_there),
		TEST(test_a_piece_by_user_address_lies_whole_in_one_region),
		TEST(test_a_region_goes_by_all_its_numbers),
		TEST(test_the_last_hit_is_not_trusted_after_a_removal),
		TEST(test_staged_regions_replace_the_table_at_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

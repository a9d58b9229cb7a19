/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/memory_file.h"
#include "tests/unit/failing_calls.h"
#include "tests/unit/open_files.h"

#define SIZE UINT64_C(0x5000)

static void expect_file(int fd)
{
	struct stat stat;

	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &stat), 0);
	assert_int_equal(stat.st_size, SIZE);
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	/* Whoever has it: the pages stay where others look at them. */
	assert_int_equal(ftruncate(fd, 0), -1);
	assert_int_equal(ftruncate(fd, SIZE + 1), -1);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
	close(fd);
}

static void test_a_file_keeps_its_size(void **state)
{
	(void)state;
	expect_file(memory_file_make("file", SIZE));
}

static void test_a_kernel_that_knows_no_mode_bits_of_such_files_will_do(void **state)
{
	(void)state;
	failing_call_plan(CALL_MEMFD_CREATE, -1, 1, EINVAL);
	expect_file(memory_file_make("file", SIZE));
	assert_true(failing_call_has_come());
}

static void test_a_file_that_is_not_as_it_has_to_be_is_none(void **state)
{
	static const struct {
		enum failing_call call;
		int error;
	} rows[] = {
		{CALL_MEMFD_CREATE, EMFILE}, {CALL_MEMFD_CREATE, ENOMEM}, {CALL_FTRUNCATE, ENOSPC},
		{CALL_FTRUNCATE, EINTR},     {CALL_FCNTL, EBUSY},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		size_t n_open = open_files_count();

		failing_call_plan(rows[i].call, -1, 1, rows[i].error);
		assert_int_equal(memory_file_make("file", SIZE), -rows[i].error);
		assert_true(failing_call_has_come());
		assert_int_equal(open_files_count(), n_open);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_file_keeps_its_size),
		cmocka_unit_test(test_a_kernel_that_knows_no_mode_bits_of_such_files_will_do),
		cmocka_unit_test(test_a_file_that_is_not_as_it_has_to_be_is_none),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

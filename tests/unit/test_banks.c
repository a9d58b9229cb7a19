/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/banks.h"

static char socket_path[] = "/socket", uds_path[] = "/uds";

static struct configuration one_vm(char **groups, size_t n_groups)
{
	static struct port_rule rules[] = {{.first = 22}, {.first = 23}};
	static struct vm_configuration vm;

	vm = (struct vm_configuration){
		.guest_cid = 7,
		.socket = socket_path,
		.uds_path = uds_path,
		.groups = groups,
		.n_groups = n_groups,
		.max_connections = 9,
		.listens = &rules[0],
		.n_listens = 1,
		.connects = &rules[1],
		.n_connects = 1,
	};
	return (struct configuration){.vms = &vm, .n_vms = 1, .log_level = 5};
}

static void test_a_bank_has_what_the_front_uses(void **state)
{
	char one[] = "one", two[] = "two", *groups[] = {one, two};
	struct configuration configuration = one_vm(groups, 2);
	const struct configuration *copy;
	struct banks banks;

	(void)state;
	assert_int_equal(banks_init(&banks), 0);
	assert_int_equal(banks_fill(&banks, 1, &configuration), 0);
	memset(one, 'x', 3);
	copy = banks_get(&banks, 1);
	assert_int_equal(copy->n_vms, 1);
	assert_int_equal(copy->log_level, 5);
	assert_int_equal(copy->vms[0].guest_cid, 7);
	assert_int_equal(copy->vms[0].max_connections, 9);
	assert_int_equal(copy->vms[0].n_groups, 2);
	assert_string_equal(copy->vms[0].groups[0], "one");
	assert_string_equal(copy->vms[0].groups[1], "two");
	assert_string_equal(copy->vms[0].socket, "/socket");
	assert_string_equal(copy->vms[0].uds_path, "/uds");
	assert_int_equal(copy->vms[0].n_listens, 1);
	assert_int_equal(copy->vms[0].listens[0].first, 22);
	assert_int_equal(copy->vms[0].n_connects, 0);
}

static void test_what_does_not_fit_is_refused_and_the_next_one_fits(void **state)
{
	static char name[1 << 20];
	char *groups[20];
	struct configuration configuration = one_vm(groups, 20);
	struct banks banks;

	(void)state;
	memset(name, 'n', sizeof(name) - 1);
	for (size_t i = 0; i < 20; i++)
		groups[i] = name;
	assert_int_equal(banks_init(&banks), 0);
	assert_int_equal(banks_fill(&banks, 0, &configuration), -ENOSPC);
	configuration.vms[0].n_groups = 2;
	assert_int_equal(banks_fill(&banks, 0, &configuration), 0);
	configuration.n_vms = BANK_PLACES + 1;
	assert_int_equal(banks_fill(&banks, 0, &configuration), -ENOSPC);
}

static void test_the_front_reads_what_is_filled_later_and_cannot_write_it(void **state)
{
	char one[] = "one", *groups[] = {one};
	struct configuration configuration = one_vm(groups, 1);
	struct banks banks;
	int go[2], status;
	char byte = 0;
	pid_t front;

	(void)state;
	assert_int_equal(banks_init(&banks), 0);
	assert_int_equal(pipe(go), 0);
	front = fork();
	assert_true(front >= 0);
	if (front == 0) {
		if (banks_protect(&banks) || read(go[0], &byte, 1) != 1 ||
		    strcmp(banks_get(&banks, 0)->vms[0].groups[0], "one") != 0)
			_exit(1);
		/* The kernel writes there no more than the process does, and says so. */
		_exit(read(go[0], banks_get(&banks, 0)->vms[0].groups[0], 1) == -1 &&
				      errno == EFAULT
			      ? 0
			      : 2);
	}
	assert_int_equal(banks_fill(&banks, 0, &configuration), 0);
	assert_int_equal(write(go[1], "xy", 2), 2);
	assert_int_equal(waitpid(front, &status, 0), front);
	assert_int_equal(status, 0);
	assert_string_equal(banks_get(&banks, 0)->vms[0].groups[0], "one");
	close(go[0]);
	close(go[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_bank_has_what_the_front_uses),
		cmocka_unit_test(test_what_does_not_fit_is_refused_and_the_next_one_fits),
		cmocka_unit_test(test_the_front_reads_what_is_filled_later_and_cannot_write_it),
	};

	return cmocka_run_group_tests_name("banks", tests, NULL, NULL);
}

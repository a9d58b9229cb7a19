/* SPDX-License-Identifier: Apache-2.0 */

/* What the front does with the sockets of a reload. */

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include <cmocka.h>

#include "broker/front.h"

static int give_socket(struct front *front, uint32_t device, uint32_t number)
{
	const struct spawner_reply reply = {
		.kind = SPAWNER_LISTENER, .device = device, .number = number};
	int fd = eventfd(0, EFD_CLOEXEC);

	assert_true(fd >= 0);
	changes_listener(front, &reply, fd);
	return fd;
}

static bool is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

static void test_sockets_of_a_reload_that_is_off_are_closed(void **state)
{
	static struct banks banks;
	static struct front front = {.banks = &banks};
	const struct spawner_reply lost = {
		.kind = SPAWNER_LISTENER, .device = 5, .number = 1, .error = ETOOMANYREFS};
	int first, second;

	(void)state;
	front.devices = calloc(BANK_PLACES, sizeof(*front.devices));
	assert_non_null(front.devices);
	for (size_t i = 0; i < BANK_PLACES; i++)
		for (size_t number = 0; number < SOCKETS_MAX; number++)
			front.devices[i].next_listeners[number] = -1;
	first = give_socket(&front, 0, 0);
	second = give_socket(&front, BANK_PLACES - 1, SOCKETS_MAX - 1);
	assert_true(is_open(first) && is_open(second));
	changes_listener(&front, &lost, -1);
	assert_false(is_open(first) || is_open(second));
	/* The next reload has none of them. */
	for (size_t i = 0; i < BANK_PLACES; i++)
		for (size_t number = 0; number < SOCKETS_MAX; number++)
			assert_int_equal(front.devices[i].next_listeners[number], -1);
	free(front.devices);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sockets_of_a_reload_that_is_off_are_closed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

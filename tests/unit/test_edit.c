/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ctl/edit.h"

#define NINE "{guest-cid: 9, socket: 's'}"

static void expect_added(const char *text, const char *expected)
{
	char *edited = NULL;

	assert_int_equal(edit_add(text, strlen(text), 9, NINE, &edited), 0);
	assert_string_equal(edited, expected);
	free(edited);
}

static void expect_removed(const char *text, uint64_t cid, const char *expected)
{
	char *edited = NULL;

	assert_int_equal(edit_remove(text, strlen(text), cid, &edited), 0);
	assert_string_equal(edited, expected);
	free(edited);
}

static void expect_failure(const char *text, uint64_t cid, int added, int removed)
{
	char *edited = NULL;

	assert_int_equal(edit_add(text, strlen(text), cid, NINE, &edited), added);
	assert_int_equal(edit_remove(text, strlen(text), cid, &edited), removed);
	assert_null(edited);
}

static void test_a_vm_comes_behind_the_last_one_in_its_style(void **state)
{
	(void)state;
	expect_added("vms:\n- guest-cid: 4\n  socket: a\n",
		     "vms:\n- guest-cid: 4\n  socket: a\n- " NINE "\n");
	expect_added("vms:\n  - {guest-cid: 4}  # web\n\n# the end\nuser: x\n",
		     "vms:\n  - {guest-cid: 4}  # web\n  - " NINE "\n\n# the end\nuser: x\n");
	expect_added("vms: [{guest-cid: 4}, {guest-cid: 5}]",
		     "vms: [{guest-cid: 4}, {guest-cid: 5}, " NINE "]");
	expect_added("vms:\n- guest-cid: 4", "vms:\n- guest-cid: 4\n- " NINE "\n");
	expect_added("vms:\n-\n  guest-cid: 4\n  listen:\n  - '1:unix:/a'\n  # last\nuser: x\n",
		     "vms:\n-\n  guest-cid: 4\n  listen:\n  - '1:unix:/a'\n- " NINE
		     "\n  # last\nuser: x\n");
}

static void test_characters_of_several_bytes_move_nothing(void **state)
{
	(void)state;
	expect_added(
		"# f\xc3\xbcr \xe2\x82\xac\nvms:\n- guest-cid: 4\n  socket: /\xc3\xbc\nuser: x\n",
		"# f\xc3\xbcr \xe2\x82\xac\nvms:\n- guest-cid: 4\n  socket: /\xc3\xbc\n- " NINE
		"\nuser: x\n");
	expect_removed("vms: [{socket: \xe2\x82\xac}, {guest-cid: 4}]", 3, "vms: [{guest-cid: 4}]");
}

static void test_a_vm_goes_and_nothing_else(void **state)
{
	static const char three[] =
		"# all\nvms:\n- guest-cid: 4\n  socket: a # it\n# next\n- socket: b\n"
		"- {guest-cid: 5}\nuser: x\n";

	(void)state;
	expect_removed(three, 4, "# all\nvms:\n# next\n- socket: b\n- {guest-cid: 5}\nuser: x\n");
	expect_removed(three, 3,
		       "# all\nvms:\n- guest-cid: 4\n  socket: a # it\n# next\n- {guest-cid: "
		       "5}\nuser: x\n");
	expect_removed(
		three, 5,
		"# all\nvms:\n- guest-cid: 4\n  socket: a # it\n# next\n- socket: b\nuser: x\n");
	expect_removed("vms: [{guest_cid: 4}, {guest-cid: 5}, {guest-cid: 6}]", 4,
		       "vms: [{guest-cid: 5}, {guest-cid: 6}]");
	expect_removed("vms: [{guest-cid: 4}, {guest-cid: 5}, {guest-cid: 6}]", 6,
		       "vms: [{guest-cid: 4}, {guest-cid: 5}]");
}

static void test_what_was_added_can_be_removed(void **state)
{
	static const char text[] =
		"vms:\n    - guest-cid: 4\n      listen:\n        - '1:unix:/a'\n\n\nuser: x\n";
	char *edited = NULL;

	(void)state;
	assert_int_equal(edit_add(text, strlen(text), 9, NINE, &edited), 0);
	expect_removed(edited, 9, text);
	free(edited);
}

static void test_what_is_not_understood_is_left_alone(void **state)
{
	(void)state;
	expect_failure("vms: [{guest-cid: 9}]", 9, EDIT_E_EXISTS, EDIT_E_LAST);
	expect_failure("vms: [{guest-cid: 4}, {guest-cid: 9}", 8, EDIT_E_YAML, EDIT_E_YAML);
	expect_failure("vms: {guest-cid: 4}", 8, EDIT_E_YAML, EDIT_E_YAML);
	expect_failure("user: x", 8, EDIT_E_YAML, EDIT_E_YAML);
	expect_failure("", 8, EDIT_E_YAML, EDIT_E_YAML);
	expect_failure("vms: []", 9, EDIT_E_FORM, EDIT_E_ABSENT);
	expect_failure("vms:\n- # web\n  guest-cid: 4\n", 9, EDIT_E_FORM, EDIT_E_ABSENT);
	/* An alias stands for what is elsewhere. */
	expect_failure("vms: [&a {guest-cid: 4}, *a]\n", 9, EDIT_E_FORM, EDIT_E_ABSENT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_vm_comes_behind_the_last_one_in_its_style),
		cmocka_unit_test(test_characters_of_several_bytes_move_nothing),
		cmocka_unit_test(test_a_vm_goes_and_nothing_else),
		cmocka_unit_test(test_what_was_added_can_be_removed),
		cmocka_unit_test(test_what_is_not_understood_is_left_alone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

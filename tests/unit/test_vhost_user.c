/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "broker/vhost_user.h"

#define ALL UINT64_MAX

/* Written down a second time, from QEMU's document. */
static const struct expected {
	uint32_t request;
	const char *name;
	uint32_t payload_min, payload_max;
	uint32_t fds_min, fds_max;
	bool has_reply;
	uint64_t requires;
} table[] = {
	{1, "GET_FEATURES", 0, 0, 0, 0, true, 0},
	{2, "SET_FEATURES", 8, 8, 0, 0, false, 0},
	{3, "SET_OWNER", 0, 0, 0, 0, false, 0},
	{4, "RESET_OWNER", 0, 0, 0, 0, false, 0},
	{5, "SET_MEM_TABLE", 8, 1032, 0, 32, false, 0},
	{6, "SET_LOG_BASE", 16, 16, 1, 1, true, 0x2},
	{7, "SET_LOG_FD", 0, 0, 1, 1, false, 0},
	{8, "SET_VRING_NUM", 8, 8, 0, 0, false, 0},
	{9, "SET_VRING_ADDR", 40, 40, 0, 0, false, 0},
	{10, "SET_VRING_BASE", 8, 8, 0, 0, false, 0},
	{11, "GET_VRING_BASE", 8, 8, 0, 0, true, 0},
	{12, "SET_VRING_KICK", 8, 8, 0, 1, false, 0},
	{13, "SET_VRING_CALL", 8, 8, 0, 1, false, 0},
	{14, "SET_VRING_ERR", 8, 8, 0, 1, false, 0},
	{15, "GET_PROTOCOL_FEATURES", 0, 0, 0, 0, true, 0},
	{16, "SET_PROTOCOL_FEATURES", 8, 8, 0, 0, false, 0},
	{17, "GET_QUEUE_NUM", 0, 0, 0, 0, true, 0x1},
	{18, "SET_VRING_ENABLE", 8, 8, 0, 0, false, 0},
	{21, "SET_BACKEND_REQ_FD", 0, 0, 1, 1, false, 0x20},
	{24, "GET_CONFIG", 12, 268, 0, 0, true, 0x200},
	{25, "SET_CONFIG", 12, 268, 0, 0, false, 0x200},
	{34, "RESET_DEVICE", 0, 0, 0, 0, false, 0x2000},
	{35, "VRING_KICK", 8, 8, 0, 0, false, 0x4000},
	{36, "GET_MAX_MEM_SLOTS", 0, 0, 0, 0, true, 0x8000},
	{37, "ADD_MEM_REG", 40, 40, 1, 1, false, 0x8000},
	{38, "REM_MEM_REG", 40, 40, 0, 1, false, 0x8000},
	{42, "SET_DEVICE_STATE_FD", 8, 8, 1, 1, true, 0x80000},
	{43, "CHECK_DEVICE_STATE", 0, 0, 0, 0, true, 0x80000},
	/* ours alone */
	{200, "SUSPEND", 0, 0, 0, 0, false, UINT64_C(1) << 56},
	{201, "RESUME", 0, 0, 0, 0, false, UINT64_C(1) << 56},
};

#define N_TABLE (sizeof(table) / sizeof(table[0]))

static char reason[VHOST_USER_REASON_MAX];

static int check(uint32_t request, uint32_t size, size_t n_fds, uint64_t negotiated)
{
	static struct vhost_user_message message;

	memset(&message, 0, sizeof(message));
	message.header = (struct vhost_user_header){request, VHOST_USER_VERSION, size};
	reason[0] = '\0';
	return vhost_user_check(&message, n_fds, negotiated, reason);
}

static int check_payload(uint32_t request, const void *payload, size_t len, uint32_t size,
			 size_t n_fds)
{
	static struct vhost_user_message message;

	memset(&message, 0, sizeof(message));
	message.header = (struct vhost_user_header){request, VHOST_USER_VERSION, size};
	memcpy(message.payload, payload, len);
	reason[0] = '\0';
	return vhost_user_check(&message, n_fds, ALL, reason);
}

static void test_the_table_is_what_the_document_says(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_TABLE; i++) {
		const struct vhost_user_rule *rule = vhost_user_rule(table[i].request);

		assert_non_null(rule);
		assert_string_equal(rule->name, table[i].name);
		assert_int_equal(rule->payload_min, table[i].payload_min);
		assert_int_equal(rule->payload_max, table[i].payload_max);
		assert_int_equal(rule->fds_min, table[i].fds_min);
		assert_int_equal(rule->fds_max, table[i].fds_max);
		assert_int_equal(rule->has_reply, table[i].has_reply);
		assert_int_equal(rule->requires, table[i].requires);
	}
}

static void test_no_other_message_has_a_rule(void **state)
{
	size_t n = 0;

	(void)state;
	for (uint32_t request = 0; request < 4096; request++)
		n += vhost_user_rule(request) != NULL;
	assert_int_equal(n, N_TABLE);
	assert_null(vhost_user_rule(UINT32_MAX));
	assert_true(check(31, 16, 1, ALL) < 0);
	assert_non_null(strstr(reason, "message 31 "));
}

static void test_a_payload_of_any_other_size_is_refused(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_TABLE; i++) {
		const struct expected *row = &table[i];

		if (row->payload_min > 0)
			assert_true(check(row->request, row->payload_min - 1, row->fds_min, ALL) <
				    0);
		assert_true(check(row->request, row->payload_max + 1, row->fds_min, ALL) < 0);
		assert_non_null(strstr(reason, row->name));
		assert_true(check(row->request, UINT32_MAX, row->fds_min, ALL) < 0);
	}
}

static void test_any_other_number_of_fds_is_refused(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_TABLE; i++) {
		const struct expected *row = &table[i];

		assert_true(check(row->request, row->payload_min, row->fds_max + 1, ALL) < 0);
		assert_non_null(strstr(reason, row->name));
		if (row->fds_min > 0)
			assert_true(check(row->request, row->payload_min, row->fds_min - 1, ALL) <
				    0);
	}
}

static void test_a_message_that_was_not_negotiated_is_refused(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_TABLE; i++) {
		const struct expected *row = &table[i];

		if (!row->requires)
			continue;
		assert_true(check(row->request, row->payload_min, row->fds_min, ~row->requires) <
			    0);
		assert_non_null(strstr(reason, "negotiated"));
		assert_int_equal(check(row->request, row->payload_min, row->fds_min, row->requires),
				 0);
	}
}

static void test_a_memory_table_has_the_size_and_the_fds_of_its_regions(void **state)
{
	static const struct {
		uint32_t n_regions, size;
		size_t n_fds;
		bool is_good;
	} cases[] = {
		{0, 8, 0, true},
		{1, 40, 1, true},
		{32, 1032, 32, true},
		{1, 40, 0, false},
		{1, 40, 2, false},
		{2, 40, 2, false},
		{1, 72, 1, false},
		{1, 39, 1, false},
		{32, 1032, 31, false},
		{0, 8, 1, false},
		{33, 1064, 33, false},
		/* 8 + n * 32 is 8 and 40 again in 32 bits */
		{0x08000000, 8, 0, false},
		{0x08000001, 40, 1, false},
		{UINT32_MAX, 1032, 32, false},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct vhost_user_memory memory = {.n_regions = cases[i].n_regions};

		assert_int_equal(check_payload(VHOST_USER_SET_MEM_TABLE, &memory, sizeof(memory),
					       cases[i].size, cases[i].n_fds) == 0,
				 cases[i].is_good);
	}
}

static void test_the_nofd_bit_and_an_fd_exclude_each_other(void **state)
{
	static const uint32_t requests[] = {VHOST_USER_SET_VRING_KICK, VHOST_USER_SET_VRING_CALL,
					    VHOST_USER_SET_VRING_ERR};
	uint64_t with_fd = 2, without_fd = 2 | VHOST_USER_VRING_NOFD;

	(void)state;
	for (size_t i = 0; i < 3; i++) {
		assert_int_equal(check_payload(requests[i], &with_fd, 8, 8, 1), 0);
		assert_int_equal(check_payload(requests[i], &without_fd, 8, 8, 0), 0);
		assert_true(check_payload(requests[i], &with_fd, 8, 8, 0) < 0);
		assert_true(check_payload(requests[i], &without_fd, 8, 8, 1) < 0);
	}
}

static void test_a_config_message_is_as_long_as_it_says(void **state)
{
	struct vhost_user_config config = {.offset = 0, .size = 8};

	(void)state;
	assert_int_equal(check_payload(VHOST_USER_GET_CONFIG, &config, 12, 20, 0), 0);
	assert_int_equal(check_payload(VHOST_USER_SET_CONFIG, &config, 12, 20, 0), 0);
	assert_true(check_payload(VHOST_USER_GET_CONFIG, &config, 12, 12, 0) < 0);
	assert_true(check_payload(VHOST_USER_GET_CONFIG, &config, 12, 21, 0) < 0);
	config.size = UINT32_MAX - 3; /* 12 + size is 8 in 32 bits */
	assert_true(check_payload(VHOST_USER_GET_CONFIG, &config, 12, 20, 0) < 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_table_is_what_the_document_says),
		cmocka_unit_test(test_no_other_message_has_a_rule),
		cmocka_unit_test(test_a_payload_of_any_other_size_is_refused),
		cmocka_unit_test(test_any_other_number_of_fds_is_refused),
		cmocka_unit_test(test_a_message_that_was_not_negotiated_is_refused),
		cmocka_unit_test(test_a_memory_table_has_the_size_and_the_fds_of_its_regions),
		cmocka_unit_test(test_the_nofd_bit_and_an_fd_exclude_each_other),
		cmocka_unit_test(test_a_config_message_is_as_long_as_it_says),
	};

	return cmocka_run_group_tests_name("vhost_user", tests, NULL, NULL);
}

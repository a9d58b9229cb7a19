/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/open_files.h"
#include "tests/unit/session_rig.h"

static void test_rings_begin_stopped_and_disabled(void **state)
{
	(void)state;
	for (size_t i = 0; i < SESSION_RINGS; i++) {
		assert_false(rig.session.rings[i].is_started);
		assert_false(rig.session.rings[i].is_enabled);
		for (size_t j = 0; j < SESSION_RING_FDS; j++)
			assert_int_equal(rig.session.rings[i].fds[j], -1);
	}
	assert_int_equal(rig.session.n_regions, 0);
}

static void test_questions_are_answered_with_exact_flags(void **state)
{
	static const struct {
		uint32_t request;
		uint64_t answer;
	} cases[] = {
		{VHOST_USER_GET_FEATURES, 0x4d74000007},
		{VHOST_USER_GET_PROTOCOL_FEATURES, 0x8a20b},
		{VHOST_USER_GET_QUEUE_NUM, 3},
		{VHOST_USER_GET_MAX_MEM_SLOTS, 32},
	};

	(void)state;
	rig_negotiate(SESSION_PROTOCOL_FEATURES);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		for (uint32_t flags = 0; flags <= VHOST_USER_NEED_REPLY;
		     flags += VHOST_USER_NEED_REPLY) {
			assert_int_equal(rig_handle_fds(cases[i].request, flags, NULL, 0, NULL, 0),
					 0);
			assert_reply_u64(cases[i].request, cases[i].answer);
		}
	}
	assert_calls("");
}

static void test_what_was_not_offered_is_refused(void **state)
{
	(void)state;
	assert_closed(rig_handle_u64(VHOST_USER_SET_FEATURES, BIT30 | UINT64_C(1) << 33),
		      "SET_FEATURES: features 0x200000000 ");
	assert_false(rig.session.has_features);
	assert_int_equal(rig.session.features, 0);
	rig_start_over();
	assert_closed(rig_handle_u64(VHOST_USER_SET_PROTOCOL_FEATURES, UINT64_C(1) << 20),
		      "SET_PROTOCOL_FEATURES: protocol features 0x100000 ");
	assert_int_equal(rig.session.protocol_features, 0);
}

static void test_the_protocol_feature_bit_is_taken_though_the_device_did_not_name_it(void **state)
{
	(void)state;
	session_init(&rig.session, CID, VIRTIO_F_VERSION_1, 0, &rig_operations, NULL);
	assert_done(rig_handle_u64(VHOST_USER_SET_FEATURES, VIRTIO_F_VERSION_1 | BIT30));
	assert_closed(rig_handle(VHOST_USER_GET_PROTOCOL_FEATURES, NULL, 0), "not offered");
}

static void test_protocol_features_are_settled_before_features(void **state)
{
	(void)state;
	assert_int_equal(rig_handle(VHOST_USER_GET_PROTOCOL_FEATURES, NULL, 0), 0);
	assert_done(rig_handle_u64(VHOST_USER_SET_PROTOCOL_FEATURES, VHOST_USER_PROTOCOL_F_MQ));
	assert_int_equal(rig_handle(VHOST_USER_GET_QUEUE_NUM, NULL, 0), 0);
}

static void test_rings_are_enabled_at_once_without_the_protocol_feature_bit(void **state)
{
	(void)state;
	assert_done(rig_handle_u64(VHOST_USER_SET_FEATURES, VIRTIO_F_VERSION_1));
	assert_calls("features on:0 on:1 on:2 ");
	assert_done(rig_handle_u64(VHOST_USER_SET_FEATURES, VIRTIO_F_VERSION_1));
	assert_calls("features ");
	assert_closed(rig_handle_state(VHOST_USER_SET_VRING_ENABLE, 0, 0), "SET_VRING_ENABLE");
}

static void test_only_the_rings_that_were_off_are_switched_on(void **state)
{
	(void)state;
	rig_negotiate(0);
	assert_done(rig_handle_state(VHOST_USER_SET_VRING_ENABLE, 1, 1));
	assert_calls("on:1 ");
	assert_done(rig_handle_u64(VHOST_USER_SET_FEATURES, 0));
	assert_calls("features on:0 on:2 ");
}

static void test_enabled_rings_stay_with_the_protocol_feature_bit(void **state)
{
	(void)state;
	rig_negotiate(0);
	assert_done(rig_handle_state(VHOST_USER_SET_VRING_ENABLE, 1, 1));
	assert_calls("on:1 ");
	assert_done(rig_handle_u64(VHOST_USER_SET_FEATURES, BIT30));
	assert_calls("features ");
	assert_true(rig.session.rings[1].is_enabled);
	assert_false(rig.session.rings[0].is_enabled);
}

static void test_need_reply_is_answered_once_acks_are_negotiated(void **state)
{
	uint64_t features = VHOST_USER_PROTOCOL_F_REPLY_ACK;

	(void)state;
	assert_done(rig_handle_fds(VHOST_USER_SET_OWNER, VHOST_USER_NEED_REPLY, NULL, 0, NULL, 0));
	assert_int_equal(rig_handle_fds(VHOST_USER_SET_PROTOCOL_FEATURES, VHOST_USER_NEED_REPLY,
					&features, 8, NULL, 0),
			 0);
	assert_reply_u64(VHOST_USER_SET_PROTOCOL_FEATURES, 0);
	assert_int_equal(
		rig_handle_fds(VHOST_USER_SET_OWNER, VHOST_USER_NEED_REPLY, NULL, 0, NULL, 0), 0);
	assert_reply_u64(VHOST_USER_SET_OWNER, 0);
	assert_done(rig_handle(VHOST_USER_SET_OWNER, NULL, 0));
}

static void test_a_failed_message_that_needs_a_reply_does_not_end_the_session(void **state)
{
	struct vhost_user_vring_state bad = {0, 3};

	(void)state;
	rig_negotiate(ACK);
	assert_int_equal(rig_handle_fds(VHOST_USER_SET_VRING_NUM, VHOST_USER_NEED_REPLY, &bad,
					sizeof(bad), NULL, 0),
			 0);
	assert_reply_u64(VHOST_USER_SET_VRING_NUM, 1);
	assert_non_null(strstr(session_reason(&rig.session), "SET_VRING_NUM: ring 0: size 3 "));
	assert_done(rig_handle_state(VHOST_USER_SET_VRING_NUM, 0, 4));
}

static void test_a_failed_message_without_need_reply_ends_the_session(void **state)
{
	(void)state;
	rig_negotiate(ACK);
	assert_closed(rig_handle_state(VHOST_USER_SET_VRING_NUM, 0, 3), "ring 0: size 3 ");
}

static void test_a_failed_message_with_a_reply_of_its_own_ends_the_session(void **state)
{
	struct vhost_user_vring_state bad = {7, 0};

	(void)state;
	rig_negotiate(ACK);
	assert_closed(rig_handle_fds(VHOST_USER_GET_VRING_BASE, VHOST_USER_NEED_REPLY, &bad,
				     sizeof(bad), NULL, 0),
		      "no ring 7");
}

static int handle_shape(uint32_t request, uint32_t flags, uint32_t len, size_t n_fds)
{
	static const uint8_t zeros[VHOST_USER_PAYLOAD_MAX];
	int fds[VHOST_USER_FDS_MAX + 1];

	for (size_t i = 0; i < n_fds; i++)
		fds[i] = rig_new_memory();
	return rig_handle_fds(request, flags, zeros, len, fds, n_fds);
}

/* Those of the device state say so in their own reply, and the session goes on. */
static void assert_refused(int status, uint32_t request)
{
	if (request != VHOST_USER_SET_DEVICE_STATE_FD && request != VHOST_USER_CHECK_DEVICE_STATE) {
		assert_closed(status, "");
		return;
	}
	assert_int_equal(status, 0);
	assert_reply_u64(request, request == VHOST_USER_SET_DEVICE_STATE_FD ? 0x101 : 1);
}

static void assert_shape_is_refused(uint32_t request, uint32_t len, size_t n_fds, bool has_reply)
{
	rig_negotiate(SESSION_PROTOCOL_FEATURES);
	if (!has_reply) {
		assert_int_equal(handle_shape(request, VHOST_USER_NEED_REPLY, len, n_fds), 0);
		assert_reply_u64(request, 1);
	}
	assert_refused(handle_shape(request, 0, len, n_fds), request);
	assert_string_not_equal(session_reason(&rig.session), "");
	assert_calls("");
	rig_start_over();
}

static void test_each_message_of_the_wrong_shape_is_refused(void **state)
{
	(void)state;
	for (uint32_t request = 0; request < 64; request++) {
		const struct vhost_user_rule *rule = vhost_user_rule(request);

		if (!rule) {
			assert_shape_is_refused(request, 0, 0, false);
			assert_shape_is_refused(request, 8, 1, false);
			continue;
		}
		assert_shape_is_refused(request, rule->payload_max + 1, rule->fds_min,
					rule->has_reply);
		if (rule->payload_min > 0)
			assert_shape_is_refused(request, rule->payload_min - 1, rule->fds_min,
						rule->has_reply);
		assert_shape_is_refused(request, rule->payload_min, rule->fds_max + 1,
					rule->has_reply);
	}
}

static void test_each_message_of_the_table_is_handled(void **state)
{
	(void)state;
	for (uint32_t request = 0; request < 4096; request++) {
		const struct vhost_user_rule *rule = vhost_user_rule(request);

		if (!rule)
			continue;
		rig_negotiate(SESSION_PROTOCOL_FEATURES);
		assert_true(handle_shape(request, 0, rule->payload_min, rule->fds_min) >= 0);
		rig_start_over();
	}
}

static void test_each_message_that_was_not_negotiated_is_refused(void **state)
{
	(void)state;
	for (uint32_t request = 0; request < 64; request++) {
		const struct vhost_user_rule *rule = vhost_user_rule(request);

		if (!rule || !rule->requires)
			continue;
		rig_negotiate(SESSION_PROTOCOL_FEATURES & ~rule->requires);
		assert_refused(handle_shape(request, 0, rule->payload_min, rule->fds_min), request);
		assert_non_null(strstr(session_reason(&rig.session), "not negotiated"));
		rig_start_over();
	}
}

static void test_an_owner_may_be_set_twice(void **state)
{
	(void)state;
	assert_done(rig_handle(VHOST_USER_SET_OWNER, NULL, 0));
	assert_done(rig_handle(VHOST_USER_SET_OWNER, NULL, 0));
	assert_calls("");
}

static void test_reset_owner_disables_rings_and_nothing_else(void **state)
{
	(void)state;
	rig_negotiate(SESSION_PROTOCOL_FEATURES);
	assert_done(rig_handle_regions(2));
	rig_start_ring(1, 5);
	assert_done(rig_handle_state(VHOST_USER_SET_VRING_ENABLE, 1, 1));
	rig.calls[0] = '\0';

	assert_done(rig_handle(VHOST_USER_RESET_OWNER, NULL, 0));
	assert_calls("off:1 ");
	assert_true(rig.session.rings[1].is_started);
	assert_int_equal(rig.session.n_regions, 2);
	assert_int_equal(rig.session.features, VIRTIO_F_VERSION_1 | BIT30);
}

static void test_a_device_reset_comes_after_its_rings_are_disabled(void **state)
{
	(void)state;
	rig_negotiate(SESSION_PROTOCOL_FEATURES);
	assert_done(rig_handle_regions(1));
	assert_done(rig_handle_state(VHOST_USER_SET_VRING_ENABLE, 0, 1));
	assert_done(rig_handle_state(VHOST_USER_SET_VRING_ENABLE, 2, 1));
	rig.calls[0] = '\0';

	assert_done(rig_handle(VHOST_USER_RESET_DEVICE, NULL, 0));
	assert_calls("off:0 off:2 reset ");
	assert_int_equal(rig.session.n_regions, 1);
	assert_int_equal(rig.session.protocol_features, SESSION_PROTOCOL_FEATURES);
	assert_done(rig_handle(VHOST_USER_RESET_DEVICE, NULL, 0));
	assert_calls("reset ");
}

static int get_config(uint32_t offset, uint32_t size)
{
	uint8_t payload[sizeof(struct vhost_user_config) + VHOST_USER_CONFIG_MAX] = {0};
	/* crosvm's flags */
	struct vhost_user_config config = {offset, size, 1};

	memcpy(payload, &config, sizeof(config));
	return rig_handle(VHOST_USER_GET_CONFIG, payload, sizeof(config) + size);
}

static void assert_config(uint32_t offset, uint32_t size, uint32_t said, const uint8_t *bytes)
{
	struct vhost_user_config config;
	const uint8_t *payload = rig.session.reply + sizeof(struct vhost_user_header);

	assert_reply(VHOST_USER_GET_CONFIG, sizeof(config) + size);
	memcpy(&config, payload, sizeof(config));
	assert_int_equal(config.offset, offset);
	assert_int_equal(config.size, said);
	assert_int_equal(config.flags, 1);
	assert_memory_equal(payload + sizeof(config), bytes, size);
}

static void test_every_part_of_the_configuration_space_can_be_read(void **state)
{
	static const uint8_t space[8] = {0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0};

	(void)state;
	rig_negotiate(VHOST_USER_PROTOCOL_F_CONFIG);
	for (uint32_t offset = 0; offset <= 8; offset++) {
		for (uint32_t size = 0; offset + size <= 8; size++) {
			assert_int_equal(get_config(offset, size), 0);
			assert_config(offset, size, size, space + offset);
			assert_calls(size > 0 && offset + size == 8 ? "config " : "");
		}
	}
}

static void test_a_read_outside_of_the_configuration_space_fails_and_that_is_all(void **state)
{
	static const struct {
		uint32_t offset, size;
	} cases[] = {{0, 9}, {8, 1}, {7, 2}, {4, 8}, {0, 256}, {UINT32_MAX, 1}, {UINT32_MAX, 256}};
	static const uint8_t zeros[256];

	(void)state;
	rig_negotiate(VHOST_USER_PROTOCOL_F_CONFIG);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_int_equal(get_config(cases[i].offset, cases[i].size), 0);
		assert_config(cases[i].offset, cases[i].size, 0, zeros);
		assert_calls("");
	}
}

static void test_the_configuration_space_cannot_be_written(void **state)
{
	uint8_t payload[20] = {0};
	struct vhost_user_config config = {0, 8, 0};

	(void)state;
	memcpy(payload, &config, sizeof(config));
	rig_negotiate(VHOST_USER_PROTOCOL_F_CONFIG | ACK);
	assert_int_equal(
		rig_handle_fds(VHOST_USER_SET_CONFIG, VHOST_USER_NEED_REPLY, payload, 20, NULL, 0),
		0);
	assert_reply_u64(VHOST_USER_SET_CONFIG, 1);
	assert_closed(rig_handle(VHOST_USER_SET_CONFIG, payload, 20), "SET_CONFIG");
}

static void test_enable_takes_nothing_but_zero_and_one(void **state)
{
	(void)state;
	rig_negotiate(0);
	assert_closed(rig_handle_state(VHOST_USER_SET_VRING_ENABLE, 0, 2), "neither");
	rig_start_over();
	assert_closed(rig_handle_state(VHOST_USER_SET_VRING_ENABLE, 0, 1), "bit 30");
}

static void test_nothing_is_answered_before_the_operation_is_done(void **state)
{
	uint64_t features = BIT30;

	(void)state;
	rig_negotiate(ACK);
	rig.answer = SESSION_E_PENDING;
	assert_int_equal(rig_handle_fds(VHOST_USER_SET_FEATURES, VHOST_USER_NEED_REPLY, &features,
					8, NULL, 0),
			 SESSION_E_PENDING);
	assert_int_equal(rig.session.reply_len, 0);
	assert_int_equal(session_complete(&rig.session, 0, 0), 0);
	assert_reply_u64(VHOST_USER_SET_FEATURES, 0);
	assert_done(session_complete(&rig.session, 0, 0));
}

static void test_operations_of_one_message_follow_each_other(void **state)
{
	(void)state;
	rig.answer = SESSION_E_PENDING;
	assert_int_equal(rig_handle_u64(VHOST_USER_SET_FEATURES, 0), SESSION_E_PENDING);
	assert_calls("features ");
	assert_int_equal(session_complete(&rig.session, 0, 0), SESSION_E_PENDING);
	assert_calls("on:0 ");
	assert_int_equal(session_complete(&rig.session, 0, 0), SESSION_E_PENDING);
	assert_calls("on:1 ");
	assert_int_equal(session_complete(&rig.session, 0, 0), SESSION_E_PENDING);
	assert_calls("on:2 ");
	assert_done(session_complete(&rig.session, 0, 0));
	assert_calls("");
}

static void test_a_message_while_another_is_under_way_ends_the_session(void **state)
{
	(void)state;
	rig_start_ring(0, 0);
	rig.answer = SESSION_E_PENDING;
	assert_int_equal(rig_handle_state(VHOST_USER_GET_VRING_BASE, 0, 0), SESSION_E_PENDING);
	assert_closed(rig_handle_ring_fd(VHOST_USER_SET_VRING_CALL, 0), "GET_VRING_BASE");
}

static void test_the_old_memory_stays_open_until_the_new_is_in_use(void **state)
{
	size_t n_open;
	int old;

	(void)state;
	assert_done(rig_handle_regions(2));
	old = rig.session.regions[0].fd;
	n_open = open_files_count();

	rig.answer = SESSION_E_PENDING;
	assert_int_equal(rig_handle_regions(3), SESSION_E_PENDING);
	assert_int_equal(rig.session.n_regions, 3);
	assert_int_equal(open_files_count(), n_open + 3);
	assert_true(fcntl(old, F_GETFD) >= 0);
	assert_done(session_complete(&rig.session, 0, 0));
	assert_int_equal(open_files_count(), n_open + 1);
	assert_int_equal(fcntl(old, F_GETFD), -1);
}

static void test_a_failed_operation_brings_the_old_state_back(void **state)
{
	struct vhost_user_region added = rig_region_of(5), removed = rig_region_of(0);
	struct session_region before;
	size_t n_open;

	(void)state;
	for (int is_late = 0; is_late < 2; is_late++) {
		for (int i = 0; i < 6; i++) {
			int status = -1;

			rig_negotiate(SESSION_PROTOCOL_FEATURES);
			assert_done(rig_handle_regions(2));
			rig_start_ring(0, 9);
			rig_prepare_ring(1, 9);
			before = rig.session.regions[0];
			n_open = open_files_count();
			rig.answer = is_late ? SESSION_E_PENDING : -ENOMEM;

			if (i == 0)
				status = rig_handle_regions(3);
			else if (i == 1)
				status = rig_handle_single(VHOST_USER_ADD_MEM_REG, &added,
							   rig_new_memory());
			else if (i == 2)
				status = rig_handle_single(VHOST_USER_REM_MEM_REG, &removed, -1);
			else if (i == 3)
				status = rig_handle_ring_fd(VHOST_USER_SET_VRING_KICK, 1);
			else if (i == 4)
				status = rig_handle_state(VHOST_USER_GET_VRING_BASE, 0, 0);
			else
				status = rig_handle(VHOST_USER_RESET_DEVICE, NULL, 0);
			if (is_late) {
				assert_int_equal(status, SESSION_E_PENDING);
				status = session_complete(&rig.session, -ENOMEM, 0);
			}
			assert_closed(status, "error 12");

			assert_int_equal(open_files_count(), n_open);
			assert_int_equal(rig.session.n_regions, 2);
			assert_int_equal(rig.session.regions[0].fd, before.fd);
			assert_int_equal(rig.session.regions[0].guest_address,
					 before.guest_address);
			assert_true(rig.session.rings[0].is_started);
			assert_true(rig.session.rings[0].fds[SESSION_KICK] >= 0);
			assert_false(rig.session.rings[1].is_started);
			assert_int_equal(rig.session.rings[0].base, 9);
			rig_start_over();
		}
	}
}

static void test_a_failed_operation_is_nacked_when_a_reply_is_needed(void **state)
{
	struct vhost_user_region region = rig_region_of(0);

	(void)state;
	rig_negotiate(ACK);
	rig.answer = SESSION_E_PENDING;
	assert_int_equal(rig_handle_table(&region, 1, VHOST_USER_NEED_REPLY), SESSION_E_PENDING);
	assert_int_equal(session_complete(&rig.session, -ENOMEM, 0), 0);
	assert_reply_u64(VHOST_USER_SET_MEM_TABLE, 1);
	assert_int_equal(rig.session.n_regions, 0);
}

static void test_a_session_may_end_with_an_operation_under_way(void **state)
{
	struct vhost_user_region region = rig_region_of(1);

	(void)state;
	rig_negotiate(SESSION_PROTOCOL_FEATURES);
	assert_done(rig_handle_regions(2));
	rig_start_ring(0, 0);
	rig.answer = SESSION_E_PENDING;
	assert_int_equal(rig_handle_regions(3), SESSION_E_PENDING);
	rig_start_over();

	rig_negotiate(SESSION_PROTOCOL_FEATURES);
	assert_done(rig_handle_regions(2));
	rig.answer = SESSION_E_PENDING;
	assert_int_equal(rig_handle_single(VHOST_USER_REM_MEM_REG, &region, -1), SESSION_E_PENDING);
	rig_start_over();

	rig_start_ring(0, 0);
	rig.answer = SESSION_E_PENDING;
	assert_int_equal(rig_handle_state(VHOST_USER_GET_VRING_BASE, 0, 0), SESSION_E_PENDING);
	session_end(&rig.session);
	assert_done(session_complete(&rig.session, 0, 1));
}

static void test_a_session_works_without_a_device(void **state)
{
	static const struct session_operations none;

	(void)state;
	session_init(&rig.session, CID, SESSION_FEATURES, SESSION_PROTOCOL_FEATURES, &none, NULL);
	assert_done(rig_handle_u64(VHOST_USER_SET_PROTOCOL_FEATURES, SESSION_PROTOCOL_FEATURES));
	assert_done(rig_handle_u64(VHOST_USER_SET_FEATURES, 0));
	assert_done(rig_handle_regions(2));
	rig_start_ring(0, 4);
	assert_done(rig_handle_ring_fd(VHOST_USER_SET_VRING_CALL, 0));
	assert_int_equal(get_config(0, 8), 0);
	assert_int_equal(rig_handle_state(VHOST_USER_GET_VRING_BASE, 0, 0), 0);
	assert_reply_state(0, 4);
	assert_done(rig_handle(VHOST_USER_RESET_DEVICE, NULL, 0));
	assert_int_equal(rig_handle(VHOST_USER_CHECK_DEVICE_STATE, NULL, 0), 0);
	assert_reply_u64(VHOST_USER_CHECK_DEVICE_STATE, 1);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, rig_set_up, rig_tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_rings_begin_stopped_and_disabled),
		TEST(test_questions_are_answered_with_exact_flags),
		TEST(test_what_was_not_offered_is_refused),
		TEST(test_the_protocol_feature_bit_is_taken_though_the_device_did_not_name_it),
		TEST(test_protocol_features_are_settled_before_features),
		TEST(test_rings_are_enabled_at_once_without_the_protocol_feature_bit),
		TEST(test_only_the_rings_that_were_off_are_switched_on),
		TEST(test_enabled_rings_stay_with_the_protocol_feature_bit),
		TEST(test_need_reply_is_answered_once_acks_are_negotiated),
		TEST(test_a_failed_message_that_needs_a_reply_does_not_end_the_session),
		TEST(test_a_failed_message_without_need_reply_ends_the_session),
		TEST(test_a_failed_message_with_a_reply_of_its_own_ends_the_session),
		TEST(test_each_message_of_the_wrong_shape_is_refused),
		TEST(test_each_message_of_the_table_is_handled),
		TEST(test_each_message_that_was_not_negotiated_is_refused),
		TEST(test_an_owner_may_be_set_twice),
		TEST(test_reset_owner_disables_rings_and_nothing_else),
		TEST(test_a_device_reset_comes_after_its_rings_are_disabled),
		TEST(test_every_part_of_the_configuration_space_can_be_read),
		TEST(test_a_read_outside_of_the_configuration_space_fails_and_that_is_all),
		TEST(test_the_configuration_space_cannot_be_written),
		TEST(test_enable_takes_nothing_but_zero_and_one),
		TEST(test_nothing_is_answered_before_the_operation_is_done),
		TEST(test_operations_of_one_message_follow_each_other),
		TEST(test_a_message_while_another_is_under_way_ends_the_session),
		TEST(test_the_old_memory_stays_open_until_the_new_is_in_use),
		TEST(test_a_failed_operation_brings_the_old_state_back),
		TEST(test_a_failed_operation_is_nacked_when_a_reply_is_needed),
		TEST(test_a_session_may_end_with_an_operation_under_way),
		TEST(test_a_session_works_without_a_device),
	};

	return cmocka_run_group_tests_name("session", tests, NULL, NULL);
}

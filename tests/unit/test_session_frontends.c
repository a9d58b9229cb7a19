/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>

#include <cmocka.h>

#include "tests/unit/session_rig.h"

struct line {
	uint32_t request;
	uint64_t first, second;
	uint32_t flags;
};

/* Say one line; every one is accepted, and answered exactly when it has to be. */
static void say(const struct line *line)
{
	const struct vhost_user_rule *rule = vhost_user_rule(line->request);
	uint8_t payload[1100] = {0};
	struct vhost_user_memory memory = {.n_regions = (uint32_t)line->first};
	struct vhost_user_single_region single = {.region = rig_region_of(line->first)};
	struct vhost_user_vring_addr addr = rig_addr_of((uint32_t)line->first);
	struct vhost_user_config config = {(uint32_t)line->first, (uint32_t)line->second, 0};
	struct vhost_user_vring_state vring = {(uint32_t)line->first, (uint32_t)line->second};
	int fds[VHOST_USER_FDS_MAX];
	size_t len = rule->payload_min, n_fds = 0;
	bool is_answered = rule->has_reply || (line->flags & VHOST_USER_NEED_REPLY &&
					       rig.session.protocol_features & ACK);

	switch (line->request) {
	case VHOST_USER_SET_MEM_TABLE:
		memcpy(payload, &memory, sizeof(memory));
		for (; n_fds < line->first; n_fds++) {
			struct vhost_user_region region = rig_region_of(n_fds);

			memcpy(payload + len, &region, sizeof(region));
			len += sizeof(region);
			fds[n_fds] = rig_new_memory();
		}
		break;
	case VHOST_USER_ADD_MEM_REG:
		fds[n_fds++] = rig_new_memory();
		/* fall through */
	case VHOST_USER_REM_MEM_REG:
		memcpy(payload, &single, sizeof(single));
		break;
	case VHOST_USER_SET_VRING_ADDR:
		memcpy(payload, &addr, sizeof(addr));
		break;
	case VHOST_USER_GET_CONFIG:
		memcpy(payload, &config, sizeof(config));
		len += config.size;
		break;
	case VHOST_USER_SET_VRING_KICK:
	case VHOST_USER_SET_VRING_CALL:
	case VHOST_USER_SET_VRING_ERR:
		if (!(line->first & NOFD))
			fds[n_fds++] = eventfd(0, EFD_CLOEXEC);
		/* fall through */
	case VHOST_USER_SET_FEATURES:
	case VHOST_USER_SET_PROTOCOL_FEATURES:
		memcpy(payload, &line->first, sizeof(line->first));
		break;
	default:
		if (len == sizeof(vring))
			memcpy(payload, &vring, sizeof(vring));
		break;
	}
	assert_int_equal(rig_handle_fds(line->request, line->flags, payload, len, fds, n_fds), 0);
	assert_int_equal(rig.session.reply_len > 0, is_answered);
	if (line->request == VHOST_USER_GET_VRING_BASE)
		assert_reply_state((uint32_t)line->first, (uint32_t)line->second);
	else if (is_answered && !rule->has_reply)
		assert_reply_u64(line->request, 0);
}

#define SAY(script)                                                                                \
	do {                                                                                       \
		for (size_t line_ = 0; line_ < sizeof(script) / sizeof((script)[0]); line_++)      \
			say(&(script)[line_]);                                                     \
	} while (0)

#define M(name) VHOST_USER_##name
#define NEED	VHOST_USER_NEED_REPLY

static void assert_rings(const char *shape)
{
	char got[SESSION_RINGS * 2 + 1] = "";

	for (size_t i = 0; i < SESSION_RINGS; i++) {
		got[i * 2] = rig.session.rings[i].is_started ? 'S' : '-';
		got[i * 2 + 1] = rig.session.rings[i].is_enabled ? 'E' : '-';
	}
	assert_string_equal(got, shape);
}

static void test_qemu_realizes_starts_stops_continues_and_resets(void **state)
{
	static const struct line realize[] = {
		{M(GET_FEATURES), 0, 0, 0},
		{M(GET_PROTOCOL_FEATURES), 0, 0, 0},
		{M(SET_PROTOCOL_FEATURES), SESSION_PROTOCOL_FEATURES, 0, 0},
		{M(GET_QUEUE_NUM), 0, 0, 0},
		{M(GET_MAX_MEM_SLOTS), 0, 0, 0},
		{M(SET_OWNER), 0, 0, 0},
		{M(GET_FEATURES), 0, 0, 0},
		{M(SET_VRING_CALL), 0, 0, NEED},
		{M(SET_VRING_ERR), 0, 0, NEED},
		{M(SET_VRING_CALL), 1, 0, NEED},
		{M(SET_VRING_ERR), 1, 0, NEED},
		{M(GET_CONFIG), 0, 8, 0},
	};
	static const struct line memory[] = {
		{M(ADD_MEM_REG), 0, 0, NEED},
		{M(ADD_MEM_REG), 1, 0, NEED},
	};
	static const struct line start[] = {
		{M(SET_FEATURES), SESSION_FEATURES & ~VIRTIO_F_RING_PACKED, 0, 0},
		{M(SET_VRING_NUM), 0, 128, 0},
		{M(SET_VRING_BASE), 0, 21, 0},
		{M(SET_VRING_ADDR), 0, 0, 0},
		{M(SET_VRING_KICK), 0, 0, NEED},
		{M(SET_VRING_NUM), 1, 128, 0},
		{M(SET_VRING_BASE), 1, 22, 0},
		{M(SET_VRING_ADDR), 1, 0, 0},
		{M(SET_VRING_KICK), 1, 0, NEED},
		{M(SET_VRING_ENABLE), 0, 1, NEED},
		{M(SET_VRING_ENABLE), 1, 1, NEED},
		{M(SET_VRING_CALL), 0, 0, NEED},
		{M(SET_VRING_CALL), 1, 0, NEED},
	};
	static const struct line hotplug[] = {
		{M(ADD_MEM_REG), 2, 0, NEED},
		{M(REM_MEM_REG), 2, 0, NEED},
	};
	static const struct line stop[] = {
		{M(SET_VRING_ENABLE), 0, 0, NEED},
		{M(SET_VRING_ENABLE), 1, 0, NEED},
		{M(GET_VRING_BASE), 0, 21, 0},
		{M(GET_VRING_BASE), 1, 22, 0},
	};
	static const struct line reset[] = {{M(RESET_DEVICE), 0, 0, 0}};

	(void)state;
	SAY(realize);
	assert_calls("call:0 err:0 call:1 err:1 config ");
	SAY(memory);
	for (int i = 0; i < 2; i++) {
		rig.calls[0] = '\0';
		SAY(start);
		assert_calls("features started:0 started:1 on:0 on:1 call:0 call:1 ");
		assert_rings("SESE--");
		SAY(hotplug);
		assert_int_equal(rig.session.n_regions, 2);
		rig.calls[0] = '\0';
		SAY(stop);
		assert_calls("off:0 off:1 stopped:0 stopped:1 ");
		assert_rings("------");
	}
	SAY(reset);
	assert_calls("reset ");
}

static void test_crosvm_activates_sleeps_and_wakes(void **state)
{
	static const struct line connect[] = {
		{M(SET_OWNER), 0, 0, 0},
		{M(GET_FEATURES), 0, 0, 0},
		{M(GET_PROTOCOL_FEATURES), 0, 0, 0},
		{M(SET_PROTOCOL_FEATURES), 0x209, 0, 0}, /* MQ, REPLY_ACK, CONFIG */
		{M(GET_QUEUE_NUM), 0, 0, 0},
		{M(GET_CONFIG), 0, 4, 0},
		{M(GET_CONFIG), 4, 4, 0},
		{M(SET_FEATURES), SESSION_FEATURES & ~VIRTIO_F_RING_PACKED, 0, 0},
	};
	static const struct line activate[] = {
		{M(SET_MEM_TABLE), 12, 0, 0},	{M(SET_VRING_NUM), 0, 256, 0},
		{M(SET_VRING_ADDR), 0, 0, 0},	{M(SET_VRING_BASE), 0, 1, 0},
		{M(SET_VRING_CALL), 0, 0, 0},	{M(SET_VRING_KICK), 0, 0, 0},
		{M(SET_VRING_ENABLE), 0, 1, 0}, {M(SET_VRING_NUM), 1, 256, 0},
		{M(SET_VRING_ADDR), 1, 0, 0},	{M(SET_VRING_BASE), 1, 2, 0},
		{M(SET_VRING_CALL), 1, 0, 0},	{M(SET_VRING_KICK), 1, 0, 0},
		{M(SET_VRING_ENABLE), 1, 1, 0}, {M(SET_VRING_NUM), 2, 256, 0},
		{M(SET_VRING_ADDR), 2, 0, 0},	{M(SET_VRING_BASE), 2, 3, 0},
		{M(SET_VRING_CALL), 2, 0, 0},	{M(SET_VRING_KICK), 2, 0, 0},
		{M(SET_VRING_ENABLE), 2, 1, 0},
	};
	static const struct line sleep[] = {
		{M(SET_VRING_ENABLE), 0, 0, 0}, {M(GET_VRING_BASE), 0, 1, 0},
		{M(SET_VRING_ENABLE), 1, 0, 0}, {M(GET_VRING_BASE), 1, 2, 0},
		{M(SET_VRING_ENABLE), 2, 0, 0}, {M(GET_VRING_BASE), 2, 3, 0},
	};

	(void)state;
	SAY(connect);
	assert_calls("config features ");
	for (int i = 0; i < 2; i++) {
		SAY(activate);
		assert_calls("memory call:0 started:0 on:0 call:1 started:1 on:1 "
			     "call:2 started:2 on:2 ");
		assert_rings("SESESE");
		assert_int_equal(rig.session.n_regions, 12);
		SAY(sleep);
		assert_calls("off:0 stopped:0 off:1 stopped:1 off:2 stopped:2 ");
		assert_rings("------");
	}
}

static void test_cloud_hypervisor_starts_pauses_snapshots_and_resets(void **state)
{
	static const struct line start[] = {
		{M(SET_FEATURES), SESSION_FEATURES & ~VIRTIO_F_RING_PACKED, 0, NEED},
		{M(SET_MEM_TABLE), 2, 0, NEED},
		{M(SET_VRING_NUM), 0, 1024, NEED},
		{M(SET_VRING_NUM), 1, 1024, NEED},
		{M(SET_VRING_NUM), 2, 1024, NEED},
		{M(SET_VRING_ADDR), 0, 0, NEED},
		{M(SET_VRING_BASE), 0, 5, NEED},
		{M(SET_VRING_CALL), 0, 0, NEED},
		{M(SET_VRING_KICK), 0, 0, NEED},
		{M(SET_VRING_ADDR), 1, 0, NEED},
		{M(SET_VRING_BASE), 1, 6, NEED},
		{M(SET_VRING_CALL), 1, 0, NEED},
		{M(SET_VRING_KICK), 1, 0, NEED},
		{M(SET_VRING_ADDR), 2, 0, NEED},
		{M(SET_VRING_BASE), 2, 7, NEED},
		{M(SET_VRING_CALL), 2, 0, NEED},
		{M(SET_VRING_KICK), 2, 0, NEED},
		{M(SET_VRING_ENABLE), 0, 1, NEED},
		{M(SET_VRING_ENABLE), 1, 1, NEED},
		{M(SET_VRING_ENABLE), 2, 1, NEED},
	};
	static const struct line connect[] = {
		{M(SET_OWNER), 0, 0, 0},
		{M(GET_FEATURES), 0, 0, 0},
		{M(GET_PROTOCOL_FEATURES), 0, 0, 0},
		{M(SET_PROTOCOL_FEATURES), SESSION_PROTOCOL_FEATURES, 0, 0},
		{M(GET_QUEUE_NUM), 0, 0, NEED},
		{M(GET_CONFIG), 0, 8, NEED},
	};
	static const struct line pause[] = {
		{M(SET_VRING_ENABLE), 0, 0, NEED},
		{M(SET_VRING_ENABLE), 1, 0, NEED},
		{M(SET_VRING_ENABLE), 2, 0, NEED},
	};
	static const struct line resume[] = {
		{M(SET_VRING_ENABLE), 0, 1, NEED},
		{M(SET_VRING_ENABLE), 1, 1, NEED},
		{M(SET_VRING_ENABLE), 2, 1, NEED},
	};
	static const struct line stop[] = {
		{M(GET_VRING_BASE), 0, 5, NEED},
		{M(GET_VRING_BASE), 1, 6, NEED},
		{M(GET_VRING_BASE), 2, 7, NEED},
	};
	static const struct line hotplug[] = {{M(ADD_MEM_REG), 2, 0, NEED}};

	(void)state;
	SAY(connect);
	SAY(start);
	rig.calls[0] = '\0';
	SAY(hotplug);
	assert_calls("added:40200000 ");
	SAY(pause);
	assert_calls("off:0 off:1 off:2 ");
	assert_rings("S-S-S-");
	SAY(resume);
	assert_calls("on:0 on:1 on:2 ");
	assert_rings("SESESE");
	SAY(pause);
	SAY(stop);
	assert_rings("------");
	rig.calls[0] = '\0';
	SAY(start);
	assert_rings("SESESE");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, rig_set_up, rig_tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_qemu_realizes_starts_stops_continues_and_resets),
		TEST(test_crosvm_activates_sleeps_and_wakes),
		TEST(test_cloud_hypervisor_starts_pauses_snapshots_and_resets),
	};

	return cmocka_run_group_tests_name("session frontends", tests, NULL, NULL);
}

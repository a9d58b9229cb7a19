/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/vhost_user.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define EXACTLY(size) .payload_min = (size), .payload_max = (size)
#define U64	      EXACTLY(sizeof(uint64_t))
#define STATE	      EXACTLY(sizeof(struct vhost_user_vring_state))
#define CONFIG                                                                                     \
	.payload_min = sizeof(struct vhost_user_config),                                           \
	.payload_max = sizeof(struct vhost_user_config) + VHOST_USER_CONFIG_MAX,                   \
	.requires = VHOST_USER_PROTOCOL_F_CONFIG
#define MEMORY_MAX                                                                                 \
	(sizeof(struct vhost_user_memory) +                                                        \
	 VHOST_USER_REGIONS_MAX * sizeof(struct vhost_user_region))

static_assert(MEMORY_MAX <= VHOST_USER_PAYLOAD_MAX, "the largest memory table fits");

static const struct vhost_user_rule rules[] = {
	[VHOST_USER_GET_FEATURES] = {.name = "GET_FEATURES", .has_reply = true},
	[VHOST_USER_SET_FEATURES] = {.name = "SET_FEATURES", U64},
	[VHOST_USER_SET_OWNER] = {.name = "SET_OWNER"},
	[VHOST_USER_RESET_OWNER] = {.name = "RESET_OWNER"},
	[VHOST_USER_SET_MEM_TABLE] = {.name = "SET_MEM_TABLE",
				      .payload_min = sizeof(struct vhost_user_memory),
				      .payload_max = MEMORY_MAX,
				      .fds_max = VHOST_USER_FDS_MAX},
	[VHOST_USER_SET_LOG_BASE] = {.name = "SET_LOG_BASE",
				     EXACTLY(sizeof(struct vhost_user_log)),
				     .fds_min = 1,
				     .fds_max = 1,
				     .has_reply = true,
				     .requires = VHOST_USER_PROTOCOL_F_LOG_SHMFD},
	[VHOST_USER_SET_LOG_FD] = {.name = "SET_LOG_FD", .fds_min = 1, .fds_max = 1},
	[VHOST_USER_SET_VRING_NUM] = {.name = "SET_VRING_NUM", STATE},
	[VHOST_USER_SET_VRING_ADDR] = {.name = "SET_VRING_ADDR",
				       EXACTLY(sizeof(struct vhost_user_vring_addr))},
	[VHOST_USER_SET_VRING_BASE] = {.name = "SET_VRING_BASE", STATE},
	[VHOST_USER_GET_VRING_BASE] = {.name = "GET_VRING_BASE", STATE, .has_reply = true},
	[VHOST_USER_SET_VRING_KICK] = {.name = "SET_VRING_KICK", U64, .fds_max = 1},
	[VHOST_USER_SET_VRING_CALL] = {.name = "SET_VRING_CALL", U64, .fds_max = 1},
	[VHOST_USER_SET_VRING_ERR] = {.name = "SET_VRING_ERR", U64, .fds_max = 1},
	[VHOST_USER_GET_PROTOCOL_FEATURES] = {.name = "GET_PROTOCOL_FEATURES", .has_reply = true},
	[VHOST_USER_SET_PROTOCOL_FEATURES] = {.name = "SET_PROTOCOL_FEATURES", U64},
	[VHOST_USER_GET_QUEUE_NUM] = {.name = "GET_QUEUE_NUM",
				      .has_reply = true,
				      .requires = VHOST_USER_PROTOCOL_F_MQ},
	[VHOST_USER_SET_VRING_ENABLE] = {.name = "SET_VRING_ENABLE", STATE},
	[VHOST_USER_SET_BACKEND_REQ_FD] = {.name = "SET_BACKEND_REQ_FD",
					   .fds_min = 1,
					   .fds_max = 1,
					   .requires = VHOST_USER_PROTOCOL_F_BACKEND_REQ},
	[VHOST_USER_GET_CONFIG] = {.name = "GET_CONFIG", CONFIG, .has_reply = true},
	[VHOST_USER_SET_CONFIG] = {.name = "SET_CONFIG", CONFIG},
	[VHOST_USER_RESET_DEVICE] = {.name = "RESET_DEVICE",
				     .requires = VHOST_USER_PROTOCOL_F_RESET_DEVICE},
	[VHOST_USER_VRING_KICK] = {.name = "VRING_KICK",
				   STATE,
				   .requires = VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS},
	[VHOST_USER_GET_MAX_MEM_SLOTS] = {.name = "GET_MAX_MEM_SLOTS",
					  .has_reply = true,
					  .requires = VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS},
	[VHOST_USER_ADD_MEM_REG] = {.name = "ADD_MEM_REG",
				    EXACTLY(sizeof(struct vhost_user_single_region)),
				    .fds_min = 1,
				    .fds_max = 1,
				    .requires = VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS},
	/* The document has back-ends tolerate an fd here, for front-ends that send one. */
	[VHOST_USER_REM_MEM_REG] = {.name = "REM_MEM_REG",
				    EXACTLY(sizeof(struct vhost_user_single_region)),
				    .fds_max = 1,
				    .requires = VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS},
	[VHOST_USER_SET_DEVICE_STATE_FD] = {.name = "SET_DEVICE_STATE_FD",
					    EXACTLY(sizeof(struct vhost_user_device_state)),
					    .fds_min = 1,
					    .fds_max = 1,
					    .has_reply = true,
					    .requires = VHOST_USER_PROTOCOL_F_DEVICE_STATE},
	[VHOST_USER_CHECK_DEVICE_STATE] = {.name = "CHECK_DEVICE_STATE",
					   .has_reply = true,
					   .requires = VHOST_USER_PROTOCOL_F_DEVICE_STATE},
	[VHOST_USER_SUSPEND] = {.name = "SUSPEND", .requires = VHOST_USER_PROTOCOL_F_SUSPEND},
	[VHOST_USER_RESUME] = {.name = "RESUME", .requires = VHOST_USER_PROTOCOL_F_SUSPEND},
};

const struct vhost_user_rule *vhost_user_rule(uint32_t request)
{
	if (request >= sizeof(rules) / sizeof(rules[0]) || !rules[request].name)
		return NULL;
	return &rules[request];
}

/* What the payload says of itself: the size and the number of fds that it must have. */
static void contents_call_for(const struct vhost_user_message *message, uint64_t *size,
			      size_t *n_fds)
{
	struct vhost_user_memory memory;
	struct vhost_user_config config;
	uint64_t ring;

	switch (message->header.request) {
	case VHOST_USER_SET_MEM_TABLE:
		memcpy(&memory, message->payload, sizeof(memory));
		*size = sizeof(memory) +
			(uint64_t)memory.n_regions * sizeof(struct vhost_user_region);
		*n_fds = memory.n_regions;
		break;
	case VHOST_USER_GET_CONFIG:
	case VHOST_USER_SET_CONFIG:
		memcpy(&config, message->payload, sizeof(config));
		*size = (uint64_t)sizeof(config) + config.size;
		break;
	case VHOST_USER_SET_VRING_KICK:
	case VHOST_USER_SET_VRING_CALL:
	case VHOST_USER_SET_VRING_ERR:
		memcpy(&ring, message->payload, sizeof(ring));
		*n_fds = ring & VHOST_USER_VRING_NOFD ? 0 : 1;
		break;
	}
}

int vhost_user_check(const struct vhost_user_message *message, size_t n_fds,
		     uint64_t protocol_features, char ret_reason[static VHOST_USER_REASON_MAX])
{
	const struct vhost_user_rule *rule = vhost_user_rule(message->header.request);
	uint64_t size = message->header.size;
	size_t n_fds_exact = n_fds;

	if (!rule) {
		snprintf(ret_reason, VHOST_USER_REASON_MAX, "message %" PRIu32 " is not supported",
			 message->header.request);
		return -EPROTO;
	}
	if (rule->requires & ~protocol_features) {
		snprintf(ret_reason, VHOST_USER_REASON_MAX,
			 "%s: protocol features 0x%" PRIx64 " were not negotiated", rule->name,
			 rule->requires & ~protocol_features);
		return -EPROTO;
	}
	if (size < rule->payload_min || size > rule->payload_max) {
		snprintf(ret_reason, VHOST_USER_REASON_MAX,
			 "%s: payload of %" PRIu64 " bytes, %" PRIu32 " to %" PRIu32 " expected",
			 rule->name, size, rule->payload_min, rule->payload_max);
		return -EPROTO;
	}
	if (n_fds < rule->fds_min || n_fds > rule->fds_max) {
		snprintf(ret_reason, VHOST_USER_REASON_MAX,
			 "%s: %zu fds, %" PRIu32 " to %" PRIu32 " expected", rule->name, n_fds,
			 rule->fds_min, rule->fds_max);
		return -EPROTO;
	}

	contents_call_for(message, &size, &n_fds_exact);
	if (size != message->header.size || n_fds != n_fds_exact) {
		snprintf(ret_reason, VHOST_USER_REASON_MAX,
			 "%s: %" PRIu32 " bytes and %zu fds, its contents call for %" PRIu64
			 " and %zu",
			 rule->name, message->header.size, n_fds, size, n_fds_exact);
		return -EPROTO;
	}
	return 0;
}

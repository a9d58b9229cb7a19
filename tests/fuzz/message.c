/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A packet on the channel between front and worker, from a peer that is compromised.
 * In each state and each direction it is decoded or not, as the table of messages has
 * it; what is decoded is what message_encode() makes of it again.
 */

#include <string.h>

#include "ipc/message.h"
#include "tests/fuzz/fuzz.h"

static const enum message_state states[] = {MESSAGE_BEFORE_READY, MESSAGE_SPARE, MESSAGE_ASSIGNED,
					    MESSAGE_FROZEN, MESSAGE_TAKING};

/* Decoding is into one place in memory: what is compared is what it packs into. */
static void check_again(const Vsockd__Envelope *envelope, enum message_direction direction,
			enum message_state state, int fd)
{
	struct channel_packet packet, again;
	const char *reason;

	CLAIM(vsockd__envelope__get_packed_size(envelope) <= CHANNEL_MESSAGE_MAX);
	message_encode(envelope, fd, &packet);
	CLAIM(packet.len <= CHANNEL_MESSAGE_MAX && packet.fd == fd);
	envelope = message_decode(&packet, direction, state, &reason);
	CLAIM(envelope);
	message_encode(envelope, fd, &again);
	CLAIM(again.len == packet.len && memcmp(again.bytes, packet.bytes, packet.len) == 0);
}

static void check(const struct channel_packet *packet, enum message_direction direction,
		  enum message_state state)
{
	const char *reason = NULL;
	const Vsockd__Envelope *envelope = message_decode(packet, direction, state, &reason);
	const struct message_rule *rule;

	if (!envelope) {
		CLAIM(reason && *reason);
		return;
	}
	rule = message_rule(envelope->body_case);
	CLAIM(rule && (rule->direction == direction || rule->direction == MESSAGE_RELAYED));
	CLAIM(rule->states & (uint32_t)state);
	CLAIM((packet->fd >= 0) >= rule->fds_min && (packet->fd >= 0) <= rule->fds_max);
	/* No worker ever sends an fd. */
	CLAIM(direction == MESSAGE_TO_WORKER || packet->fd < 0);
	check_again(envelope, direction, state, packet->fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	struct channel_packet packet = {.len = len};

	if (len > CHANNEL_MESSAGE_MAX)
		return -1;
	if (len > 0)
		memcpy(packet.bytes, bytes, len);
	for (int fd = -1; fd <= 0; fd++) {
		packet.fd = fd;
		for (size_t i = 0; i < sizeof(states) / sizeof(states[0]); i++) {
			check(&packet, MESSAGE_TO_FRONT, states[i]);
			check(&packet, MESSAGE_TO_WORKER, states[i]);
		}
	}
	return 0;
}

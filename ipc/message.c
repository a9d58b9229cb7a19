/* SPDX-License-Identifier: Apache-2.0 */
#include "ipc/message.h"

#include <string.h>

#include "ipc/arena.h"

#define RULE(upper, lower, direction, states, fds_min, fds_max)                                    \
	{                                                                                          \
		VSOCKD__ENVELOPE__BODY_##upper, lower, direction, states, fds_min, fds_max, false  \
	}
#define COMMAND(upper, lower, states, fds_min, fds_max)                                            \
	{                                                                                          \
		VSOCKD__ENVELOPE__BODY_##upper, lower, MESSAGE_TO_WORKER, states, fds_min,         \
			fds_max, true                                                              \
	}

#define CONFIGURED (MESSAGE_ASSIGNED | MESSAGE_TAKING)
#define ANSWERING  (MESSAGE_ASSIGNED | MESSAGE_FROZEN | MESSAGE_TAKING)
#define HANDING	   (MESSAGE_FROZEN | MESSAGE_TAKING)

const struct message_rule message_rules[] = {
	RULE(READY, "Ready", MESSAGE_TO_FRONT, MESSAGE_BEFORE_READY, 0, 0),
	RULE(DONE, "Done", MESSAGE_TO_FRONT, ANSWERING, 0, 0),
	RULE(CONNECT, "Connect", MESSAGE_TO_FRONT, MESSAGE_ASSIGNED, 0, 0),
	RULE(CLOSED, "Closed", MESSAGE_TO_FRONT, MESSAGE_ASSIGNED, 0, 0),
	RULE(REPORT, "Report", MESSAGE_TO_FRONT, MESSAGE_ASSIGNED, 0, 0),
	RULE(RESET_SENT, "ResetSent", MESSAGE_TO_FRONT, MESSAGE_ASSIGNED, 0, 0),
	RULE(RESET_HANDLED, "ResetHandled", MESSAGE_TO_FRONT, MESSAGE_ASSIGNED, 0, 0),
	RULE(STATE_CONNECTION, "StateConnection", MESSAGE_TO_FRONT, MESSAGE_ASSIGNED, 0, 0),
	RULE(STATE_INFO, "StateInfo", MESSAGE_TO_FRONT, MESSAGE_ASSIGNED, 0, 0),
	RULE(STATE_DONE, "StateDone", MESSAGE_TO_FRONT, MESSAGE_ASSIGNED, 0, 0),
	RULE(NOTIFY, "Notify", MESSAGE_TO_FRONT, MESSAGE_ASSIGNED | MESSAGE_FROZEN, 0, 0),
	RULE(OPENED, "Opened", MESSAGE_TO_FRONT, MESSAGE_ASSIGNED, 0, 0),
	RULE(CANCEL, "Cancel", MESSAGE_TO_FRONT, MESSAGE_ASSIGNED, 0, 0),
	RULE(ANSWERED, "Answered", MESSAGE_TO_FRONT, MESSAGE_ASSIGNED, 0, 0),
	RULE(COUNTERS, "Counters", MESSAGE_TO_FRONT, MESSAGE_ASSIGNED, 0, 0),
	RULE(CONNECTION_INFO, "ConnectionInfo", MESSAGE_TO_FRONT, MESSAGE_ASSIGNED, 0, 0),
	RULE(CONNECTIONS_END, "ConnectionsEnd", MESSAGE_TO_FRONT, MESSAGE_ASSIGNED, 0, 0),

	COMMAND(ASSIGN, "Assign", MESSAGE_SPARE, 0, 0),
	COMMAND(RING_JOURNAL, "RingJournal", CONFIGURED, 1, 1),
	COMMAND(FEATURES, "Features", CONFIGURED, 0, 0),
	COMMAND(LIMITS, "Limits", CONFIGURED, 0, 0),
	COMMAND(PORT_RANGE, "PortRange", CONFIGURED, 0, 0),
	COMMAND(MEMORY_ADD, "MemoryAdd", CONFIGURED, 1, 1),
	COMMAND(MEMORY_REMOVE, "MemoryRemove", MESSAGE_ASSIGNED, 0, 0),
	COMMAND(MEMORY_COMMIT, "MemoryCommit", CONFIGURED, 0, 0),
	COMMAND(RING_START, "RingStart", CONFIGURED, 0, 1),
	COMMAND(RING_ENABLE, "RingEnable", CONFIGURED, 0, 0),
	COMMAND(RING_STOP, "RingStop", MESSAGE_ASSIGNED, 0, 0),
	COMMAND(SUSPEND, "Suspend", CONFIGURED, 0, 0),
	COMMAND(RING_KICK, "RingKick", MESSAGE_ASSIGNED, 0, 0),
	COMMAND(RING_CALL, "RingCall", CONFIGURED, 0, 1),
	COMMAND(RING_ERROR, "RingError", CONFIGURED, 0, 1),
	COMMAND(RING_LOG, "RingLog", MESSAGE_ASSIGNED, 0, 0),
	COMMAND(LOG_SET, "LogSet", CONFIGURED, 1, 1),
	COMMAND(LOG_FD, "LogFd", CONFIGURED, 0, 1),
	COMMAND(QUARANTINE, "Quarantine", MESSAGE_ASSIGNED, 0, 0),
	COMMAND(STATE_SAVE, "StateSave", MESSAGE_ASSIGNED, 1, 1),
	COMMAND(STATE_LOAD, "StateLoad", MESSAGE_ASSIGNED, 1, 1),
	COMMAND(RESET, "Reset", MESSAGE_ASSIGNED, 0, 0),
	COMMAND(FAIL, "Fail", MESSAGE_ASSIGNED, 0, 0),
	RULE(ACCEPTED, "Accepted", MESSAGE_TO_WORKER, MESSAGE_ASSIGNED, 1, 1),
	RULE(CONNECTED, "Connected", MESSAGE_TO_WORKER, MESSAGE_ASSIGNED, 0, 1),
	RULE(DISCARD, "Discard", MESSAGE_TO_WORKER, MESSAGE_SPARE | ANSWERING, 1, 1),
	RULE(LOST, "Lost", MESSAGE_TO_WORKER, MESSAGE_ASSIGNED, 0, 0),
	RULE(PEER_RESET, "PeerReset", MESSAGE_TO_WORKER, MESSAGE_ASSIGNED, 0, 0),

	RULE(HANDOVER_DEVICE, "HandoverDevice", MESSAGE_RELAYED, HANDING, 0, 0),
	RULE(HANDOVER_RING, "HandoverRing", MESSAGE_RELAYED, HANDING, 0, 0),
	RULE(HANDOVER_CONNECTIONS, "HandoverConnections", MESSAGE_RELAYED, HANDING, 0, 0),
	RULE(HANDOVER_MORE, "HandoverMore", MESSAGE_RELAYED, HANDING, 0, 0),
	RULE(HANDOVER_LIST, "HandoverList", MESSAGE_RELAYED, HANDING, 0, 0),
	RULE(HANDOVER_ORPHAN, "HandoverOrphan", MESSAGE_RELAYED, HANDING, 0, 0),
	RULE(RESET_ANNOUNCED, "ResetAnnounced", MESSAGE_TO_FRONT, MESSAGE_ASSIGNED, 0, 0),
	COMMAND(HANDOVER, "Handover", MESSAGE_ASSIGNED, 0, 0),
	COMMAND(HANDOVER_RESUME, "HandoverResume", MESSAGE_ASSIGNED | MESSAGE_FROZEN, 0, 0),
	COMMAND(HANDOVER_POOL, "HandoverPool", MESSAGE_ASSIGNED, 1, 1),
	COMMAND(HANDOVER_CHECK, "HandoverCheck", MESSAGE_TAKING, 0, 0),
	COMMAND(HANDOVER_COMMIT, "HandoverCommit", MESSAGE_TAKING, 0, 0),
	RULE(COUNTERS_QUERY, "CountersQuery", MESSAGE_TO_WORKER, MESSAGE_ASSIGNED, 0, 0),
	RULE(CONNECTIONS_QUERY, "ConnectionsQuery", MESSAGE_TO_WORKER, MESSAGE_ASSIGNED, 0, 0),
	RULE(ABORT, "Abort", MESSAGE_TO_WORKER, MESSAGE_ASSIGNED, 0, 0),
	COMMAND(CAPTURE, "Capture", CONFIGURED, 0, 1),
	RULE(HANDOVER_SOCKET, "HandoverSocket", MESSAGE_TO_WORKER, MESSAGE_TAKING, 1, 1),
	COMMAND(HANDOVER_SOCKETS, "HandoverSockets", MESSAGE_TAKING, 0, 0),
};
const size_t n_message_rules = sizeof(message_rules) / sizeof(message_rules[0]);

const struct message_rule *message_rule(Vsockd__Envelope__BodyCase type)
{
	for (size_t i = 0; i < n_message_rules; i++)
		if (message_rules[i].type == type)
			return &message_rules[i];
	return NULL;
}

const char *message_name(Vsockd__Envelope__BodyCase type)
{
	const struct message_rule *rule = message_rule(type);

	return rule ? rule->name : "unknown message";
}

void message_wrap(ProtobufCMessage *body, Vsockd__Envelope *ret_envelope)
{
	const ProtobufCMessageDescriptor *envelope = &vsockd__envelope__descriptor;

	vsockd__envelope__init(ret_envelope);
	for (unsigned int i = 0; i < envelope->n_fields; i++)
		if (envelope->fields[i].descriptor == body->descriptor)
			ret_envelope->body_case =
				(Vsockd__Envelope__BodyCase)envelope->fields[i].id;
	/* The oneof's members share one pointer. */
	ret_envelope->ready = (Vsockd__Ready *)(void *)body;
}

/* Every body is a message of its own; the oneof's members share one pointer. */
static bool has_unknown_fields(const Vsockd__Envelope *envelope)
{
	const ProtobufCMessage *body = (const ProtobufCMessage *)(const void *)envelope->ready;

	return !body || arena_has_unknown_fields(&envelope->base, body);
}

static bool leads_to(const struct message_rule *rule, enum message_direction direction)
{
	return rule->direction == direction || rule->direction == MESSAGE_RELAYED;
}

/* The bits of a relayed message's two ways; any other message has one way. */
static uint32_t states_of(const struct message_rule *rule, enum message_direction direction)
{
	if (rule->direction != MESSAGE_RELAYED)
		return rule->states;
	return direction == MESSAGE_TO_FRONT ? MESSAGE_FROZEN : MESSAGE_TAKING;
}

const Vsockd__Envelope *message_decode(const struct channel_packet *packet,
				       enum message_direction direction, enum message_state state,
				       const char **ret_reason)
{
	const struct message_rule *rule;
	const Vsockd__Envelope *envelope;
	uint8_t n_fds = packet->fd >= 0;

	arena_reset();
	envelope = vsockd__envelope__unpack(&arena_allocator, packet->len, packet->bytes);
	if (!envelope) {
		*ret_reason = "not a message of this protocol";
		return NULL;
	}
	rule = message_rule(envelope->body_case);
	if (!rule || has_unknown_fields(envelope)) {
		*ret_reason = "unknown message or field";
		return NULL;
	}
	if (!leads_to(rule, direction)) {
		*ret_reason = "message of the other direction";
		return NULL;
	}
	if (envelope->sequence != 0 && !rule->is_command) {
		*ret_reason = "a sequence of no command";
		return NULL;
	}
	if (!(states_of(rule, direction) & (uint32_t)state)) {
		*ret_reason = "message not permitted in this state";
		return NULL;
	}
	if (n_fds < rule->fds_min || n_fds > (direction == MESSAGE_TO_FRONT ? 0 : rule->fds_max)) {
		*ret_reason = "wrong number of fds";
		return NULL;
	}
	return envelope;
}

void message_encode(const Vsockd__Envelope *envelope, int fd, struct channel_packet *ret_packet)
{
	/* Fixed-width fields: no message can outgrow the buffer (test_message checks each). */
	ret_packet->len = vsockd__envelope__pack(envelope, ret_packet->bytes);
	ret_packet->fd = fd;
}

/* Above the index, of which a table has no more than this leaves. */
#define CLAIM_HAS_ENDPOINT  (UINT32_C(1) << 31)
#define CLAIM_HAS_SOCKET    (UINT32_C(1) << 30)
#define CLAIM_AWAITS_ANSWER (UINT32_C(1) << 29)
#define CLAIM_INDEX	    (CLAIM_AWAITS_ANSWER - 1)

#define CLAIM_OFFSET(at) (offsetof(Vsockd__HandoverConnections, item_0) + (at) * sizeof(uint64_t))
_Static_assert(CLAIM_OFFSET(HANDOVER_CLAIMS_MAX) ==
		       offsetof(Vsockd__HandoverConnections, item_23) + sizeof(uint64_t),
	       "items lie beside each other");

void message_put_claim(Vsockd__HandoverConnections *told, uint32_t at,
		       const struct handover_claim *claim)
{
	uint32_t index = claim->index | (claim->has_endpoint ? CLAIM_HAS_ENDPOINT : 0) |
			 (claim->has_socket ? CLAIM_HAS_SOCKET : 0) |
			 (claim->awaits_answer ? CLAIM_AWAITS_ANSWER : 0);
	uint64_t item = (uint64_t)claim->endpoint << 32 | index;

	memcpy((uint8_t *)told + CLAIM_OFFSET(at), &item, sizeof(item));
}

struct handover_claim message_claim(const Vsockd__HandoverConnections *told, uint32_t at)
{
	uint64_t item;

	memcpy(&item, (const uint8_t *)told + CLAIM_OFFSET(at), sizeof(item));
	return (struct handover_claim){
		.index = (uint32_t)item & CLAIM_INDEX,
		.endpoint = (uint32_t)(item >> 32),
		.has_endpoint = (uint32_t)item & CLAIM_HAS_ENDPOINT,
		.has_socket = (uint32_t)item & CLAIM_HAS_SOCKET,
		.awaits_answer = (uint32_t)item & CLAIM_AWAITS_ANSWER,
	};
}

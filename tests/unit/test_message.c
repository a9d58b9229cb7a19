/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "ipc/message.h"

#define FRONT	   MESSAGE_TO_FRONT
#define WORKER	   MESSAGE_TO_WORKER
#define RELAYED	   MESSAGE_RELAYED
#define ASSIGNED   MESSAGE_ASSIGNED
#define FROZEN	   MESSAGE_FROZEN
#define TAKING	   MESSAGE_TAKING
#define CONFIGURED (ASSIGNED | TAKING)

/* Written down a second time, from the comments of vsockd.proto. */
static const struct expected {
	uint32_t type;
	const char *name;
	enum message_direction direction;
	uint32_t states;
	uint8_t fds_min, fds_max;
} table[] = {
	{1, "Ready", FRONT, MESSAGE_BEFORE_READY, 0, 0},
	{2, "Done", FRONT, ASSIGNED | FROZEN | TAKING, 0, 0},
	{3, "Connect", FRONT, ASSIGNED, 0, 0},
	{4, "Closed", FRONT, ASSIGNED, 0, 0},
	{5, "Report", FRONT, ASSIGNED, 0, 0},
	{6, "Opened", FRONT, ASSIGNED, 0, 0},
	{7, "ResetSent", FRONT, ASSIGNED, 0, 0},
	{8, "ResetHandled", FRONT, ASSIGNED, 0, 0},
	{9, "StateConnection", FRONT, ASSIGNED, 0, 0},
	{10, "StateInfo", FRONT, ASSIGNED, 0, 0},
	{11, "StateDone", FRONT, ASSIGNED, 0, 0},
	{95, "Cancel", FRONT, ASSIGNED, 0, 0},
	{96, "Answered", FRONT, ASSIGNED, 0, 0},
	{16, "Assign", WORKER, MESSAGE_SPARE, 0, 0},
	{17, "Features", WORKER, CONFIGURED, 0, 0},
	{18, "MemoryAdd", WORKER, CONFIGURED, 1, 1},
	{19, "MemoryRemove", WORKER, ASSIGNED, 0, 0},
	{20, "MemoryCommit", WORKER, CONFIGURED, 0, 0},
	{21, "RingStart", WORKER, CONFIGURED, 0, 1},
	{22, "RingEnable", WORKER, CONFIGURED, 0, 0},
	{23, "RingStop", WORKER, ASSIGNED, 0, 0},
	{24, "RingCall", WORKER, CONFIGURED, 0, 1},
	{25, "RingError", WORKER, CONFIGURED, 0, 1},
	{26, "Reset", WORKER, ASSIGNED, 0, 0},
	{27, "Fail", WORKER, ASSIGNED, 0, 0},
	{28, "RingLog", WORKER, ASSIGNED, 0, 0},
	{29, "LogSet", WORKER, CONFIGURED, 1, 1},
	{30, "LogFd", WORKER, CONFIGURED, 0, 1},
	{31, "Quarantine", WORKER, ASSIGNED, 0, 0},
	{32, "StateSave", WORKER, ASSIGNED, 1, 1},
	{33, "StateLoad", WORKER, ASSIGNED, 1, 1},
	{47, "RingJournal", WORKER, CONFIGURED, 1, 1},
	{48, "Accepted", WORKER, ASSIGNED, 1, 1},
	{49, "Connected", WORKER, ASSIGNED, 0, 1},
	{50, "Lost", WORKER, ASSIGNED, 0, 0},
	{80, "RingKick", WORKER, ASSIGNED, 0, 0},
	{81, "Discard", WORKER, MESSAGE_SPARE | ASSIGNED | FROZEN | TAKING, 1, 1},
	{83, "Suspend", WORKER, ASSIGNED | TAKING, 0, 0},
	{82, "Notify", FRONT, ASSIGNED | FROZEN, 0, 0},
	{97, "PeerReset", WORKER, ASSIGNED, 0, 0},
	{98, "PortRange", WORKER, CONFIGURED, 0, 0},
	{99, "Limits", WORKER, CONFIGURED, 0, 0},
	{64, "HandoverDevice", RELAYED, FROZEN | TAKING, 0, 0},
	{65, "HandoverRing", RELAYED, FROZEN | TAKING, 0, 0},
	{66, "HandoverConnections", RELAYED, FROZEN | TAKING, 0, 0},
	{67, "HandoverMore", RELAYED, FROZEN | TAKING, 0, 0},
	{68, "HandoverList", RELAYED, FROZEN | TAKING, 0, 0},
	{69, "HandoverOrphan", RELAYED, FROZEN | TAKING, 0, 0},
	{70, "ResetAnnounced", FRONT, ASSIGNED, 0, 0},
	{72, "Handover", WORKER, ASSIGNED, 0, 0},
	{73, "HandoverResume", WORKER, ASSIGNED | FROZEN, 0, 0},
	{74, "HandoverPool", WORKER, ASSIGNED, 1, 1},
	{75, "HandoverCheck", WORKER, TAKING, 0, 0},
	{76, "HandoverCommit", WORKER, TAKING, 0, 0},
	{77, "HandoverSocket", WORKER, TAKING, 1, 1},
	{78, "HandoverSockets", WORKER, TAKING, 0, 0},
	{110, "CountersQuery", WORKER, ASSIGNED, 0, 0},
	{111, "ConnectionsQuery", WORKER, ASSIGNED, 0, 0},
	{112, "Abort", WORKER, ASSIGNED, 0, 0},
	{113, "Capture", WORKER, CONFIGURED, 0, 1},
	{116, "Counters", FRONT, ASSIGNED, 0, 0},
	{117, "ConnectionInfo", FRONT, ASSIGNED, 0, 0},
	{118, "ConnectionsEnd", FRONT, ASSIGNED, 0, 0},
};
#define N_TABLE (sizeof(table) / sizeof(table[0]))

static const enum message_state states[] = {MESSAGE_BEFORE_READY, MESSAGE_SPARE, MESSAGE_ASSIGNED,
					    MESSAGE_FROZEN, MESSAGE_TAKING};
#define N_STATES (sizeof(states) / sizeof(states[0]))
static const char *reason;
static uint64_t seed = 1;

static uint32_t draw(uint32_t below)
{
	seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(seed >> 33) % below;
}

/* ---- bodies of any type, by protobuf-c's own description of them ---- */

union body {
	ProtobufCMessage base;
	uint8_t bytes[256];
};

static const ProtobufCMessageDescriptor *descriptor_of(uint32_t type)
{
	const ProtobufCFieldDescriptor *field =
		protobuf_c_message_descriptor_get_field(&vsockd__envelope__descriptor, type);

	assert_non_null(field);
	return field->descriptor;
}

static void store(union body *body, const ProtobufCFieldDescriptor *field, uint64_t value)
{
	uint8_t *place = body->bytes + field->offset;
	uint32_t small = (uint32_t)value;
	protobuf_c_boolean flag = value & 1;

	switch (field->type) {
	case PROTOBUF_C_TYPE_FIXED64:
		memcpy(place, &value, sizeof(value));
		return;
	case PROTOBUF_C_TYPE_FIXED32:
	case PROTOBUF_C_TYPE_SFIXED32:
		memcpy(place, &small, sizeof(small));
		return;
	case PROTOBUF_C_TYPE_BOOL:
		memcpy(place, &flag, sizeof(flag));
		return;
	default:
		fail_msg("%s is no flat scalar of fixed width", field->name);
	}
}

static void check(const ProtobufCMessage *message, const ProtobufCFieldDescriptor *field,
		  uint64_t value)
{
	const uint8_t *place = (const uint8_t *)message + field->offset;
	uint64_t found = 0;

	if (field->type == PROTOBUF_C_TYPE_BOOL) {
		assert_int_equal(*(const protobuf_c_boolean *)(const void *)place, value & 1);
		return;
	}
	if (field->type != PROTOBUF_C_TYPE_FIXED64)
		value = (uint32_t)value;
	memcpy(&found, place, field->type == PROTOBUF_C_TYPE_FIXED64 ? 8 : 4);
	assert_int_equal(found, value);
}

/* Field number i gets value + i, so none can be taken for another; n_max of them. */
static void encode_some(uint32_t type, uint64_t value, uint32_t n_max,
			struct channel_packet *ret_packet)
{
	const ProtobufCMessageDescriptor *descriptor = descriptor_of(type);
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;
	union body body;

	assert_true(descriptor->sizeof_message <= sizeof(body));
	protobuf_c_message_init(descriptor, &body);
	for (uint32_t i = 0; i < descriptor->n_fields && i < n_max; i++)
		store(&body, &descriptor->fields[i], value + i);
	envelope.body_case = (Vsockd__Envelope__BodyCase)type;
	envelope.ready = (Vsockd__Ready *)(void *)&body;
	message_encode(&envelope, -1, ret_packet);
}

static void encode(uint32_t type, uint64_t value, struct channel_packet *ret_packet)
{
	encode_some(type, value, UINT32_MAX, ret_packet);
}

/* Short enough that another one fits behind it, and that one byte tells its length. */
static void encode_short(uint32_t type, uint64_t value, struct channel_packet *ret_packet)
{
	encode_some(type, value, 11, ret_packet);
	assert_in_range(ret_packet->len, 2, CHANNEL_MESSAGE_MAX / 2 - 10);
}

static const Vsockd__Envelope *decode(const struct channel_packet *packet,
				      enum message_direction direction, enum message_state state)
{
	const Vsockd__Envelope *envelope;

	reason = NULL;
	envelope = message_decode(packet, direction, state, &reason);
	if (!envelope)
		assert_non_null(reason);
	return envelope;
}

/* In the direction and a state in which it is permitted, with as many fds as it needs. */
static const Vsockd__Envelope *decode_as_permitted(const struct expected *row,
						   struct channel_packet *packet)
{
	packet->fd = row->fds_min ? 0 : -1;
	return decode(packet, row->direction == RELAYED ? WORKER : row->direction,
		      (enum message_state)row->states);
}

/* One with an fd is on its way to a worker; what is relayed comes from one that is frozen. */
static bool is_permitted(const struct expected *row, enum message_direction direction,
			 enum message_state state, uint8_t n_fds)
{
	if (row->direction == RELAYED)
		return (direction == FRONT && state == FROZEN && n_fds == 0) ||
		       (direction == WORKER && state == TAKING && n_fds <= row->fds_max);
	return direction == row->direction && (state & row->states) && n_fds >= row->fds_min &&
	       n_fds <= row->fds_max;
}

/* ---- the table ---- */

static void test_the_table_is_what_the_protocol_says(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_TABLE; i++) {
		const struct message_rule *rule =
			message_rule((Vsockd__Envelope__BodyCase)table[i].type);

		assert_non_null(rule);
		assert_string_equal(rule->name, table[i].name);
		assert_int_equal(rule->direction, table[i].direction);
		assert_int_equal(rule->states, table[i].states);
		assert_int_equal(rule->fds_min, table[i].fds_min);
		assert_int_equal(rule->fds_max, table[i].fds_max);
		assert_string_equal(message_name(rule->type), table[i].name);
	}
	assert_int_equal(n_message_rules, N_TABLE);
}

static void test_every_message_of_the_protocol_has_one_rule(void **state)
{
	(void)state;
	/* The other field is the sequence. */
	assert_int_equal(vsockd__envelope__descriptor.n_fields, n_message_rules + 1);
	for (size_t i = 0; i < n_message_rules; i++) {
		const char *name = descriptor_of(message_rules[i].type)->short_name;

		assert_string_equal(message_rules[i].name, name);
		for (size_t k = 0; k < i; k++)
			assert_int_not_equal(message_rules[k].type, message_rules[i].type);
	}
	assert_null(message_rule(VSOCKD__ENVELOPE__BODY__NOT_SET));
	assert_null(message_rule((Vsockd__Envelope__BodyCase)1000));
	assert_non_null(message_name((Vsockd__Envelope__BodyCase)1000));
}

static void test_every_body_is_flat(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_TABLE; i++) {
		const ProtobufCMessageDescriptor *body = descriptor_of(table[i].type);

		for (uint32_t k = 0; k < body->n_fields; k++) {
			const ProtobufCFieldDescriptor *field = &body->fields[k];

			assert_int_not_equal(field->label, PROTOBUF_C_LABEL_REPEATED);
			assert_true(field->type == PROTOBUF_C_TYPE_FIXED32 ||
				    field->type == PROTOBUF_C_TYPE_SFIXED32 ||
				    field->type == PROTOBUF_C_TYPE_FIXED64 ||
				    field->type == PROTOBUF_C_TYPE_BOOL);
		}
	}
}

static void test_a_message_is_taken_only_as_the_table_permits(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_TABLE; i++)
		for (uint32_t direction = 0; direction < 2; direction++)
			for (uint32_t s = 0; s < N_STATES; s++)
				for (uint8_t n_fds = 0; n_fds < 2; n_fds++) {
					enum message_direction to =
						(enum message_direction)direction;
					struct channel_packet packet;

					encode(table[i].type, 1, &packet);
					packet.fd = n_fds ? 0 : -1;
					assert_int_equal(
						decode(&packet, to, states[s]) != NULL,
						is_permitted(&table[i], to, states[s], n_fds));
					/* It is the caller's to close, refused or not. */
					assert_int_equal(packet.fd, n_fds ? 0 : -1);
				}
}

/* ---- encoding ---- */

static void test_a_message_says_at_the_other_end_what_it_said_at_this(void **state)
{
	static const uint64_t values[] = {
		0,	    1,	       77,	   INT32_MAX,
		UINT32_MAX, INT64_MAX, UINT64_MAX, UINT64_C(0x0102030405060708)};

	(void)state;
	for (size_t i = 0; i < N_TABLE; i++)
		for (size_t k = 0; k < sizeof(values) / sizeof(values[0]); k++) {
			const ProtobufCMessageDescriptor *body = descriptor_of(table[i].type);
			const Vsockd__Envelope *envelope;
			struct channel_packet packet;

			encode(table[i].type, values[k], &packet);
			envelope = decode_as_permitted(&table[i], &packet);
			assert_non_null(envelope);
			assert_int_equal(envelope->body_case, table[i].type);
			for (uint32_t field = 0; field < body->n_fields; field++)
				check(&envelope->ready->base, &body->fields[field],
				      values[k] + field);
		}
}

static void test_no_message_outgrows_a_packet_whatever_it_says(void **state)
{
	static const uint64_t values[] = {0, UINT64_MAX - 20, UINT64_C(0x8080808080808081)};

	(void)state;
	for (size_t i = 0; i < N_TABLE; i++)
		for (size_t k = 0; k < 3; k++) {
			static const uint8_t guard[16] = {1, 2, 3, 4, 5, 6, 7, 8};
			struct {
				struct channel_packet packet;
				uint8_t behind[16];
			} place;

			memcpy(place.behind, guard, sizeof(guard));
			encode(table[i].type, values[k], &place.packet);
			assert_in_range(place.packet.len, 2, CHANNEL_MESSAGE_MAX);
			/* All but those that move many bytes are short. */
			if (table[i].direction != RELAYED)
				assert_in_range(place.packet.len, 2, 79);
			assert_memory_equal(place.behind, guard, sizeof(guard));
		}
}

/* ---- decoding what nobody should send ---- */

static void test_a_message_cut_anywhere_is_refused(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_TABLE; i++) {
		struct channel_packet packet;
		size_t len;

		encode(table[i].type, UINT64_MAX - 20, &packet);
		len = packet.len;
		for (packet.len = 0; packet.len < len; packet.len++)
			assert_null(decode_as_permitted(&table[i], &packet));
		assert_non_null(decode_as_permitted(&table[i], &packet));
	}
}

static void test_a_byte_more_is_refused(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_TABLE; i++)
		for (uint32_t byte = 0; byte < 256; byte++) {
			struct channel_packet packet;

			encode(table[i].type, 5, &packet);
			packet.bytes[packet.len++] = (uint8_t)byte;
			assert_null(decode_as_permitted(&table[i], &packet));
		}
}

/* A field of number 60 or 200 that nobody knows, in each of protobuf's shapes. */
static const struct {
	uint8_t bytes[9];
	size_t len;
} strangers[] = {
	{{0xe0 | 0, 3, 1}, 3},			 /* varint */
	{{0xe0 | 1, 3, 1, 2, 3, 4, 5, 6, 7}, 9}, /* 64 bits, one is missing */
	{{0xe0 | 2, 3, 0}, 3},			 /* bytes, none */
	{{0xe0 | 2, 3, 2, 'a', 'b'}, 5},	 /* bytes */
	{{0xe0 | 5, 3, 1, 2, 3, 4}, 6},		 /* 32 bits */
	{{0xc0, 0x0c, 1}, 3},			 /* number 200 */
	{{0xe0 | 3, 3}, 2},			 /* a group, of old */
	{{0xf8, 0xff, 0xff, 0xff, 0x0f, 1}, 6},	 /* the highest number */
};

static void test_an_unknown_field_beside_the_body_is_refused(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_TABLE; i++)
		for (size_t k = 0; k < sizeof(strangers) / sizeof(strangers[0]); k++) {
			struct channel_packet packet;

			encode_short(table[i].type, 5, &packet);
			memcpy(packet.bytes + packet.len, strangers[k].bytes, strangers[k].len);
			packet.len += strangers[k].len;
			assert_null(decode_as_permitted(&table[i], &packet));
			/* Alone it is no message either. */
			memcpy(packet.bytes, strangers[k].bytes, strangers[k].len);
			packet.len = strangers[k].len;
			assert_null(decode_as_permitted(&table[i], &packet));
		}
}

static void test_an_unknown_field_in_the_body_is_refused(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_TABLE; i++)
		for (size_t k = 0; k < sizeof(strangers) / sizeof(strangers[0]); k++) {
			struct channel_packet packet;
			/* Tag of one byte or two, then the length in one. */
			size_t at = table[i].type < 16 ? 1 : 2;

			encode_short(table[i].type, 5, &packet);
			memcpy(packet.bytes + packet.len, strangers[k].bytes, strangers[k].len);
			packet.len += strangers[k].len;
			packet.bytes[at] = (uint8_t)(packet.bytes[at] + strangers[k].len);
			assert_null(decode_as_permitted(&table[i], &packet));
		}
}

static void test_a_field_of_another_shape_is_refused(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_TABLE; i++) {
		size_t at = table[i].type < 16 ? 1 : 2;
		struct channel_packet packet;

		encode(table[i].type, UINT64_MAX - 20, &packet);
		if (packet.bytes[at] == 0)
			continue; /* a body without fields */
		packet.bytes[at + 1] = (uint8_t)((packet.bytes[at + 1] & ~7) | 2);
		assert_null(decode_as_permitted(&table[i], &packet));
	}
}

static void test_an_empty_packet_is_no_message(void **state)
{
	struct channel_packet packet = {.len = 0, .fd = -1};

	(void)state;
	for (uint32_t s = 0; s < N_STATES; s++) {
		assert_null(decode(&packet, MESSAGE_TO_FRONT, states[s]));
		assert_null(decode(&packet, MESSAGE_TO_WORKER, states[s]));
	}
}

static void test_repeated_bodies_exhaust_the_arena_and_no_more(void **state)
{
	struct channel_packet packet = {.fd = 0};
	static const struct expected row_of_memory_add = {18, "MemoryAdd", WORKER, ASSIGNED, 1, 1};
	const struct expected *row = &row_of_memory_add;

	(void)state;
	/* An empty body takes 3 bytes here and some 80 there. */
	while (packet.len + 3 <= sizeof(packet.bytes)) {
		packet.bytes[packet.len++] = 0x92;
		packet.bytes[packet.len++] = 0x01;
		packet.bytes[packet.len++] = 0;
	}
	assert_null(decode_as_permitted(row, &packet));
	/* The next message finds all of it free again. */
	encode(row->type, 5, &packet);
	assert_non_null(decode_as_permitted(row, &packet));
}

static void test_of_two_bodies_none_or_the_last_counts(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_TABLE; i++)
		for (size_t k = 0; k < N_TABLE; k++) {
			struct channel_packet packet, second;
			const Vsockd__Envelope *envelope;

			encode_short(table[i].type, 5, &packet);
			encode_short(table[k].type, 6, &second);
			memcpy(packet.bytes + packet.len, second.bytes, second.len);
			packet.len += second.len;
			envelope = decode_as_permitted(&table[k], &packet);
			if (envelope)
				assert_int_equal(envelope->body_case, table[k].type);
			/* The first one's permission is not the second's. */
			envelope = decode_as_permitted(&table[i], &packet);
			if (envelope)
				assert_int_equal(envelope->body_case, table[k].type);
			if (envelope && i != k)
				assert_true((table[k].direction == table[i].direction ||
					     table[i].direction == RELAYED ||
					     table[k].direction == RELAYED) &&
					    table[k].states & table[i].states);
		}
}

static void check_permitted(const Vsockd__Envelope *envelope, const struct channel_packet *packet,
			    enum message_direction direction, enum message_state state)
{
	const struct message_rule *rule = message_rule(envelope->body_case);

	assert_non_null(rule);
	assert_true(rule->direction == direction || rule->direction == RELAYED);
	assert_true(rule->states & state);
	assert_in_range(packet->fd >= 0, rule->fds_min, direction == FRONT ? 0 : rule->fds_max);
	assert_non_null(envelope->ready);
	assert_true(protobuf_c_message_check(&envelope->base));
}

static void test_no_bytes_whatever_do_harm(void **state)
{
	uint32_t n_taken = 0;

	(void)state;
	for (uint32_t i = 0; i < 100000; i++) {
		enum message_direction direction = (enum message_direction)draw(2);
		enum message_state in = states[draw(N_STATES)];
		const Vsockd__Envelope *envelope;
		struct channel_packet packet;

		if (i % 4 == 0) {
			packet.len = draw(CHANNEL_MESSAGE_MAX + 1);
			for (size_t k = 0; k < packet.len; k++)
				packet.bytes[k] = (uint8_t)draw(256);
		} else {
			/* A true message, with some bytes changed, cut or added. */
			encode(table[draw(N_TABLE)].type, draw(UINT32_MAX), &packet);
			for (uint32_t n = draw(4); n > 0; n--)
				packet.bytes[draw((uint32_t)packet.len)] = (uint8_t)draw(256);
			if (draw(4) == 0)
				packet.len = draw((uint32_t)packet.len + 6);
		}
		packet.fd = (int)draw(2) - 1;
		envelope = decode(&packet, direction, in);
		if (envelope)
			check_permitted(envelope, &packet, direction, in);
		n_taken += envelope != NULL;
	}
	/* Both happened, so both were tried. */
	assert_in_range(n_taken, 100, 50000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_table_is_what_the_protocol_says),
		cmocka_unit_test(test_every_message_of_the_protocol_has_one_rule),
		cmocka_unit_test(test_every_body_is_flat),
		cmocka_unit_test(test_a_message_is_taken_only_as_the_table_permits),
		cmocka_unit_test(test_a_message_says_at_the_other_end_what_it_said_at_this),
		cmocka_unit_test(test_no_message_outgrows_a_packet_whatever_it_says),
		cmocka_unit_test(test_a_message_cut_anywhere_is_refused),
		cmocka_unit_test(test_a_byte_more_is_refused),
		cmocka_unit_test(test_an_unknown_field_beside_the_body_is_refused),
		cmocka_unit_test(test_an_unknown_field_in_the_body_is_refused),
		cmocka_unit_test(test_a_field_of_another_shape_is_refused),
		cmocka_unit_test(test_an_empty_packet_is_no_message),
		cmocka_unit_test(test_repeated_bodies_exhaust_the_arena_and_no_more),
		cmocka_unit_test(test_of_two_bodies_none_or_the_last_counts),
		cmocka_unit_test(test_no_bytes_whatever_do_harm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

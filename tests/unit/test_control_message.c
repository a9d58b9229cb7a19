/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "ipc/control_message.h"

static uint64_t seed = 1;

static uint8_t draw(void)
{
	seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint8_t)(seed >> 40);
}

/* ---- messages of any type, by protobuf-c's own description of them ---- */

union message {
	ProtobufCMessage base;
	uint8_t bytes[512];
};

static char longest_text[CONTROL_TEXT_MAX + 1];

/* Every field as long as it can be. */
static void fill(union message *message, const ProtobufCMessageDescriptor *descriptor)
{
	char *text = longest_text;

	memset(longest_text, 'x', CONTROL_TEXT_MAX);
	assert_true(descriptor->sizeof_message <= sizeof(*message));
	descriptor->message_init(&message->base);
	for (unsigned int i = 0; i < descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *field = &descriptor->fields[i];
		uint8_t *place = message->bytes + field->offset;

		switch (field->type) {
		case PROTOBUF_C_TYPE_FIXED64:
			memset(place, 0xa5, 8);
			break;
		case PROTOBUF_C_TYPE_FIXED32:
		case PROTOBUF_C_TYPE_SFIXED32:
			memset(place, 0xa5, 4);
			break;
		case PROTOBUF_C_TYPE_BOOL:
			memset(place, 1, sizeof(protobuf_c_boolean));
			break;
		case PROTOBUF_C_TYPE_STRING:
			memcpy(place, &text, sizeof(text));
			break;
		default:
			fail_msg("%s has no bound", field->name);
		}
	}
}

static void fill_reply(Control__Reply *reply, union message *body, unsigned int index)
{
	const ProtobufCFieldDescriptor *field = &control__reply__descriptor.fields[index];

	fill(body, field->descriptor);
	control__reply__init(reply);
	reply->body_case = (Control__Reply__BodyCase)field->id;
	reply->end = (Control__End *)(void *)body;
}

static void test_every_reply_fits_into_a_packet_whatever_it_says(void **state)
{
	(void)state;
	for (unsigned int i = 0; i < control__reply__descriptor.n_fields; i++) {
		struct channel_packet packet;
		const Control__Reply *decoded;
		Control__Reply reply;
		union message body;

		fill_reply(&reply, &body, i);
		assert_in_range(control__reply__get_packed_size(&reply), 1, CHANNEL_MESSAGE_MAX);
		control_encode_reply(&reply, -1, &packet);
		decoded = control_decode_reply(&packet);
		assert_non_null(decoded);
		assert_int_equal(decoded->body_case, reply.body_case);
	}
}

static void test_the_request_fits_into_a_packet_and_arrives(void **state)
{
	struct channel_packet packet;
	const Control__Request *decoded;
	union message message;

	(void)state;
	fill(&message, &control__request__descriptor);
	control_encode_request((const Control__Request *)(const void *)&message, 5, &packet);
	assert_in_range(packet.len, 1, CHANNEL_MESSAGE_MAX);
	assert_int_equal(packet.fd, 5);
	decoded = control_decode_request(&packet);
	assert_non_null(decoded);
	assert_int_equal(decoded->version, 0xa5a5a5a5);
	assert_int_equal(decoded->cid, UINT64_C(0xa5a5a5a5a5a5a5a5));
}

static void test_what_is_cut_off_or_has_more_fields_is_refused(void **state)
{
	static const uint8_t unknown[] = {0xf8, 0x7f, 1}; /* field 2047, varint */
	struct channel_packet packet;
	union message body;
	Control__Reply reply;
	Control__Request request = CONTROL__REQUEST__INIT;

	(void)state;
	request.version = CONTROL_VERSION;
	request.command = CONTROL_STATUS;
	control_encode_request(&request, -1, &packet);
	memcpy(packet.bytes + packet.len, unknown, sizeof(unknown));
	packet.len += sizeof(unknown);
	assert_null(control_decode_request(&packet));
	packet.len -= sizeof(unknown) + 1;
	assert_null(control_decode_request(&packet));

	fill_reply(&reply, &body, 0);
	control_encode_reply(&reply, -1, &packet);
	memcpy(packet.bytes + packet.len, unknown, sizeof(unknown));
	packet.len += sizeof(unknown);
	assert_null(control_decode_reply(&packet));
	packet.len = 0;
	assert_null(control_decode_reply(&packet));
}

/* Decoding has an arena of one size: no packet makes it take more, or fall over. */
static void test_no_packet_does_harm(void **state)
{
	(void)state;
	for (int round = 0; round < 20000; round++) {
		struct channel_packet packet = {.len = 1 + draw() % CHANNEL_MESSAGE_MAX, .fd = -1};
		union message body;
		Control__Reply reply;

		if (round % 2) {
			fill_reply(&reply, &body, draw() % control__reply__descriptor.n_fields);
			control_encode_reply(&reply, -1, &packet);
			packet.bytes[draw() % packet.len] = draw();
		} else {
			for (size_t i = 0; i < packet.len; i++)
				packet.bytes[i] = draw();
		}
		(void)control_decode_reply(&packet);
		(void)control_decode_request(&packet);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_reply_fits_into_a_packet_whatever_it_says),
		cmocka_unit_test(test_the_request_fits_into_a_packet_and_arrives),
		cmocka_unit_test(test_what_is_cut_off_or_has_more_fields_is_refused),
		cmocka_unit_test(test_no_packet_does_harm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

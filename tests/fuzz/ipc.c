/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/ipc.h"

#include <stdlib.h>
#include <string.h>

#define BODY_SIZE 1024

static const ProtobufCFieldDescriptor *body_field(uint32_t type)
{
	return protobuf_c_message_descriptor_get_field(&vsockd__envelope__descriptor, type);
}

static uint64_t choose_value(struct input *input)
{
	uint8_t choice = input_u8(input);

	if (choice < 0xc0)
		return choice;
	if (choice < 0xf0)
		return input_u32(input);
	return choice < 0xf8 ? input_u64(input) : UINT64_MAX - (choice & 7);
}

static void set_field(uint8_t *body, const ProtobufCFieldDescriptor *field, uint64_t value)
{
	protobuf_c_boolean boolean = value & 1;
	uint32_t small = (uint32_t)value;

	switch (field->type) {
	case PROTOBUF_C_TYPE_FIXED64:
		memcpy(body + field->offset, &value, sizeof(value));
		return;
	case PROTOBUF_C_TYPE_FIXED32:
	case PROTOBUF_C_TYPE_SFIXED32:
		memcpy(body + field->offset, &small, sizeof(small));
		return;
	case PROTOBUF_C_TYPE_BOOL:
		memcpy(body + field->offset, &boolean, sizeof(boolean));
		return;
	default:
		abort(); /* flat, fixed-width scalars only */
	}
}

static uint64_t get_field(const uint8_t *body, const ProtobufCFieldDescriptor *field)
{
	uint64_t value = 0;
	uint32_t small;

	if (field->type == PROTOBUF_C_TYPE_FIXED64) {
		memcpy(&value, body + field->offset, sizeof(value));
		return value;
	}
	memcpy(&small, body + field->offset, sizeof(small));
	return small;
}

bool ipc_get(const Vsockd__Envelope *envelope, const char *name, uint64_t *ret)
{
	const ProtobufCFieldDescriptor *field = body_field((uint32_t)envelope->body_case);
	const ProtobufCMessageDescriptor *of_body = field->descriptor;

	field = protobuf_c_message_descriptor_get_field_by_name(of_body, name);
	if (!field)
		return false;
	/* The oneof's members share one pointer. */
	*ret = get_field((const uint8_t *)envelope->ready, field);
	return true;
}

static const struct message_rule *choose_rule(struct input *input, enum message_direction direction)
{
	size_t at = input_below(input, (uint32_t)n_message_rules);

	while (message_rules[at].direction != direction &&
	       message_rules[at].direction != MESSAGE_RELAYED)
		at = (at + 1) % n_message_rules;
	return &message_rules[at];
}

const Vsockd__Envelope *ipc_make(struct input *input, enum message_direction direction,
				 const struct ipc_hints *hints)
{
	static _Alignas(16) uint8_t body[BODY_SIZE];
	static Vsockd__Envelope envelope;
	const struct message_rule *rule = choose_rule(input, direction);
	const ProtobufCMessageDescriptor *of_body = body_field((uint32_t)rule->type)->descriptor;

	if (of_body->sizeof_message > sizeof(body))
		abort();
	of_body->message_init((ProtobufCMessage *)(void *)body);
	for (unsigned int i = 0; i < of_body->n_fields; i++) {
		const ProtobufCFieldDescriptor *field = &of_body->fields[i];
		uint64_t value = choose_value(input);

		if (strcmp(field->name, "sequence") == 0 && value != 0)
			value = hints->sequence;
		if (hints->name && strcmp(field->name, hints->name) == 0 && value % 8)
			value = hints->value;
		set_field(body, field, value);
	}
	message_wrap((ProtobufCMessage *)(void *)body, &envelope);
	if (rule->is_command)
		envelope.sequence = hints->sequence;
	return &envelope;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "ipc/control_message.h"

#include "ipc/arena.h"

const Control__Request *control_decode_request(const struct channel_packet *packet)
{
	const Control__Request *request;

	arena_reset();
	request = control__request__unpack(&arena_allocator, packet->len, packet->bytes);
	if (!request || arena_has_unknown_fields(&request->base, NULL))
		return NULL;
	return request;
}

const Control__Reply *control_decode_reply(const struct channel_packet *packet)
{
	const Control__Reply *reply;
	const ProtobufCMessage *body;

	arena_reset();
	reply = control__reply__unpack(&arena_allocator, packet->len, packet->bytes);
	if (!reply || reply->body_case == CONTROL__REPLY__BODY__NOT_SET)
		return NULL;
	/* Every body is a message of its own; the oneof's members share one pointer. */
	body = (const ProtobufCMessage *)(const void *)reply->end;
	if (!body || arena_has_unknown_fields(&reply->base, body))
		return NULL;
	return reply;
}

void control_encode_request(const Control__Request *request, int fd,
			    struct channel_packet *ret_packet)
{
	/* Fixed-width fields: it cannot outgrow the buffer (test_control_message). */
	ret_packet->len = control__request__pack(request, ret_packet->bytes);
	ret_packet->fd = fd;
}

void control_encode_reply(const Control__Reply *reply, int fd, struct channel_packet *ret_packet)
{
	ret_packet->len = control__reply__pack(reply, ret_packet->bytes);
	ret_packet->fd = fd;
}

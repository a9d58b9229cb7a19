/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/transfer.h"

#include <string.h>

/* magic 8, version 4, length 4, guest_cid 8, features 8, flags 4, n_connections 4 */
static const uint8_t magic[8] = {'v', 's', 'o', 'c', 'k', 'd', 0x1a, '\n'};

enum {
	AT_VERSION = 8,
	AT_LENGTH = 12,
	AT_GUEST_CID = 16,
	AT_FEATURES = 24,
	AT_FLAGS = 32,
	AT_N_CONNECTIONS = 36,
};

/* Machines that run this are little-endian, see guest_memory.h. */
static void put32(uint8_t *place, uint32_t value)
{
	memcpy(place, &value, sizeof(value));
}

static void put64(uint8_t *place, uint64_t value)
{
	memcpy(place, &value, sizeof(value));
}

static uint32_t get32(const uint8_t *place)
{
	uint32_t value;

	memcpy(&value, place, sizeof(value));
	return value;
}

static uint64_t get64(const uint8_t *place)
{
	uint64_t value;

	memcpy(&value, place, sizeof(value));
	return value;
}

/* CRC-32 as of IEEE 802.3: against accidents; nobody is kept from computing it. */
static uint32_t checksum(const uint8_t *bytes, size_t len)
{
	uint32_t crc = UINT32_MAX;

	for (size_t i = 0; i < len; i++) {
		crc ^= bytes[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? UINT32_C(0xedb88320) : 0);
	}
	return ~crc;
}

size_t transfer_len(uint32_t n_connections)
{
	return TRANSFER_HEADER_LEN + (size_t)n_connections * TRANSFER_CONNECTION_LEN +
	       TRANSFER_CHECKSUM_LEN;
}

void transfer_put_header(uint8_t *bytes, const struct transfer_header *header)
{
	memcpy(bytes, magic, sizeof(magic));
	put32(bytes + AT_VERSION, TRANSFER_VERSION);
	put32(bytes + AT_LENGTH, (uint32_t)transfer_len(header->n_connections));
	put64(bytes + AT_GUEST_CID, header->guest_cid);
	put64(bytes + AT_FEATURES, header->features);
	put32(bytes + AT_FLAGS, header->flags);
	put32(bytes + AT_N_CONNECTIONS, header->n_connections);
}

static size_t connection_at(uint32_t index)
{
	return TRANSFER_HEADER_LEN + (size_t)index * TRANSFER_CONNECTION_LEN;
}

void transfer_put_connection(uint8_t *bytes, uint32_t index,
			     const struct transfer_connection *connection)
{
	uint8_t *place = bytes + connection_at(index);

	put32(place, connection->guest_port);
	put32(place + 4, connection->host_port);
	put32(place + 8, connection->type);
	put32(place + 12, connection->peer_cid);
}

void transfer_put_checksum(uint8_t *bytes, uint32_t n_connections)
{
	size_t len = transfer_len(n_connections) - TRANSFER_CHECKSUM_LEN;

	put32(bytes + len, checksum(bytes, len));
}

enum state_reason transfer_check(const uint8_t *bytes, size_t len,
				 struct transfer_header *ret_header)
{
	uint32_t n_connections;

	if (len == 0) {
		*ret_header = (struct transfer_header){.flags = STATE_FLAG_UNKNOWN};
		return STATE_GOOD;
	}
	if (len < transfer_len(0) || memcmp(bytes, magic, sizeof(magic)) != 0)
		return STATE_NOT_OURS;
	if (get32(bytes + AT_VERSION) != TRANSFER_VERSION)
		return STATE_OTHER_VERSION;
	n_connections = get32(bytes + AT_N_CONNECTIONS);
	if (get32(bytes + AT_LENGTH) != len ||
	    (len - transfer_len(0)) / TRANSFER_CONNECTION_LEN != n_connections ||
	    (len - transfer_len(0)) % TRANSFER_CONNECTION_LEN != 0)
		return STATE_WRONG_LENGTH;
	if (get32(bytes + len - TRANSFER_CHECKSUM_LEN) !=
	    checksum(bytes, len - TRANSFER_CHECKSUM_LEN))
		return STATE_WRONG_CHECKSUM;
	*ret_header = (struct transfer_header){
		.guest_cid = get64(bytes + AT_GUEST_CID),
		.features = get64(bytes + AT_FEATURES),
		.flags = get32(bytes + AT_FLAGS),
		.n_connections = n_connections,
	};
	/* A flag that is not known may change the meaning of the rest. */
	return ret_header->flags & ~(uint32_t)(STATE_FLAG_DRIVER | STATE_FLAG_EVENT_RING)
		       ? STATE_OTHER_VERSION
		       : STATE_GOOD;
}

void transfer_get_connection(const uint8_t *bytes, uint32_t index,
			     struct transfer_connection *ret_connection)
{
	const uint8_t *place = bytes + connection_at(index);

	*ret_connection = (struct transfer_connection){
		.guest_port = get32(place),
		.host_port = get32(place + 4),
		.type = get32(place + 8),
		.peer_cid = get32(place + 12),
	};
}

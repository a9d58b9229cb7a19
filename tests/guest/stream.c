/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/guest/stream.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* As much as one packet of virtio-vsock carries at most; a multiple of 8. */
#define CHUNK 65536u

/* Each step can be undone, so two sequences that differ in one word cannot end in one sum. */
static uint64_t mix(uint64_t sum, uint64_t word)
{
	sum = (sum ^ word) * UINT64_C(0x9e3779b97f4a7c15);
	return sum ^ (sum >> 29);
}

void checksum_add(struct checksum *checksum, const uint8_t *bytes, size_t len)
{
	size_t i = 0;

	while (i < len) {
		size_t filled = checksum->n_bytes % sizeof(uint64_t);

		if (filled == 0 && len - i >= sizeof(uint64_t)) {
			uint64_t word;

			memcpy(&word, bytes + i, sizeof(word));
			checksum->sum = mix(checksum->sum, word);
			checksum->n_bytes += sizeof(word);
			i += sizeof(word);
			continue;
		}
		checksum->word |= (uint64_t)bytes[i] << (8 * filled);
		checksum->n_bytes++;
		i++;
		if (filled == sizeof(uint64_t) - 1) {
			checksum->sum = mix(checksum->sum, checksum->word);
			checksum->word = 0;
		}
	}
}

uint64_t checksum_value(const struct checksum *checksum)
{
	return mix(mix(checksum->sum, checksum->word), checksum->n_bytes);
}

/* One state per word, so no two places of a sequence look alike. */
static void fill(uint64_t *state, uint64_t *words, size_t n_words)
{
	for (size_t i = 0; i < n_words; i++)
		words[i] = mix(*state += UINT64_C(0xd1342543de82ef95), i);
}

uint64_t stream_checksum(uint64_t seed, uint64_t n_bytes)
{
	static _Thread_local uint64_t words[CHUNK / sizeof(uint64_t)];
	struct checksum checksum = {0};

	while (checksum.n_bytes < n_bytes) {
		uint64_t left = n_bytes - checksum.n_bytes;

		fill(&seed, words, CHUNK / sizeof(uint64_t));
		checksum_add(&checksum, (const uint8_t *)words,
			     left < CHUNK ? (size_t)left : CHUNK);
	}
	return checksum_value(&checksum);
}

static int send_all(int fd, const uint8_t *bytes, size_t len)
{
	while (len > 0) {
		ssize_t n = send(fd, bytes, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		bytes += n;
		len -= (size_t)n;
	}
	return 0;
}

int stream_send(int fd, uint64_t seed, uint64_t n_bytes)
{
	static _Thread_local uint64_t words[CHUNK / sizeof(uint64_t)];

	while (n_bytes > 0) {
		size_t len = n_bytes < CHUNK ? (size_t)n_bytes : CHUNK;
		int error;

		fill(&seed, words, CHUNK / sizeof(uint64_t));
		error = send_all(fd, (const uint8_t *)words, len);
		if (error < 0)
			return error;
		n_bytes -= len;
	}
	return 0;
}

int stream_receive(int fd, uint64_t n_bytes_max, struct checksum *checksum)
{
	static _Thread_local uint8_t bytes[4 * CHUNK];

	while (n_bytes_max > 0) {
		size_t len = n_bytes_max < sizeof(bytes) ? (size_t)n_bytes_max : sizeof(bytes);
		ssize_t n = recv(fd, bytes, len, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return 0;
		checksum_add(checksum, bytes, (size_t)n);
		n_bytes_max -= (uint64_t)n;
	}
	return 0;
}

/* Mostly short ones, some around a page, and some that take many packets. */
static size_t message_len(uint64_t seed, uint64_t i)
{
	uint64_t mixed = (seed + i + 1) * UINT64_C(0x9e3779b97f4a7c15) >> 20;

	if (i % 16 == 7)
		return 1 + mixed % MESSAGE_LEN_MAX;
	if (i % 4 == 1)
		return 4000 + mixed % 200;
	return 1 + mixed % 100;
}

static const uint8_t *make_message(uint64_t seed, uint64_t i, size_t *ret_len)
{
	static _Thread_local uint64_t words[MESSAGE_LEN_MAX / sizeof(uint64_t) + 1];
	uint64_t state = seed ^ i << 32;

	*ret_len = message_len(seed, i);
	fill(&state, words, *ret_len / sizeof(uint64_t) + 1);
	return (const uint8_t *)words;
}

static void add_message(struct checksum *checksum, const uint8_t *bytes, size_t len)
{
	const uint8_t head[] = {(uint8_t)len, (uint8_t)(len >> 8), (uint8_t)(len >> 16)};

	checksum_add(checksum, head, sizeof(head));
	checksum_add(checksum, bytes, len);
}

uint64_t messages_checksum(uint64_t seed, uint64_t n)
{
	struct checksum checksum = {0};

	for (uint64_t i = 0; i < n; i++) {
		size_t len;
		const uint8_t *bytes = make_message(seed, i, &len);

		add_message(&checksum, bytes, len);
	}
	return checksum_value(&checksum);
}

static bool ends_record(uint64_t i)
{
	return i % 3 == 0;
}

int messages_send(int fd, uint64_t seed, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		int flags = MSG_NOSIGNAL | (ends_record(i) ? MSG_EOR : 0);
		size_t len;
		const uint8_t *bytes = make_message(seed, i, &len);
		ssize_t n_sent = send(fd, bytes, len, flags);

		if (n_sent < 0)
			return -errno;
		if ((size_t)n_sent != len)
			return -EBADMSG;
	}
	return 0;
}

int messages_receive(int fd, bool has_records, struct checksum *checksum)
{
	static _Thread_local uint8_t bytes[MESSAGE_LEN_MAX + 1];

	for (uint64_t i = 0;; i++) {
		struct iovec part = {bytes, sizeof(bytes)};
		struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
		ssize_t n = recvmsg(fd, &message, 0);

		if (n <= 0)
			return n < 0 ? -errno : 0;
		if (message.msg_flags & MSG_TRUNC)
			return -EBADMSG;
		if (!(message.msg_flags & MSG_EOR) == (has_records && ends_record(i)))
			return -EBADMSG;
		add_message(checksum, bytes, (size_t)n);
	}
}

int stream_read_line(int fd, char ret_line[STREAM_LINE_MAX])
{
	char line[STREAM_LINE_MAX];
	size_t len = 0;

	while (len < sizeof(line)) {
		ssize_t n = recv(fd, line + len, 1, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -ECONNRESET;
		if (line[len] == '\n') {
			line[len] = '\0';
			memcpy(ret_line, line, len + 1);
			return (int)len;
		}
		len++;
	}
	return -EMSGSIZE;
}

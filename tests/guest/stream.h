/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the guest and the host send each other: a sequence of bytes that both
 * ends work out from its seed, and a checksum that notices a byte that is lost,
 * repeated, changed or in the wrong place. Linked into the guest's agent and
 * the host's test. The fds are blocking; their time limits (SO_RCVTIMEO,
 * SO_SNDTIMEO) are the caller's and show up as -EAGAIN.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STREAM_LINE_MAX 256

/* All zero is the start. */
struct checksum {
	uint64_t sum;
	uint64_t n_bytes;
	uint64_t word; /* the last n_bytes % 8 bytes, not yet in sum */
};

void checksum_add(struct checksum *checksum, const uint8_t *bytes, size_t len);

/* The sum over all bytes so far and their number; more may be added afterwards. */
uint64_t checksum_value(const struct checksum *checksum);

/* What checksum_value() is after the first n_bytes of a sequence. */
uint64_t stream_checksum(uint64_t seed, uint64_t n_bytes);

/* Write the first n_bytes of a sequence; 0 or negative errno. */
int stream_send(int fd, uint64_t seed, uint64_t n_bytes);

/* Add what comes until the end of the stream, or until n_bytes_max; 0 or negative errno. */
int stream_receive(int fd, uint64_t n_bytes_max, struct checksum *checksum);

/*
 * The same with messages (SOCK_SEQPACKET): a sequence has n of them, of lengths that
 * its seed says, and the checksum holds the length of each before its bytes. Every
 * third one is sent as the end of a record, which only another guest is to see: unix
 * sockets know of none. -EBADMSG: one was cut, or that is not so. None is empty.
 */
#define MESSAGE_LEN_MAX (150u * 1024)

uint64_t messages_checksum(uint64_t seed, uint64_t n);
int messages_send(int fd, uint64_t seed, uint64_t n);
/* has_records: of another guest. */
int messages_receive(int fd, bool has_records, struct checksum *checksum);

/*
 * Read one line, without its end, taking no byte after it. Its length or
 * negative errno; -ECONNRESET when the stream ended before the line did.
 */
int stream_read_line(int fd, char ret_line[STREAM_LINE_MAX]);

/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/capture.h"

#include <errno.h>
#include <stdbool.h>
#include <unistd.h>

/* Parts of one record: those of payloads that lie in more are cut short. */
#define PARTS_MAX 64

void capture_init(struct capture *capture)
{
	*capture = (struct capture){.fd = -1};
}

/* The reader asks for the end once it has read all, so there is room. */
static void end(struct capture *capture)
{
	const struct capture_prefix prefix = {.n_dropped = capture->n_dropped};
	struct iovec last = {(void *)(uintptr_t)&prefix, sizeof(prefix)};

	if (capture->n_dropped > 0)
		(void)!writev(capture->fd, &last, 1);
}

void capture_set(struct capture *capture, int fd, uint32_t number, uint32_t payload_max)
{
	uint32_t n_dropped = number == capture->number ? capture->n_dropped : 0;

	if (capture->fd >= 0 && number != capture->number)
		end(capture);
	if (capture->fd >= 0)
		close(capture->fd);
	*capture = (struct capture){
		.fd = fd,
		.number = number,
		.payload_max =
			payload_max < CAPTURE_PAYLOAD_MAX ? payload_max : CAPTURE_PAYLOAD_MAX,
		.n_dropped = n_dropped,
	};
}

static size_t total(const struct iovec *parts, size_t n_parts)
{
	size_t len = 0;

	for (size_t i = 0; i < n_parts; i++)
		len += parts[i].iov_len;
	return len;
}

/* What is behind the header, in at most as many parts as a record has. */
static size_t slice(const struct iovec *parts, size_t n_parts, uint32_t len,
		    struct iovec ret_parts[static PARTS_MAX])
{
	return packet_slice(parts, n_parts < PARTS_MAX ? n_parts : PARTS_MAX, PACKET_HEADER_LEN,
			    len, ret_parts);
}

void capture_record(struct capture *capture, const struct packet_header *header,
		    const struct iovec *parts, size_t n_parts, uint32_t len)
{
	/* What the guest says may be more than it has put there. */
	size_t room = total(parts, n_parts) - PACKET_HEADER_LEN;
	struct capture_prefix prefix = {
		.n_dropped = capture->n_dropped,
		.payload_len = len < room ? len : (uint32_t)room,
	};
	struct packet_header copy = *header;
	struct iovec record[2 + PARTS_MAX] = {{&prefix, sizeof(prefix)}, {&copy, sizeof(copy)}};
	size_t n = slice(parts, n_parts, len < capture->payload_max ? len : capture->payload_max,
			 record + 2);

	prefix.captured_len = (uint32_t)total(record + 2, n);
	if (writev(capture->fd, record, (int)n + 2) >= 0) {
		capture->n_dropped = 0;
		return;
	}
	/* No room, or the guest's memory was taken away, which is told by other means. */
	if (errno != EPIPE && errno != ECONNRESET)
		capture->n_dropped++;
	else
		capture_set(capture, -1, 0, 0);
}

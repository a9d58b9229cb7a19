/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/frontend/operator.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "tests/frontend/socket.h"

int operator_connect(const char *path, int timeout)
{
	return socket_connect(path, SOCK_SEQPACKET, timeout);
}

/* Request: version 1, the command, the CID, a number; four fields of fixed width. */
static int ask(int fd, uint32_t command, uint64_t cid, uint32_t number)
{
	uint8_t bytes[24] = {0x0d, 1, 0, 0, 0, 0x15, [10] = 0x19, [19] = 0x25};
	ssize_t n;

	memcpy(bytes + 6, &command, sizeof(command));
	memcpy(bytes + 11, &cid, sizeof(cid));
	memcpy(bytes + 20, &number, sizeof(number));
	n = send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL);
	return n < 0 ? -errno : 0;
}

int operator_ask_replace(int fd, uint64_t cid)
{
	return ask(fd, 16, cid, 0);
}

int operator_ask_kill(int fd, uint64_t cid, uint32_t number)
{
	return ask(fd, 4, cid, number);
}

/* Reply: End, which is empty where all is well, or has a status and a text in its field 2. */
int operator_take_answer(int fd, char *ret_reason, size_t size)
{
	uint8_t bytes[512];
	ssize_t n = recv(fd, bytes, sizeof(bytes), 0);
	size_t at = 2;

	if (n < 0)
		return -errno;
	if (n < 2 || bytes[0] != 0x0a)
		return n == 0 ? -ECONNRESET : -EPROTO;
	if (bytes[1] == 0)
		return 0;
	if (bytes[1] & 0x80)
		at++; /* a length of two bytes */
	at += 5;      /* the status */
	if (at + 3 > (size_t)n || bytes[at] != 0x12)
		return -EPROTO;
	at += bytes[at + 1] & 0x80 ? 3 : 2;
	snprintf(ret_reason, size, "%.*s", (int)((size_t)n - at), (const char *)bytes + at);
	return 1;
}

/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>

#include "tests/frontend/guest.h"

struct wanted {
	struct guest_connection *connection;
	enum guest_state state;
};

static bool has_state(void *context)
{
	struct wanted *wanted = context;

	return wanted->connection->state == wanted->state ||
	       wanted->connection->state == GUEST_CLOSED;
}

int guest_wait_state(struct guest_connection *connection, enum guest_state state, int timeout)
{
	struct wanted wanted = {.connection = connection, .state = state};
	int error = guest_wait_until(connection->guest, has_state, &wanted, timeout);

	if (error < 0)
		return error;
	return connection->state == state ? 0 : -ECONNRESET;
}

struct guest_connection *guest_connect_wait(struct guest *guest, uint64_t cid, uint32_t port,
					    int timeout)
{
	struct guest_connection *connection = guest_connect(guest, cid, port);

	if (!connection || guest_wait_state(connection, GUEST_ESTABLISHED, timeout) == 0)
		return connection;
	guest_close(connection);
	guest_forget(connection);
	return NULL;
}

struct guest_connection *guest_accept_wait(struct guest *guest, uint32_t port, int timeout)
{
	int64_t deadline = deadline_in(timeout);
	struct guest_connection *connection;

	while (!(connection = guest_accept(guest, port))) {
		int left = deadline_left(deadline);

		if (left == 0 || guest_poll(guest, left) < 0)
			return NULL;
	}
	return connection;
}

int guest_send_all(struct guest_connection *connection, const void *bytes, size_t len, int timeout)
{
	int64_t deadline = deadline_in(timeout);
	size_t n_sent = 0;

	while (n_sent < len) {
		ssize_t n = guest_send(connection, bytes ? (const uint8_t *)bytes + n_sent : NULL,
				       len - n_sent);
		int left = deadline_left(deadline);

		if (n > 0) {
			n_sent += (size_t)n;
			continue;
		}
		if (n != -EAGAIN)
			return (int)n;
		if (left == 0)
			return -ETIMEDOUT;
		n = guest_poll(connection->guest, left);
		if (n < 0)
			return (int)n;
	}
	return 0;
}

ssize_t guest_receive_all(struct guest_connection *connection, void *bytes, size_t len, int timeout)
{
	int64_t deadline = deadline_in(timeout);
	size_t n_received = 0;

	while (n_received < len) {
		ssize_t n =
			guest_receive(connection, (uint8_t *)bytes + n_received, len - n_received);
		int left = deadline_left(deadline);

		if (n > 0) {
			n_received += (size_t)n;
			continue;
		}
		if (n == 0)
			break;
		if (n != -EAGAIN)
			return n;
		if (left == 0)
			return -ETIMEDOUT;
		n = guest_poll(connection->guest, left);
		if (n < 0)
			return n;
	}
	return (ssize_t)n_received;
}

int guest_finish(struct guest_connection *connection, int timeout)
{
	int error = guest_close(connection);

	if (!error)
		error = guest_wait_state(connection, GUEST_CLOSED, timeout);
	guest_forget(connection);
	return error;
}

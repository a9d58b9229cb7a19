/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "worker/device.h"
#include "worker/transfer.h"

/*
 * A pipe that says it can be written takes this much without blocking, whatever
 * its flags: the other end is the front-end's, and so are the flags (pipe(7)).
 */
#define WRITE_LEN 4096

static void end_transfer(struct device *device, enum state_reason reason)
{
	struct state *state = &device->state;

	epoll_ctl(device->epoll, EPOLL_CTL_DEL, state->fd, NULL);
	close(state->fd);
	state->fd = -1;
	state->phase = STATE_TELLING;
	state->reason = reason;
	if (reason != STATE_GOOD)
		state->header.n_connections = 0;
}

/*
 * Does the guest believe in it? So much is true until the guest is served again,
 * whatever host programs do: a connection that ends meanwhile is due a RST.
 */
static bool lives_in_guest(const struct connection *connection)
{
	if (connection->state == CONNECTION_FREE || connection->due & CONNECTION_SEND_REQUEST)
		return false;
	return connection->is_hashed || connection->due & CONNECTION_SEND_RST;
}

/* Packets that belong to no connection and are due a RST: of one that the guest has. */
static void compose_orphans(struct device *device, struct transfer_header *header)
{
	for (uint32_t i = 0; i < device->n_orphans; i++) {
		const struct orphan *orphan =
			&device->orphans[(device->first_orphan + i) % ORPHANS_MAX];
		struct transfer_connection saved = {
			orphan->dst_port,
			orphan->src_port,
			orphan->type,
			(uint32_t)orphan->src_cid,
		};

		transfer_put_connection(device->state.bytes, header->n_connections++, &saved);
	}
}

static void compose(struct device *device, uint32_t flags)
{
	struct state *state = &device->state;
	struct transfer_header header = {
		.guest_cid = device->guest_cid,
		.features = device->features,
		.flags = flags,
	};

	for (uint32_t i = 0; i < device->connections.n_touched; i++) {
		const struct connection *connection = &device->connections.all[i];
		struct transfer_connection saved = {
			connection->guest_port,
			connection->host_port,
			connection->type,
			connection->peer_cid,
		};

		if (lives_in_guest(connection))
			transfer_put_connection(state->bytes, header.n_connections++, &saved);
	}
	compose_orphans(device, &header);
	transfer_put_header(state->bytes, &header);
	transfer_put_checksum(state->bytes, header.n_connections);
	state->len = transfer_len(header.n_connections);
	state->n_done = 0;
}

static int begin(struct device *device, int fd, enum state_phase phase, uint32_t events)
{
	struct epoll_event event = {
		.events = events,
		.data.u64 = device_event(DEVICE_EVENT_STATE, 0, 0),
	};

	if (device->state.phase != STATE_IDLE) {
		close(fd);
		return -EBUSY;
	}
	/* A regular file can't be waited for, and is not what the protocol asks for. */
	if (epoll_ctl(device->epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
		int error = errno;

		close(fd);
		return -error;
	}
	device->state.fd = fd;
	device->state.phase = phase;
	device->state.n_told = 0;
	device->state.len = 0;
	return 0;
}

int state_save(struct device *device, uint32_t flags, int fd)
{
	int r = begin(device, fd, STATE_SAVING, EPOLLOUT);

	if (r == 0)
		compose(device, flags);
	return r;
}

int state_load(struct device *device, int fd)
{
	return begin(device, fd, STATE_LOADING, EPOLLIN);
}

static void write_on(struct device *device)
{
	struct state *state = &device->state;
	size_t rest = state->len - state->n_done;
	struct iovec part = {state->bytes + state->n_done, rest < WRITE_LEN ? rest : WRITE_LEN};
	ssize_t n = writev(state->fd, &part, 1);

	if (n < 0 && errno != EAGAIN && errno != EINTR) {
		end_transfer(device, STATE_BROKEN_PIPE);
		return;
	}
	if (n > 0)
		state->n_done += (size_t)n;
	if (state->n_done == state->len)
		end_transfer(device, STATE_GOOD);
}

static void read_on(struct device *device)
{
	struct state *state = &device->state;
	struct iovec part = {state->bytes + state->len, state->capacity - state->len};
	ssize_t n;

	/* capacity is one more than the longest state: this one has no end. */
	if (part.iov_len == 0) {
		end_transfer(device, STATE_WRONG_LENGTH);
		return;
	}
	n = readv(state->fd, &part, 1);
	if (n > 0)
		state->len += (size_t)n;
	else if (n == 0)
		end_transfer(device, transfer_check(state->bytes, state->len, &state->header));
	else if (errno != EAGAIN && errno != EINTR)
		end_transfer(device, STATE_BROKEN_PIPE);
}

void state_event(struct device *device)
{
	if (device->state.phase == STATE_SAVING)
		write_on(device);
	else if (device->state.phase == STATE_LOADING)
		read_on(device);
}

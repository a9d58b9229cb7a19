/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/bench/backend.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/frontend/host.h"

#define BIT(n) (UINT64_C(1) << (n))

struct backend {
	struct driver driver;
	struct daemon daemon;
	struct guest guest;
	struct guest_connection *connections[DRIVER_CONNECTIONS_MAX];
	char uds_path[128];
	int listener;
	bool has_guest;
};

static size_t send_payloads(struct driver *driver, size_t connection, size_t payload, size_t n)
{
	struct backend *backend = (struct backend *)driver;
	ssize_t sent = guest_send(backend->connections[connection], NULL, payload * n);

	/* Credit may end within a payload: that one was begun, which is enough to count. */
	return sent > 0 ? ((size_t)sent + payload - 1) / payload : 0;
}

static int poll_guest(struct driver *driver, int timeout)
{
	struct backend *backend = (struct backend *)driver;

	return timeout == 0 ? guest_process(&backend->guest) : guest_poll(&backend->guest, timeout);
}

static void count(void *context, const uint8_t *bytes, size_t len)
{
	uint64_t *n_received = context;

	(void)bytes;
	*n_received += len;
}

static int start_guest(struct backend *backend)
{
	const struct guest_options options = {
		.socket = daemon_path(&backend->daemon, "vhost.sock"),
		.style = GUEST_LIKE_CROSVM,
		.cid = BACKEND_CID,
		.features = BIT(VIRTIO_VERSION_1) | BIT(VIRTIO_EVENT_IDX),
		.queue_size = DRIVER_QUEUE_SIZE,
		.rx_buffer_size = DRIVER_RX_BUFFER_SIZE,
		.n_tx_buffers = DRIVER_TX_PACKETS,
		.buf_alloc = DRIVER_BUF_ALLOC,
		.tx_layout = {.cuts = {DRIVER_HEADER_LEN}, .n_cuts = 1},
	};

	return guest_start(&backend->guest, &options);
}

struct backend *backend_start(const struct backend_command *command, const char **ret_reason)
{
	struct backend *backend = calloc(1, sizeof(*backend));
	int error;

	if (!backend) {
		*ret_reason = "no memory";
		return NULL;
	}
	backend->listener = -1;
	backend->driver.send = send_payloads;
	backend->driver.poll = poll_guest;
	error = daemon_start(&backend->daemon, command->words, "vhost.sock", BACKEND_TIMEOUT);
	if (error) {
		*ret_reason = "it did not start";
		free(backend);
		return NULL;
	}
	snprintf(backend->uds_path, sizeof(backend->uds_path), "%s",
		 daemon_path(&backend->daemon, "vsock"));
	backend->driver.pid = backend->daemon.pid;
	backend->listener = host_listen(backend->uds_path, BACKEND_PORT);
	backend->has_guest = backend->listener >= 0 && start_guest(backend) == 0;
	if (backend->has_guest)
		return backend;
	*ret_reason = "it did not take the front-end";
	backend_stop(backend);
	return NULL;
}

static bool is_open(void *context)
{
	const struct backend *backend = context;

	for (size_t i = 0; i < DRIVER_CONNECTIONS_MAX && backend->connections[i]; i++) {
		if (backend->connections[i]->state == GUEST_CONNECTING)
			return false;
	}
	return true;
}

/* As many at a time as any back-end bears. */
#define OPEN_AT_ONCE 32

int backend_open(struct backend *backend, size_t n_connections, size_t payload)
{
	struct driver *driver = &backend->driver;

	while (driver->n_connections < n_connections) {
		size_t first = driver->n_connections, n = n_connections - first;
		int error;

		if (n > OPEN_AT_ONCE)
			n = OPEN_AT_ONCE;
		for (size_t i = first; i < first + n; i++) {
			backend->connections[i] =
				guest_connect(&backend->guest, PACKET_HOST_CID, BACKEND_PORT);
			if (!backend->connections[i])
				return -ENOMEM;
			backend->connections[i]->packet_size = (uint32_t)payload;
			backend->connections[i]->sink = count;
			backend->connections[i]->sink_context = &driver->n_received[i];
		}
		error = guest_wait_until(&backend->guest, is_open, backend, BACKEND_TIMEOUT);
		if (error < 0)
			return error;
		for (size_t i = 0; i < n; i++) {
			int fd = host_accept(backend->listener, BACKEND_TIMEOUT);

			if (fd < 0)
				return fd;
			driver->host_fds[driver->n_connections++] = fd;
		}
	}
	return 0;
}

struct driver *backend_driver(struct backend *backend)
{
	return &backend->driver;
}

struct guest *backend_guest(struct backend *backend)
{
	return &backend->guest;
}

struct guest_connection *backend_connection(struct backend *backend, size_t index)
{
	return backend->connections[index];
}

const char *backend_path(struct backend *backend, const char *name)
{
	return daemon_path(&backend->daemon, name);
}

const char *backend_uds_path(struct backend *backend)
{
	return backend->uds_path;
}

int backend_listener(struct backend *backend)
{
	return backend->listener;
}

size_t backend_violations(const struct backend *backend)
{
	return backend->guest.n_violations;
}

const char *backend_first_violation(const struct backend *backend)
{
	return guest_violations(&backend->guest);
}

void backend_end_guest(struct backend *backend)
{
	if (backend->has_guest)
		guest_end(&backend->guest);
	backend->has_guest = false;
}

void backend_stop(struct backend *backend)
{
	for (size_t i = 0; i < backend->driver.n_connections; i++)
		close(backend->driver.host_fds[i]);
	if (backend->listener >= 0)
		close(backend->listener);
	backend_end_guest(backend);
	daemon_stop(&backend->daemon, BACKEND_TIMEOUT);
	free(backend);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "broker/control.h"
#include "broker/front.h"

static int take_end(struct control_client *client, int which)
{
	int fd = client->pair[which];

	client->pair[which] = -1;
	return fd;
}

/* The guest's worker gets its end first: what the client never takes ends by itself. */
static bool hand_over(struct control_client *client, struct device *device)
{
	int fd = take_end(client, 0);
	struct endpoint *endpoint = device_take_host(device, NULL, fd);

	if (!endpoint) {
		close(fd);
		return control_refuse(client, -EBUSY,
				      "VM %" PRIu64 " has as many connections as there may be",
				      client->request.cid);
	}
	endpoint->pid = client->pid;
	client->cursor = 1;
	return false;
}

static bool say_stream(struct front *front, struct control_client *client)
{
	Control__Reply reply = CONTROL__REPLY__INIT;
	Control__Stream stream = CONTROL__STREAM__INIT;

	reply.body_case = CONTROL__REPLY__BODY_STREAM;
	reply.stream = &stream;
	return control_send_fd(front, client, &reply, client->pair[1]);
}

bool control_connect(struct front *front, struct control_client *client)
{
	struct device *device = control_device(front, client);
	const char *reason;

	if (!device)
		return true;
	if (client->cursor == 1)
		return say_stream(front, client);
	reason = device_refuses_host(device, ENDPOINT_STREAM);
	if (reason)
		return control_refuse(client, -ECONNREFUSED, "VM %" PRIu64 ": %s",
				      client->request.cid, reason);
	/* As programs at the uds-path wait in the backlog while the guest cannot be asked. */
	control_request_pair(front, client, device, CONTROL_PAIR_STREAM);
	if (!client->has_pair || !device_listens_to_host(device))
		return false;
	if (client->pair_error != 0)
		return control_refuse(client, -client->pair_error, "a pair of sockets: %s",
				      strerror(client->pair_error));
	return hand_over(client, device) || say_stream(front, client);
}

/* The connections themselves come by control_accepted(). */
bool control_listen(struct front *front, struct control_client *client)
{
	const struct device *device;

	if (client->cursor == 1)
		return false;
	device = control_device(front, client);
	if (!device)
		return true;
	if (control_listener(device, client->request.port) != 0)
		return control_refuse(client, -EADDRINUSE,
				      "VM %" PRIu64 ": somebody else listens to port %" PRIu32
				      " already",
				      client->request.cid, client->request.port);
	client->cursor = 1;
	return false;
}

/* ---- capture ---- */

/* The worker's end stays here: each worker of the VM gets a duplicate. */
static void begin_capture(struct device *device, struct control_client *client)
{
	device->capture = (struct device_capture){
		.number = client->serial,
		.fd = client->pair[0],
		.payload_max = client->request.number,
	};
	client->cursor = 1;
	device_update(device);
}

bool control_capture(struct front *front, struct control_client *client)
{
	struct device *device = control_device(front, client);

	if (!device)
		return true;
	if (client->cursor == 0 && device->capture.number != 0)
		return control_refuse(client, -EBUSY, "somebody else captures VM %" PRIu64,
				      client->request.cid);
	/* Another VM of that CID may have come with a reload. */
	if (client->cursor != 0 && device->capture.number != client->serial)
		return control_refuse(client, -ENOENT, "VM %" PRIu64 " was removed",
				      client->request.cid);
	control_request_pair(front, client, device, CONTROL_PAIR_PACKETS);
	if (!client->has_pair)
		return false;
	if (client->pair_error != 0)
		return control_refuse(client, -client->pair_error, "a pair of sockets: %s",
				      strerror(client->pair_error));
	if (client->cursor == 0)
		begin_capture(device, client);
	if (client->cursor == 1 && say_stream(front, client)) {
		close(take_end(client, 1));
		client->cursor = 2;
	}
	return false;
}

void control_end_capture(struct front *front, struct control_client *client)
{
	for (size_t i = 0; i < front->n_devices; i++) {
		struct device *device = &front->devices[i];

		if (device->capture.number != client->serial)
			continue;
		device->capture = (struct device_capture){.fd = -1};
		device_update(device);
	}
}

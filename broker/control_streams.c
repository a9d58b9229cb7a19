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
	control_request_pair(front, client, device);
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

/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>

#include "broker/control.h"
#include "broker/front.h"

/*
 * One VM after the other, so that no two of them wait at a time. What cannot be
 * replaced is told at the end; the others are, all the same.
 */

/* For a worker that a VM waits for itself. */
#define LOOK_AGAIN_MS 20

static const char *refusal(int status)
{
	switch (status) {
	case -ENOTCONN:
		return "no VMM is connected, so it has no worker; the next one is started anew";
	case -EIO:
		return "its device has failed; restart the guest";
	case -EALREADY:
		return "its worker is being replaced already";
	default:
		return handover_reason(status);
	}
}

/* Once there is a first one, further ones are only counted in the log. */
static void note_failure(struct control_client *client, uint64_t cid, int status)
{
	if (!client->was_refused)
		control_refuse(client, status, "worker of VM %" PRIu64 " not replaced: %s", cid,
			       refusal(status));
}

/* place[0]: whether it has begun. */
static int begin_handover(struct control_client *client, struct device *device)
{
	int status;

	client->awaits_handover = true;
	status = handover_begin(device, client->serial);
	client->place[0] = status == 0;
	if (status < 0)
		client->awaits_handover = false;
	return status;
}

/* false: it goes on. The VM may have gone meanwhile, and with it its handover. */
static bool replace_one(struct control_client *client, struct device *device)
{
	bool is_one_of_all = client->request.cid == 0;
	uint64_t cid = is_one_of_all ? device->configuration->guest_cid : client->request.cid;
	int status = client->place[0] == 0 ? begin_handover(client, device) : 0;

	/* The next one is on its way, and may be the spare of yesterday. */
	if (status == -EAGAIN) {
		client->wait_until = device->front->now + LOOK_AGAIN_MS;
		return false;
	}
	if (client->awaits_handover)
		return false;
	if (status == 0)
		status = client->handover_status;
	client->place[0] = 0;
	if (is_one_of_all && (status == -ENOTCONN || !device_is_present(device)))
		return true;
	if (status < 0)
		note_failure(client, cid, status);
	return true;
}

static bool replace_named(struct front *front, struct control_client *client)
{
	struct device *device = client->place[0] == 0 ? control_device(front, client)
						      : &front->devices[client->cursor];

	if (!device)
		return true;
	client->cursor = device->index;
	return replace_one(client, device);
}

/* cursor: the VM whose turn it is. */
bool control_replace(struct front *front, struct control_client *client)
{
	if (client->request.cid != 0)
		return replace_named(front, client);
	/*
	 * Whoever is connected next gets what is installed now, too. Once: a VM that waits for
	 * its worker, and is waited for here, would never get one of those that are started for it.
	 */
	if (client->place[1] == 0) {
		client->place[1] = 1;
		workers_renew(front);
	}
	for (; client->cursor < front->n_devices; client->cursor++)
		if (!replace_one(client, &front->devices[client->cursor]))
			return false;
	return true;
}

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
static void note_failure(struct control_client *client, const struct device *device, int status)
{
	if (!client->was_refused)
		control_refuse(client, status, "worker of VM %" PRIu64 " not replaced: %s",
			       device->configuration->guest_cid, refusal(status));
}

/* place[0]: the handover of the VM at the cursor has begun. false: it goes on. place[1]: see below.
 */
static bool replace_one(struct control_client *client, struct device *device)
{
	bool is_one_of_all = client->request.cid == 0;
	int status;

	if (client->place[0] == 0) {
		status = handover_begin(device);
		/* The next one is on its way, and may be the spare of yesterday. */
		if (status == -EAGAIN) {
			client->wait_until = device->front->now + LOOK_AGAIN_MS;
			return false;
		}
		if (status == -ENOTCONN && is_one_of_all)
			return true;
		if (status < 0) {
			note_failure(client, device, status);
			return true;
		}
		client->place[0] = 1;
	}
	if (device->handover.phase != HANDOVER_NONE)
		return false;
	client->place[0] = 0;
	if (device->handover.status < 0)
		note_failure(client, device, device->handover.status);
	return true;
}

bool control_replace(struct front *front, struct control_client *client)
{
	bool is_all = client->request.cid == 0;

	if (!is_all && client->cursor == 0 && client->place[0] == 0 &&
	    !control_device(front, client))
		return true;
	/*
	 * Whoever is connected next gets what is installed now, too. Once: a VM that waits for
	 * its worker, and is waited for here, would never get one of those that are started for it.
	 */
	if (is_all && client->place[1] == 0) {
		client->place[1] = 1;
		workers_renew(front);
	}
	for (; client->cursor < front->n_devices; client->cursor++) {
		struct device *device = &front->devices[client->cursor];

		if (!is_all && device->configuration->guest_cid != client->request.cid)
			continue;
		if (!replace_one(client, device))
			return false;
	}
	return true;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <sysexits.h>
#include <unistd.h>

#include "broker/front.h"
#include "broker/log.h"

/*
 * The configuration changes while VMs run. The spawner has read it, made the new
 * sockets and filled the bank that is not in use. Its messages first say which
 * sockets devices are to get; then RELOAD changes over to that bank, and all else is
 * found by comparing the two. Nothing is allocated: there is a device for each place.
 */

static bool is_good(const struct front *front, const struct spawner_reply *reply)
{
	return front->banks && reply->device < BANK_PLACES && reply->number < SOCKETS_MAX;
}

/* Those of MOVE, which are another device's still, come later. */
static void close_next_listeners(struct front *front)
{
	for (size_t i = 0; i < BANK_PLACES; i++)
		for (size_t number = 0; number < SOCKETS_MAX; number++) {
			int *next = &front->devices[i].next_listeners[number];

			if (*next >= 0)
				close(*next);
			*next = -1;
		}
}

void changes_listener(struct front *front, const struct spawner_reply *reply, int fd)
{
	if (!is_good(front, reply)) {
		front->exit_code = EX_SOFTWARE;
		return;
	}
	if (reply->error == ETOOMANYREFS) {
		close_next_listeners(front);
		return;
	}
	if (fd < 0) {
		log_event(LOG_ERR, LOG_NO_VM,
			  "reload: no file descriptor is left for a new socket: who connects "
			  "there waits in vain");
		return;
	}
	front->devices[reply->device].next_listeners[reply->number] = fd;
}

void changes_move(struct front *front, const struct spawner_reply *reply)
{
	uint32_t number = (uint32_t)reply->token;
	uint64_t place = reply->token >> 32;
	struct device *from;

	if (!is_good(front, reply) || place >= BANK_PLACES || number >= SOCKETS_MAX) {
		front->exit_code = EX_SOFTWARE;
		return;
	}
	from = &front->devices[place];
	from->gives_listener[number] = true;
	front->devices[reply->device].next_listeners[reply->number] =
		*device_listener(from, number);
}

static void end_removed(struct front *front, const struct configuration *next)
{
	for (size_t i = 0; i < front->n_devices; i++)
		if (device_is_present(&front->devices[i]) && !next->vms[i].guest_cid)
			device_end(&front->devices[i]);
}

/* One that was named for the device; none, if it is to have none any more; or as before. */
static void take_listener(struct device *device, size_t number)
{
	int *listener = device_listener(device, number);
	int next = device->next_listeners[number];

	if (next < 0 && sockets_has(device->configuration, number))
		return;
	if (*listener >= 0 && !device->gives_listener[number])
		close(*listener);
	*listener = -1;
	if (next >= 0 && !device_listen(device, number, next))
		device_log(device, LOG_ERR, "reload: cannot watch its new socket");
}

/* What it gives away has been taken by then. */
static void forget_listeners(struct device *device)
{
	for (size_t number = 0; number < SOCKETS_MAX; number++) {
		device->next_listeners[number] = -1;
		device->gives_listener[number] = false;
	}
}

static void change_device(struct device *device, const struct vm_configuration *next)
{
	device_configure(device, next);
	for (size_t number = 0; number < SOCKETS_MAX; number++)
		take_listener(device, number);
}

void changes_reload(struct front *front, const struct spawner_reply *reply)
{
	const struct configuration *next;

	if (!front->banks || reply->number >= BANKS) {
		front->exit_code = EX_SOFTWARE;
		return;
	}
	next = banks_get(front->banks, reply->number);
	/* An operator may have chosen another one meanwhile. */
	if (next->log_level != front->configuration->log_level)
		log_set_level(next->log_level);
	end_removed(front, next);
	front->configuration = next;
	front->n_devices = next->n_vms;
	for (size_t i = 0; i < front->n_devices; i++)
		if (next->vms[i].guest_cid)
			change_device(&front->devices[i], &next->vms[i]);
	for (size_t i = 0; i < front->n_devices; i++)
		forget_listeners(&front->devices[i]);
	if (reply->error)
		workers_renew(front);
	front_request_reloaded(front, reply->number);
}

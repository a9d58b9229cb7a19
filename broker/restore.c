/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <syslog.h>

#include "broker/front.h"
#include "broker/log.h"

/*
 * Who owns ring 2 is seen from the messages. A front-end that says no more after
 * rings 0 and 1 run keeps it; one that is known to hand it over gets longer.
 */
#define OWNER_UNKNOWN_MS 100
#define OWNER_LATE_MS	 1000

static const char *state_reason(uint32_t reason)
{
	static const char *const texts[STATE_REASON_MAX] = {
		[STATE_NOT_OURS] = "not a state of vsockd",
		[STATE_OTHER_VERSION] = "a state of another version",
		[STATE_WRONG_LENGTH] = "truncated, or too long",
		[STATE_WRONG_CHECKSUM] = "its checksum is wrong",
		[STATE_BROKEN_PIPE] = "the pipe broke",
	};

	return reason < STATE_REASON_MAX && texts[reason] ? texts[reason] : "?";
}

/* A state that is saved changes nothing here, and so holds nobody up. */
bool restore_is_transferring(const struct device *device)
{
	return device->restore.is_transferring && device->restore.is_load;
}

bool restore_holds(const struct device *device)
{
	return device->restore.phase != RESTORE_NONE || restore_is_transferring(device);
}

void restore_begin_transfer(struct device *device, bool is_load)
{
	device->restore.is_transferring = true;
	device->restore.is_load = is_load;
	device->restore.has_info = false;
	device->restore.result = -EIO;
}

void restore_cancel(struct device *device)
{
	device->restore = (struct restore){
		.phase = RESTORE_NONE,
		.result = -ENODATA,
		.is_dropped = device->worker &&
			      (device->restore.is_transferring || device->restore.is_dropped),
	};
}

/* The worker is gone, and what it was reading or had sent with it. */
void restore_worker_died(struct device *device)
{
	struct restore *restore = &device->restore;

	restore->is_dropped = false;
	restore->was_sent = false;
	if (restore->is_transferring)
		restore_end_transfer(device, -EIO);
	/* Sent once a load; nobody is left who would see it handled. */
	if (restore->phase == RESTORE_SENT)
		restore->phase = RESTORE_NONE;
}

void restore_end_transfer(struct device *device, int result)
{
	struct restore *restore = &device->restore;

	restore->is_transferring = false;
	restore->result = result;
	if (restore->awaits_check) {
		restore->awaits_check = false;
		sync_complete(device, result);
	}
}

/*
 * What the stream says decides what follows, and nothing else: it is a claim
 * about a guest, made to the process of that guest.
 */
static void take_over(struct device *device)
{
	struct restore *restore = &device->restore;
	bool is_unknown = restore->flags & STATE_FLAG_UNKNOWN;

	restore->sends_reset = is_unknown || restore->flags & STATE_FLAG_DRIVER;
	if (restore->guest_cid != device->configuration->guest_cid && !is_unknown)
		device_log(device, LOG_NOTICE | LOG_AS(LOG_ID_RESTORED),
			   "restored: the guest had CID %" PRIu64 " before", restore->guest_cid);
	if (!restore->sends_reset) {
		restore->phase = RESTORE_NONE; /* no driver lived: there is nothing to reset */
		return;
	}
	device->has_driver = true;
	restore->owner = is_unknown				  ? OWNER_UNKNOWN
			 : restore->flags & STATE_FLAG_EVENT_RING ? OWNER_BACKEND
								  : OWNER_FRONTEND;
	restore->phase = RESTORE_WAITING;
	restore->was_announced = false;
	restore->decide_at = 0;
}

const char *restore_state_connection(struct device *device,
				     const Vsockd__StateConnection *connection)
{
	struct endpoint *endpoint;
	uint32_t index;

	if (device->restore.is_dropped)
		return NULL;
	if (!device->restore.is_transferring || !device->restore.is_load)
		return "StateConnection outside of a load";
	/* More than this device may have: the guest learns when it next sends. */
	index = endpoints_take(&device->endpoints, ENDPOINT_LOST);
	if (index == ENDPOINT_NONE)
		return NULL;
	endpoint = &device->endpoints.all[index];
	endpoint->guest_port = connection->guest_port;
	endpoint->type = (uint8_t)connection->type;
	endpoint->cid = connection->cid;
	endpoint->port = connection->host_port;
	endpoint->has_ports = true;
	endpoints_tell(&device->endpoints, index);
	return NULL;
}

const char *restore_state_info(struct device *device, const Vsockd__StateInfo *info)
{
	struct restore *restore = &device->restore;

	if (restore->is_dropped)
		return NULL;
	if (!restore->is_transferring || !restore->is_load || restore->has_info)
		return "StateInfo outside of a load";
	restore->has_info = true;
	restore->guest_cid = info->guest_cid;
	restore->features = info->features;
	restore->flags = info->flags;
	return NULL;
}

/* 0, or why a state that was read well is of no use here. */
static int check_info(struct device *device)
{
	uint64_t unknown = device->restore.features & ~device->session.offered_features;

	if (!device->restore.has_info)
		return -EBADMSG;
	if (unknown == 0)
		return 0;
	device_log(device, LOG_ERR | LOG_AS(LOG_ID_RESTORED),
		   "state refused: features 0x%" PRIx64 " are not known here", unknown);
	return -EOPNOTSUPP;
}

/* What a state that is refused said of connections; those that live are left alone. */
static void forget_saved(struct endpoints *endpoints)
{
	uint32_t index = endpoints->first_untold;

	endpoints->first_untold = ENDPOINT_NONE;
	endpoints->last_untold = ENDPOINT_NONE;
	while (index != ENDPOINT_NONE) {
		uint32_t next = endpoints->all[index].next;

		if (endpoints->all[index].state == ENDPOINT_LOST)
			endpoints_release(endpoints, index);
		else
			endpoints_tell(endpoints, index);
		index = next;
	}
}

const char *restore_state_done(struct device *device, const Vsockd__StateDone *done)
{
	struct restore *restore = &device->restore;
	int result = done->is_good ? 0 : -EBADMSG;

	if (restore->is_dropped) {
		restore->is_dropped = false;
		return NULL;
	}
	if (!restore->is_transferring)
		return "StateDone without a transfer";
	if (!done->is_good)
		device_log(device, LOG_ERR, "%s refused: %s", restore->is_load ? "state" : "saving",
			   state_reason(done->reason));
	else if (restore->is_load)
		result = check_info(device);
	if (restore->is_load && result == 0) {
		take_over(device);
		device_log(device, LOG_NOTICE | LOG_AS(LOG_ID_RESTORED), "restored, %s",
			   restore->phase == RESTORE_NONE ? "no driver lived then"
							  : "the driver is to be reset");
		/* Connections that lived belong to another time, like those of the state. */
		siblings_lose(device);
		endpoints_lose(&device->endpoints);
		memset(device->was_stopped, 0, sizeof(device->was_stopped));
		/* Another process serves the guest than the one that read the stream. */
		device_replace_worker(device);
	} else if (restore->is_load) {
		forget_saved(&device->endpoints);
	}
	restore_end_transfer(device, result);
	return NULL;
}

/* Should the worker die now, its successor sees in ring 2 whether the driver got it. */
const char *restore_reset_announced(struct device *device, const Vsockd__ResetAnnounced *announced)
{
	if (device->restore.phase != RESTORE_WAITING || !device->restore.sends_reset)
		return "ResetAnnounced that was not ordered";
	device->restore.was_announced = true;
	device->restore.announced_used = announced->used;
	return NULL;
}

const char *restore_reset_sent(struct device *device)
{
	if (device->restore.phase != RESTORE_WAITING || !device->restore.sends_reset)
		return "ResetSent that was not ordered";
	device->restore.phase = RESTORE_SENT;
	device->restore.sends_reset = false;
	device->restore.was_sent = true;
	device_log(device, LOG_INFO, "transport reset sent");
	return NULL;
}

static void release(struct device *device, const char *why)
{
	device->restore.phase = RESTORE_NONE;
	device_log(device, LOG_INFO, "restored device goes on: %s", why);
	device_update(device);
}

const char *restore_reset_handled(struct device *device)
{
	if (!device->restore.was_sent)
		return "ResetHandled for what was not sent";
	device->restore.was_sent = false;
	/* A read of the configuration may have ended it before. */
	if (device->restore.phase == RESTORE_SENT)
		release(device, "the driver has handled the reset");
	return NULL;
}

void restore_config_read(struct device *device)
{
	/* Read before the event was sent, it proves nothing. */
	if (device->restore.phase == RESTORE_SENT)
		release(device, "the driver has read its CID again");
}

static bool has_event_ring(const struct device *device)
{
	return device->session.rings[2].num > 0 || device->session.rings[2].has_addresses;
}

/*
 * The message before this one came after rings 0 and 1 ran and was not about ring
 * 2: the front-end has none for us. It was not the one that made them run.
 */
void restore_message_seen(struct device *device)
{
	uint32_t before = device->session.current.request;

	if (device->restore.phase == RESTORE_WAITING && device->restore.decide_at != 0 &&
	    before != VHOST_USER_SET_VRING_KICK && before != VHOST_USER_SET_VRING_ENABLE &&
	    device->restore.owner == OWNER_UNKNOWN && !has_event_ring(device))
		release(device, "the front-end keeps the event queue");
}

void restore_update(struct device *device, bool rings_run)
{
	struct restore *restore = &device->restore;
	uint64_t now = device->front->now;

	if (restore->phase != RESTORE_WAITING)
		return;
	if (!rings_run || has_event_ring(device)) {
		restore->decide_at = 0; /* no wait, or one that begins anew */
		return;
	}
	if (restore->owner == OWNER_FRONTEND) {
		release(device, "the front-end keeps the event queue");
		return;
	}
	if (restore->decide_at == 0)
		restore->decide_at =
			now + (restore->owner == OWNER_UNKNOWN ? OWNER_UNKNOWN_MS : OWNER_LATE_MS);
	else if (restore->decide_at <= now)
		release(device, "the front-end set up no event queue");
}

uint64_t restore_deadline(const struct device *device)
{
	if (device->restore.phase != RESTORE_WAITING || device->restore.decide_at == 0)
		return UINT64_MAX;
	return device->restore.decide_at;
}

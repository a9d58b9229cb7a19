/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "broker/front.h"
#include "broker/log.h"

static const char *ring_reason(uint64_t reason)
{
	static const char *const texts[REPORT_RING_REASON_MAX] = {
		[REPORT_RING_AVAIL_JUMP] = "avail index jumped",
		[REPORT_RING_BAD_INDEX] = "descriptor index outside the ring",
		[REPORT_RING_LOOP] = "chain longer than the ring",
		[REPORT_RING_BAD_INDIRECT] = "malformed indirect table",
		[REPORT_RING_BAD_PLACE] = "address outside guest memory",
	};

	return reason < REPORT_RING_REASON_MAX && texts[reason] ? texts[reason] : "?";
}

static const char *handshake_reason(uint64_t reason)
{
	static const char *const texts[REPORT_HANDSHAKE_REASON_MAX] = {
		[REPORT_HANDSHAKE_MALFORMED] = "malformed, \"CONNECT <port>\" expected",
		[REPORT_HANDSHAKE_TIMEOUT] = "no complete line in 5 s",
		[REPORT_HANDSHAKE_ENDED] = "the host program left",
		[REPORT_HANDSHAKE_REFUSED] = "the guest refused",
		[REPORT_HANDSHAKE_NO_ANSWER] = "no answer of the guest in 2 s",
		[REPORT_HANDSHAKE_DENIED] = "that port is not for host programs",
		[REPORT_HANDSHAKE_NO_MEMORY] = "no memory is left for its buffer",
	};

	return reason < REPORT_HANDSHAKE_REASON_MAX && texts[reason] ? texts[reason] : "?";
}

/* What could not be carried whole ends its connection. */
static void log_message(struct device *device, const Vsockd__Report *report)
{
	const char *what = "";

	if (report->event == REPORT_MESSAGE_TOO_LONG)
		what = "length of a message for which the guest has no room";
	else if (report->event == REPORT_MESSAGE_REFUSED)
		what = "length of a message that the host's socket does not take";
	else
		what = "number of messages that the host program does not read";
	device_log(device, LOG_WARNING,
		   "connection reset: guest port %" PRIu64 ", host port %" PRIu64 ": %" PRIu64
		   " is the %s",
		   report->second, report->first, report->third, what);
}

/* The largest that the kernel has. */
#define ERRNO_MAX 4095u

static const char *error_text(uint64_t error)
{
	return error <= ERRNO_MAX ? strerror((int)error) : "?";
}

static const char *on_report(struct device *device, const Vsockd__Report *report)
{
	switch (report->event) {
	case REPORT_RING_BROKEN:
		device_log(device, LOG_ERR | LOG_AS(LOG_ID_RING_BROKEN),
			   "ring %" PRIu64 " is broken: %s (0x%" PRIx64 ")", report->first,
			   ring_reason(report->second), report->third);
		return NULL;
	case REPORT_HANDSHAKE_FAILED:
		device_log(device, LOG_INFO, "handshake failed: guest port %" PRIu64 ": %s",
			   report->third, handshake_reason(report->second));
		return NULL;
	case REPORT_CONNECTION_LIMIT:
		device_log(device, LOG_WARNING,
			   "guest refused: all %" PRIu64 " connections in use (%" PRIu64
			   " refused so far)",
			   report->first, report->second);
		return NULL;
	case REPORT_HANDSHAKE_LIMIT:
		device_log(device, LOG_WARNING,
			   "host program refused: %" PRIu64 " handshakes are open", report->first);
		return NULL;
	case REPORT_PACKET_DROPPED:
		device_log(device, LOG_WARNING,
			   "packet dropped: operation %" PRIu64 " (%" PRIu64 " dropped so far)",
			   report->second, report->first);
		return NULL;
	case REPORT_RATE_LIMIT:
		device_log(device, LOG_NOTICE,
			   "held up: %" PRIu64 " bytes in a second (%" PRIu64 " times so far)",
			   report->first, report->second);
		return NULL;
	case REPORT_MEMORY_LIMIT:
		device_log(device, LOG_WARNING,
			   "connection refused: all %" PRIu64
			   " bytes for buffers are set aside (%" PRIu64 " refused so far)",
			   report->first, report->second);
		return NULL;
	case REPORT_CONNECT_FAILED:
		device_log(device, LOG_INFO, "guest refused: host port %" PRIu64 ": %s",
			   report->first, report->second ? "no answer in 2 s" : "refused");
		return NULL;
	case REPORT_PEER_MISBEHAVED:
		device_log(device, LOG_WARNING,
			   "connection reset: guest port %" PRIu64 ", host port %" PRIu64
			   ": operation %" PRIu64 " against the rules",
			   report->second, report->first, report->third);
		return NULL;
	case REPORT_SHORTAGE:
		device_log(device, LOG_WARNING,
			   "connection reset: guest port %" PRIu64 ", host port %" PRIu64
			   ": its socket: %s",
			   report->second, report->first, error_text(report->third));
		return NULL;
	case REPORT_RING_POLLED:
		device_log(device, LOG_WARNING,
			   "ring %" PRIu64 " is looked at each millisecond: its kicks cannot be "
			   "waited for: %s",
			   report->first, error_text(report->second));
		return NULL;
	case REPORT_MESSAGE_TOO_LONG:
	case REPORT_MESSAGE_REFUSED:
	case REPORT_MESSAGES_UNREAD:
		log_message(device, report);
		return NULL;
	default:
		return "Report of an unknown event";
	}
}

static const char *on_closed(struct device *device, const Vsockd__Closed *closed)
{
	/* Its socket ends last: the other guest's worker knows by then how it ended. */
	if (endpoints_find(&device->endpoints, closed->endpoint, ENDPOINT_OPEN))
		siblings_closed(device, closed->endpoint, closed->is_reset);
	return endpoints_closed(&device->endpoints, closed->endpoint)
		       ? NULL
		       : "Closed for a connection that is not open";
}

static const char *on_opened(struct device *device, const Vsockd__Opened *opened)
{
	struct endpoint *endpoint =
		endpoints_find(&device->endpoints, opened->endpoint, ENDPOINT_OPEN);

	if (!endpoint || endpoint->has_ports)
		return "Opened for a connection that is not in its handshake";
	endpoint->guest_port = opened->guest_port;
	endpoint->port = opened->host_port;
	endpoint->has_ports = true;
	return NULL;
}

static const char *on_done(struct device *device, const struct worker *worker,
			   const Vsockd__Done *done)
{
	bool is_stale = false;
	const char *reason = handover_done(device, done, &is_stale);

	return reason || is_stale ? reason : sync_done(device, worker, done);
}

const char *device_message(struct device *device, const struct worker *worker,
			   const Vsockd__Envelope *envelope)
{
	if (envelope->body_case == VSOCKD__ENVELOPE__BODY_DONE)
		return on_done(device, worker, envelope->done);
	if (worker != device->worker)
		return "a message that is not a successor's";
	switch (envelope->body_case) {
	case VSOCKD__ENVELOPE__BODY_HANDOVER_DEVICE:
	case VSOCKD__ENVELOPE__BODY_HANDOVER_RING:
	case VSOCKD__ENVELOPE__BODY_HANDOVER_CONNECTIONS:
	case VSOCKD__ENVELOPE__BODY_HANDOVER_MORE:
	case VSOCKD__ENVELOPE__BODY_HANDOVER_LIST:
	case VSOCKD__ENVELOPE__BODY_HANDOVER_ORPHAN:
		return handover_message(device, envelope);
	case VSOCKD__ENVELOPE__BODY_CONNECT:
		return device_guest_connects(device, envelope->connect);
	case VSOCKD__ENVELOPE__BODY_CLOSED:
		return on_closed(device, envelope->closed);
	case VSOCKD__ENVELOPE__BODY_CANCEL:
		return siblings_cancel(device, envelope->cancel->request);
	case VSOCKD__ENVELOPE__BODY_ANSWERED:
		return siblings_answered(device, envelope->answered->endpoint);
	case VSOCKD__ENVELOPE__BODY_REPORT:
		return on_report(device, envelope->report);
	case VSOCKD__ENVELOPE__BODY_OPENED:
		return on_opened(device, envelope->opened);
	case VSOCKD__ENVELOPE__BODY_COUNTERS:
		return query_counters_told(device, envelope->counters);
	case VSOCKD__ENVELOPE__BODY_CONNECTION_INFO:
		return query_connection_told(device, envelope->connection_info);
	case VSOCKD__ENVELOPE__BODY_CONNECTIONS_END:
		return query_connections_ended(device, envelope->connections_end);
	case VSOCKD__ENVELOPE__BODY_NOTIFY:
		return notify_message(device, envelope->notify);
	case VSOCKD__ENVELOPE__BODY_STATE_CONNECTION:
		return restore_state_connection(device, envelope->state_connection);
	case VSOCKD__ENVELOPE__BODY_STATE_INFO:
		return restore_state_info(device, envelope->state_info);
	case VSOCKD__ENVELOPE__BODY_STATE_DONE:
		return restore_state_done(device, envelope->state_done);
	case VSOCKD__ENVELOPE__BODY_RESET_ANNOUNCED:
		return restore_reset_announced(device, envelope->reset_announced);
	case VSOCKD__ENVELOPE__BODY_RESET_SENT:
		return restore_reset_sent(device);
	case VSOCKD__ENVELOPE__BODY_RESET_HANDLED:
		return restore_reset_handled(device);
	default:
		return "message without a handler";
	}
}

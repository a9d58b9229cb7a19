/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the front asks a worker besides commands: its counters, and its
 * connections, a few at a time. One question is out at a time for a device; who
 * wants to know asks again in each round of the loop until it is answered. A
 * worker is not believed: an answer has the size and the order that was asked
 * for, or the worker is killed.
 *
 * Counters of workers that ended are added up as they were last told; so what is
 * known of a device never goes down.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ipc/message.h"
#include "ipc/observation.h"

struct device;
struct worker;

/* A connection as the worker told of it, every number checked for its bounds only. */
struct query_connection {
	uint32_t endpoint, state;
	bool is_from_host;
	uint32_t guest_port, host_port, type;
	uint64_t to_guest, from_guest, age;
	uint32_t guest_room, host_room, n_buffered;
};

struct query {
	/* private */
	const struct worker *worker; /* who was asked; NULL: nothing is out */
	bool is_for_counters;
	uint32_t number;
	uint64_t asked_at;	      /* ms */
	uint64_t counters_as_of;      /* ms: when they were asked for */
	uint32_t n_counters;	      /* told of the answer under way */
	const struct worker *counted; /* whose these are: */
	uint64_t live[COUNTER_MAX];
	uint64_t past[COUNTER_MAX]; /* of those before it */
	const void *owner;	    /* who wants the connections; NULL: nobody any more */
	bool is_answered;	    /* the owner has what it asked for: */
	uint32_t next;		    /* where to go on, or CONNECTIONS_END */
	size_t n_connections;
	struct query_connection connections[CONNECTIONS_PER_QUERY];
};

enum query_result {
	QUERY_READY,
	QUERY_WAIT, /* ask again in the next round */
	QUERY_NONE, /* there is no worker to ask, or it does not answer */
};

/* The counters of the device, not older than since (ms, as front->now). */
enum query_result query_counters(struct device *device, uint64_t since);
uint64_t query_counter(const struct device *device, enum counter counter);

/*
 * Connections from a place in the worker's table on. QUERY_READY: they are in
 * device->query until query_release(). The owner is any address of the caller's.
 */
enum query_result query_connections(struct device *device, const void *owner, uint32_t first);
void query_release(struct device *device, const void *owner);

/* Messages of the worker; the reason when they are not believed, or NULL. */
const char *query_counters_told(struct device *device, const Vsockd__Counters *counters);
const char *query_connection_told(struct device *device, const Vsockd__ConnectionInfo *info);
const char *query_connections_ended(struct device *device, const Vsockd__ConnectionsEnd *end);

/* Its worker is another one now, which counts on where that one stopped. */
void query_worker_replaced(struct device *device, const struct worker *former);
/* The worker of the device leaves. */
void query_worker_left(struct device *device, const struct worker *worker);

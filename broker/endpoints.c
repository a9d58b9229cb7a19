/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/endpoints.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static void forget_queues(struct endpoints *endpoints)
{
	for (size_t i = 0; i < 2 * (size_t)endpoints->n_max; i++)
		endpoints->requests[i] = ENDPOINT_NONE;
	endpoints->n_refusals = 0;
	endpoints->first_untold = ENDPOINT_NONE;
	endpoints->last_untold = ENDPOINT_NONE;
}

bool endpoints_init(struct endpoints *endpoints, uint32_t n_max)
{
	void *memory = calloc(1, endpoints_memory(n_max));

	if (!memory)
		return false;
	endpoints_place(endpoints, memory, n_max);
	endpoints_resize(endpoints, n_max);
	return true;
}

uint64_t endpoints_memory(uint32_t n_most)
{
	return (uint64_t)n_most * (sizeof(struct endpoint) + 2 * sizeof(uint32_t));
}

void endpoints_place(struct endpoints *endpoints, void *memory, uint32_t n_most)
{
	*endpoints = (struct endpoints){
		.all = memory,
		.requests = (uint32_t *)((struct endpoint *)memory + n_most),
		.first_free = ENDPOINT_NONE,
		.first_untold = ENDPOINT_NONE,
		.last_untold = ENDPOINT_NONE,
	};
}

void endpoints_resize(struct endpoints *endpoints, uint32_t n_max)
{
	for (uint32_t i = 0; i < n_max; i++) {
		endpoints->all[i].fd = -1;
		endpoints->all[i].peer_fd = -1;
		endpoints->all[i].next = i + 1 < n_max ? i + 1 : ENDPOINT_NONE;
	}
	endpoints->n_max = n_max;
	endpoints->first_free = n_max > 0 ? 0 : ENDPOINT_NONE;
	forget_queues(endpoints);
}

bool endpoints_are_full(const struct endpoints *endpoints)
{
	return endpoints->n_used + endpoints->n_peers >= endpoints->n_max;
}

uint32_t endpoints_take(struct endpoints *endpoints, enum endpoint_state state)
{
	uint32_t index = endpoints->first_free;
	struct endpoint *endpoint;

	if (endpoints_are_full(endpoints))
		return ENDPOINT_NONE;
	endpoint = &endpoints->all[index];
	endpoints->first_free = endpoint->next;
	endpoints->n_used++;
	*endpoint = (struct endpoint){
		.state = (uint8_t)state,
		.generation = (uint16_t)(endpoint->generation + 1),
		.type = ENDPOINT_STREAM,
		.fd = -1,
		.peer_fd = -1,
		.cid = ENDPOINT_HOST_CID,
		.other = ENDPOINT_NONE,
		.next = ENDPOINT_NONE,
	};
	return index;
}

static void close_peer(struct endpoints *endpoints, struct endpoint *endpoint)
{
	if (endpoint->peer_fd < 0)
		return;
	close(endpoint->peer_fd);
	endpoint->peer_fd = -1;
	endpoints->n_peers--;
}

static void close_fd(struct endpoints *endpoints, struct endpoint *endpoint)
{
	if (endpoint->fd >= 0)
		close(endpoint->fd);
	endpoint->fd = -1;
	close_peer(endpoints, endpoint);
}

void endpoints_release(struct endpoints *endpoints, uint32_t index)
{
	struct endpoint *endpoint = &endpoints->all[index];

	close_fd(endpoints, endpoint);
	endpoint->state = ENDPOINT_FREE;
	endpoint->next = endpoints->first_free;
	endpoints->first_free = index;
	endpoints->n_used--;
}

void endpoints_tell(struct endpoints *endpoints, uint32_t index)
{
	endpoints->all[index].next = ENDPOINT_NONE;
	if (endpoints->last_untold == ENDPOINT_NONE)
		endpoints->first_untold = index;
	else
		endpoints->all[endpoints->last_untold].next = index;
	endpoints->last_untold = index;
}

uint32_t endpoints_untold(const struct endpoints *endpoints)
{
	return endpoints->first_untold;
}

void endpoints_told(struct endpoints *endpoints)
{
	uint32_t index = endpoints->first_untold;
	struct endpoint *endpoint = &endpoints->all[index];

	endpoints->first_untold = endpoint->next;
	if (endpoints->first_untold == ENDPOINT_NONE)
		endpoints->last_untold = ENDPOINT_NONE;
	switch (endpoint->state) {
	case ENDPOINT_LOST:
		endpoint->state = ENDPOINT_RESETTING;
		return;
	case ENDPOINT_ENDING:
		close_peer(endpoints, endpoint);
		endpoint->state = ENDPOINT_OPEN;
		return;
	case ENDPOINT_GONE:
		endpoints_release(endpoints, index);
		return;
	default:
		break;
	}
	if (!endpoint->is_accepted)
		endpoints->requests[endpoint->request] = ENDPOINT_NONE;
	if (endpoint->state == ENDPOINT_REFUSED)
		endpoints_release(endpoints, index);
	else
		endpoint->state = ENDPOINT_OPEN;
}

bool endpoint_is_at_worker(const struct endpoint *endpoint)
{
	return endpoint->state == ENDPOINT_OPEN || endpoint->state == ENDPOINT_ENDING;
}

struct endpoint *endpoints_find(struct endpoints *endpoints, uint32_t index,
				enum endpoint_state state)
{
	if (index >= endpoints->n_max || endpoints->all[index].state != state)
		return NULL;
	return &endpoints->all[index];
}

bool endpoints_closed(struct endpoints *endpoints, uint32_t index)
{
	struct endpoint *endpoint;

	if (index >= endpoints->n_max)
		return false;
	endpoint = &endpoints->all[index];
	switch (endpoint->state) {
	case ENDPOINT_OPEN:
	case ENDPOINT_RESETTING:
		endpoints_release(endpoints, index);
		return true;
	case ENDPOINT_ENDING:
		close_fd(endpoints, endpoint);
		endpoint->state = ENDPOINT_GONE;
		return true;
	default:
		return false;
	}
}

void endpoints_refuse(struct endpoints *endpoints, uint32_t request)
{
	endpoints->requests[request] = ENDPOINT_REFUSAL;
	endpoints->n_refusals++;
}

uint32_t endpoints_refusal(const struct endpoints *endpoints)
{
	if (endpoints->n_refusals == 0)
		return ENDPOINT_NONE;
	for (uint32_t i = 0; i < 2 * endpoints->n_max; i++)
		if (endpoints->requests[i] == ENDPOINT_REFUSAL)
			return i;
	return ENDPOINT_NONE;
}

void endpoints_refusal_told(struct endpoints *endpoints, uint32_t request)
{
	endpoints->requests[request] = ENDPOINT_NONE;
	endpoints->n_refusals--;
}

static void refuse(struct endpoints *endpoints, struct endpoint *endpoint, int status)
{
	close_fd(endpoints, endpoint);
	endpoint->status = status;
	endpoint->state = ENDPOINT_REFUSED;
}

void endpoints_end(struct endpoints *endpoints, uint32_t index, int peer_fd)
{
	struct endpoint *endpoint = &endpoints->all[index];

	if (peer_fd >= 0 && endpoint->state == ENDPOINT_OPEN && !endpoints_are_full(endpoints)) {
		endpoint->peer_fd = peer_fd;
		endpoints->n_peers++;
	} else if (peer_fd >= 0) {
		close(peer_fd);
	}
	switch (endpoint->state) {
	case ENDPOINT_OPEN:
		endpoint->state = ENDPOINT_ENDING;
		endpoints_tell(endpoints, index);
		return;
	case ENDPOINT_CONNECTING:
		refuse(endpoints, endpoint, -ECONNREFUSED);
		endpoints_tell(endpoints, index);
		return;
	case ENDPOINT_WAITING: /* stands in the list */
		if (!endpoint->is_accepted) {
			refuse(endpoints, endpoint, -ECONNRESET);
			return;
		}
		close_fd(endpoints, endpoint);
		endpoint->state = ENDPOINT_GONE;
		return;
	default:
		return;
	}
}

uint32_t endpoints_lose(struct endpoints *endpoints)
{
	uint32_t n_open = 0;

	forget_queues(endpoints);
	for (uint32_t i = 0; i < endpoints->n_max; i++) {
		struct endpoint *endpoint = &endpoints->all[i];

		n_open += endpoint_is_at_worker(endpoint);
		if (endpoint->state == ENDPOINT_FREE)
			continue;
		if (!endpoint->has_ports || endpoint->state == ENDPOINT_GONE) {
			endpoints_release(endpoints, i);
			continue;
		}
		close_fd(endpoints, endpoint);
		endpoint->state = ENDPOINT_LOST;
		endpoints_tell(endpoints, i);
	}
	return n_open;
}

void endpoints_clear(struct endpoints *endpoints)
{
	forget_queues(endpoints);
	for (uint32_t i = 0; i < endpoints->n_max; i++)
		if (endpoints->all[i].state != ENDPOINT_FREE)
			endpoints_release(endpoints, i);
}

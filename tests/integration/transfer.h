/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Bytes that run both ways at once over one connection of a guest to a host
 * program, checked one by one: so that something can be done to the device in the
 * middle of them. Fails the cmocka test by an assertion when a byte is wrong or
 * nothing moves any more.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/integration/setup.h"

struct transfer {
	struct setup *setup;
	size_t vm;
	struct guest_connection *connection;
	struct host_stream stream;
	size_t len;	      /* bytes each way */
	size_t n_to_host;     /* given to the guest's socket */
	size_t n_to_guest;    /* checked behind it */
	size_t n_host_looked; /* checked of what the host program received */
	bool is_wrong;
	uint8_t *bytes[2]; /* to the host, to the guest */
};

/* Connect to a host program at that port, which begins to send. Nothing is polled yet. */
void transfer_start(struct transfer *transfer, struct setup *setup, size_t vm, uint32_t port,
		    size_t len);

/* Move what can be moved now, waiting at most so many milliseconds. */
void transfer_step(struct transfer *transfer, int milliseconds);

/* Until each direction has moved n bytes, from end to end. */
void transfer_run_to(struct transfer *transfer, size_t n);

/* To the end, then close in an orderly way. */
void transfer_finish(struct transfer *transfer);

/*
 * Instead of transfer_finish(): both ends lose their connection within so many
 * milliseconds, and what arrived before was right.
 */
void transfer_expect_loss(struct transfer *transfer, int milliseconds);

/* Instead of both: the guest has ended already. */
void transfer_abandon(struct transfer *transfer);

/* All of it at once. */
void transfer_all(struct setup *setup, size_t vm, uint32_t port, size_t len);

/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The metrics on a unix socket of their own, for whoever scrapes: one request of
 * HTTP, one answer, the end. Who may write to the socket may ask, and can do
 * nothing else. A client has some seconds and a few KiB for its request; what it
 * does not take is not made.
 *
 * The exporter, which answers others by TCP, is a client as well, on a channel of its
 * own that lasts (ipc/export.h). It is trusted no further than the others, and
 * nothing waits for it.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* At a time; further ones wait in the backlog. */
#define SCRAPE_CLIENTS_MAX 8

struct front;

/*
 * Before the front is confined. The listener, and the channel to the exporter, are -1
 * if there is none, and stay the caller's. false: no memory.
 */
bool scrape_init(struct front *front, int listener, int exporter);
void scrape_accept(struct front *front);
void scrape_event(struct front *front, size_t client, uint32_t events);
/* At the end of each round. */
void scrape_run(struct front *front);
uint64_t scrape_deadline(const struct front *front);

/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The metrics on a unix socket of their own, for whoever scrapes: one request of
 * HTTP, one answer, the end. Who may write to the socket may ask, and can do
 * nothing else. A client has some seconds and a few KiB for its request; what it
 * does not take is not made.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* At a time; further ones wait in the backlog. */
#define SCRAPE_CLIENTS_MAX 8

struct front;

/* Before the front is confined; the socket stays the caller's. false: no memory. */
bool scrape_init(struct front *front, int listener);
void scrape_accept(struct front *front);
void scrape_event(struct front *front, size_t client, uint32_t events);
/* At the end of each round. */
void scrape_run(struct front *front);
uint64_t scrape_deadline(const struct front *front);

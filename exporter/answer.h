/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The answers of the exporter. The metrics are asked of the front and kept in one of a
 * few texts until the last client has its copy; who asks again at once gets the same
 * one. So neither a flood of requests nor clients that read slowly cost the front
 * more than ten scrapes a second.
 */

#include <microhttpd.h>
#include <stdbool.h>

/* Before the walls stand: what is always the same, and the memory. false: none left. */
bool answer_init(int channel);

/* The metrics; a refusal if the front does not answer or too many clients are slow. */
struct MHD_Response *answer_metrics(unsigned int *ret_status);

struct MHD_Response *answer_not_found(void);
struct MHD_Response *answer_not_allowed(void);

/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Names of numbers and bits, as the specifications have them, in lower case. */

#include <stdint.h>

#define NAMES_MAX 512

/* enum control_vm_state */
const char *names_state(uint32_t state);

/* enum connection_report */
const char *names_connection(uint32_t state);

/* enum control_restore */
const char *names_restore(uint32_t restore);

/* The bits that are set, by name where there is one, joined by commas; "-": none. */
const char *names_features(uint64_t features, char text[static NAMES_MAX]);
const char *names_protocol_features(uint64_t features, char text[static NAMES_MAX]);

/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What vsockd holds while nobody is connected, from the first to the last time. For main.c. */

#include "tests/frontend/daemon.h"

/* Before anybody came. */
void rest_begin(struct daemon *daemon);

/* Waits until it is so again; fails when that does not happen. */
void rest_check(struct daemon *daemon);

/* One line of how it was the last time. */
const char *rest_says(void);

/* Of main.c: wait, and look after the others. */
void look_after(int milliseconds);

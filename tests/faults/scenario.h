/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Two lives of a guest beside a neighbour, at a vsockd that fails as a plan says. In the
 * first life things may go wrong, but nothing in silence: what does not work ends, on
 * both ends, and no byte that came was another one than was sent. In the second life,
 * and for the neighbour always, all is as if nothing had been. Clocks that may be set
 * jump meanwhile, and nobody looks at them.
 */

#include <stdbool.h>

#include "tests/faults/plan.h"

/*
 * From start to end; a cmocka assertion fails when a promise was broken. The programs are
 * $VSOCKD and $VSOCKD_WORKER, linked with the shim, and look for the plan by
 * PLAN_VARIABLE. true: the first life was disturbed, or vsockd did not start.
 */
bool scenario_run(struct plan *plan);

/* When an assertion has failed: the log goes to stderr, and everything is ended. */
void scenario_give_up(void);

/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A second worker beside the rig's, and the front that hands the device over to
 * it: everything the session holds first, then what the first one says, message by
 * message, through sockets that hold only a few. Ends the test when something is
 * not as it has to be.
 */

#include "tests/unit/device_rig.h"

struct rig_worker {
	struct device *device;
	int *front, *epoll, *pool;
};

extern struct rig_worker rig_first; /* the one of rig.device */
extern struct rig_worker rig_other;
extern int rig_log_fd; /* of the dirty log, when there is one; -1 */

/*
 * What the first worker says, on its way: it may be changed, and so may the tape, of
 * which rig.device has the pool. false: it gets lost.
 */
typedef bool rig_tamper(Vsockd__Envelope *envelope);

/* To another worker and back again: whatever is not handed over is lost twice. */
void rig_hand_over(void);

/* The steps of it, for who wants to look in between, or to go no further. */
void rig_make_other(void); /* rig_other is told all that the session holds */
/* Until the first has told all, or after n messages. */
void rig_relay(rig_tamper *tamper, uint32_t n_max);
int rig_check_other(void);
void rig_commit_other(void); /* back to rig.device in the same way */
void rig_resume_first(void); /* and rig_other is gone */
void rig_end_other(void);
void rig_run_worker(const struct rig_worker *worker);
int rig_command_to(const struct rig_worker *worker, Vsockd__Envelope *envelope, int fd);
/* Does a successor believe in a connection that is like this one? */
bool rig_is_believed(const struct connection *connection);

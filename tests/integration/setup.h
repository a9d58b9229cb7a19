/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What most integration tests stand on: vsockd with some VMs in a temporary
 * directory, guests at its sockets, and an end that looks at everything that
 * has to be true of every run. The program is $VSOCKD, its worker $VSOCKD_WORKER.
 * VM number i (from 0) has guest CID 3 + i, the vhost-user socket "vm<i>" and the
 * uds-path "host<i>" in that directory.
 *
 *	struct setup *setup = *state;
 *	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
 *	...
 *	cmocka_unit_test_setup_teardown(test_x, setup_start_one, setup_end)
 *
 * With SETUP_REPLACES=n in the environment the workers of all VMs are replaced again
 * and again meanwhile, with n ms between two: no test may notice.
 *
 * All of it fails the cmocka test by an assertion when something is wrong.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/frontend/daemon.h"
#include "tests/frontend/guest.h"
#include "tests/frontend/host.h"

#define SETUP_VMS_MAX 4
#define SETUP_LIMIT   SOCKET_TIMEOUT /* ms, of one wait */

struct setup {
	struct daemon daemon;
	size_t n_vms;
	char sockets[SETUP_VMS_MAX][108];   /* vhost-user */
	char uds_paths[SETUP_VMS_MAX][108]; /* host programs */
	int n_fds;	 /* of all processes of vsockd while nobody is connected */
	int n_spare_fds; /* private: of them, those of the one spare worker */
	struct guest guests[SETUP_VMS_MAX];
	bool has_guest[SETUP_VMS_MAX];
	pid_t workers[SETUP_VMS_MAX]; /* private: as setup_worker() last found them */
	uid_t user;		      /* private: setup_choose_user() */
	pid_t replacer;		      /* private: 0: none */
	bool has_file;		      /* private: setup_choose_file() */
	int exit_code;		      /* writable, 0: how vsockd is to end */
	bool expects_report;	      /* writable: a sanitizer takes what is meant for a mistake */
	bool expects_violations;      /* writable: the test looks at them itself */
};

/* For cmocka_unit_test_setup_teardown(): one VM, two VMs, and the end of all. */
int setup_start_one(void **state);
int setup_start_two(void **state);
int setup_end(void **state);

/*
 * The same by hand. vm_options: NULL, or more of a --vm argument, as
 * "max-connections=8"; arguments: NULL, or NULL-terminated, for all VMs. "@" is
 * the directory. Returns when vsockd is ready and has a spare worker.
 */
void setup_start(struct setup *setup, size_t n_vms, const char *vm_options,
		 const char *const *arguments);

/* The same for a vsockd that may not start: its exit status then, as daemon_stop() has it. */
int setup_try_start(struct setup *setup, size_t n_vms, const char *vm_options,
		    const char *const *arguments);

/*
 * Before setup_start(), on a setup that is all zero: root starts vsockd as that user,
 * to whom the directory then belongs. For others it does nothing.
 */
void setup_choose_user(struct setup *setup, uid_t user);

/* Before setup_start(), in the same way: the VMs stand in "vsockd.yaml", not in options. */
void setup_choose_file(struct setup *setup);

/* Write such a file, with those VMs of SETUP_VMS_MAX for which vms has a bit. */
void setup_write_file(struct setup *setup, uint32_t vms, const char *vm_options);

/*
 * Ends the guests (no violations, unless expected), waits until vsockd has as many
 * fds and processes as before anybody came, sends SIGTERM: it exits with
 * setup->exit_code, without the report of a sanitizer, its sockets are gone and no
 * process of it is left. If it ended before, only what came after is looked at.
 */
void setup_stop(struct setup *setup);

/* Guest CID of VM number i. */
static inline uint64_t setup_cid(size_t vm)
{
	return 3 + vm;
}

/* Start the guest of this VM; socket and cid of options are filled in. */
struct guest *setup_guest(struct setup *setup, size_t vm, struct guest_options options);

/* End it; the next one may be started at once. */
void setup_end_guest(struct setup *setup, size_t vm);

/* Wait until nobody is connected any more and nothing was left behind. */
void setup_wait_idle(struct setup *setup);

/* Open fds of all processes of vsockd while all of them sleep; negative: an ordinary user can't
 * see. */
int setup_count_fds(const struct setup *setup);

/* Wait until all of its processes wait for an event: what was on its way has been dealt with. */
void setup_settle(const struct setup *setup);

/*
 * Wait until the predicate is true of the guest: in SETUP_LIMIT, and in so many milliseconds
 * but for what the machine is to blame for (tests/frontend/stopwatch.h).
 */
void setup_wait_within(struct setup *setup, struct guest *guest, bool (*predicate)(void *context),
		       void *context, int milliseconds);

/*
 * Once it has settled nobody works while nothing moves, not even a guest. With
 * SETUP_REPLACES there is always work, and nothing is looked at.
 */
void setup_check_nobody_spins(const struct setup *setup);

/*
 * The worker that serves the VM's guest, awaited if it is being replaced. An ordinary
 * user has to ask for each VM's before the first of them is replaced.
 */
pid_t setup_worker(struct setup *setup, size_t vm);

/*
 * A connection from the guest to a host program: its end here, and the other one in
 * *ret_stream, watched by the guest. The host side listens at that port meanwhile.
 */
struct guest_connection *setup_connect(struct setup *setup, size_t vm, uint32_t port,
				       struct host_stream *ret_stream);

/* Unwatch and end. */
void setup_end_stream(struct setup *setup, size_t vm, struct host_stream *stream);

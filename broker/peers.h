/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Which programs on the host may talk with a guest, by user and group. The kernel
 * knows who connected a unix socket, or made it listen; of any other socket nobody
 * is known. Ids are those of the user namespace that asks, so only the spawner can:
 * the front's has one id, and all the others look alike in there.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PEER_IDS_MAX 32

struct peer_ids {
	uint32_t ids[PEER_IDS_MAX];
	uint32_t n;
};

/* What is not in use is zero. */
struct peer_filter {
	struct peer_ids allowed_users, denied_users;
	struct peer_ids allowed_groups, denied_groups;
};

/* Who is at the other end. */
struct peer {
	uid_t user;
	gid_t group; /* the effective one; others count too */
};

enum {
	PEERS_E_DENIED = 1,
	PEERS_E_UNKNOWN, /* no unix socket: it has no user */
};

/* Does it say anything? */
bool peers_are_limited(const struct peer_filter *filter);

/*
 * Who is denied may not; where users or groups are allowed, nobody else may. With
 * whom is this unix socket connected, and may they? 0, PEERS_E_..., or negative errno;
 * on 0 and PEERS_E_DENIED *ret_peer is set.
 */
int peers_judge(const struct peer_filter *filter, int socket, struct peer *ret_peer);

/* The same for whom one knows already. groups: all that count. */
bool peers_pass(const struct peer_filter *filter, uid_t user, const gid_t *groups, size_t n_groups);

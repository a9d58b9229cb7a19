/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/peers.h"

#include <errno.h>
#include <limits.h>
#include <sys/socket.h>

static bool has(const struct peer_ids *ids, uint32_t id)
{
	for (uint32_t i = 0; i < ids->n; i++)
		if (ids->ids[i] == id)
			return true;
	return false;
}

static bool has_one_of(const struct peer_ids *ids, const gid_t *groups, size_t n_groups)
{
	for (size_t i = 0; ids->n > 0 && i < n_groups; i++)
		if (has(ids, groups[i]))
			return true;
	return false;
}

static bool has_groups(const struct peer_filter *filter)
{
	return filter->allowed_groups.n > 0 || filter->denied_groups.n > 0;
}

bool peers_are_limited(const struct peer_filter *filter)
{
	return filter->allowed_users.n > 0 || filter->denied_users.n > 0 || has_groups(filter);
}

bool peers_pass(const struct peer_filter *filter, uid_t user, const gid_t *groups, size_t n_groups)
{
	if (has(&filter->denied_users, user) ||
	    has_one_of(&filter->denied_groups, groups, n_groups))
		return false;
	if (filter->allowed_users.n == 0 && filter->allowed_groups.n == 0)
		return true;
	return has(&filter->allowed_users, user) ||
	       has_one_of(&filter->allowed_groups, groups, n_groups);
}

static bool is_unix(int socket)
{
	int domain;
	socklen_t len = sizeof(domain);

	return getsockopt(socket, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_UNIX;
}

int peers_judge(const struct peer_filter *filter, int socket, struct peer *ret_peer)
{
	/* As many as a process may have, and its effective one. */
	static gid_t groups[NGROUPS_MAX + 1];
	struct ucred credentials;
	socklen_t len = sizeof(credentials), groups_len = sizeof(groups) - sizeof(groups[0]);

	if (!is_unix(socket))
		return PEERS_E_UNKNOWN;
	if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &len) < 0)
		return -errno;
	if (!has_groups(filter))
		groups_len = 0;
	else if (getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, groups + 1, &groups_len) < 0)
		return -errno;
	groups[0] = credentials.gid;
	*ret_peer = (struct peer){credentials.uid, credentials.gid};
	return peers_pass(filter, credentials.uid, groups, 1 + groups_len / sizeof(groups[0]))
		       ? 0
		       : PEERS_E_DENIED;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/configuration_internal.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <sysexits.h>

#define MODE_MAX 0777

/* The number in text; false when it is none that can be an id: -1 means "unchanged". */
static bool parse_id(const char *text, uint32_t *ret)
{
	uint64_t number;

	if (configuration_parse_number(text, 10, &number) || number >= UINT32_MAX)
		return false;
	*ret = (uint32_t)number;
	return true;
}

static int read_mode(const struct vm_arguments *arguments, enum key key, mode_t *ret,
		     struct configuration_error *ret_error)
{
	const char *text = arguments->values[key];
	uint64_t number;
	int r;

	if (!text)
		return 0;
	r = configuration_parse_number(text, 8, &number);
	if (r == -EINVAL)
		return configuration_fail_at(ret_error, EX_USAGE, arguments, key,
					     "%s " QUOTED
					     ": not an octal number; give 0 to %o, as 660",
					     configuration_keys[key], text, MODE_MAX);
	if (r < 0 || number > MODE_MAX)
		return configuration_fail_at(ret_error, EX_DATAERR, arguments, key,
					     "%s " QUOTED ": too large; give 0 to %o, as 660",
					     configuration_keys[key], text, MODE_MAX);
	*ret = (mode_t)number;
	return 0;
}

static bool find_user(const char *text, uint32_t *ret)
{
	const struct passwd *user;

	if (parse_id(text, ret))
		return true;
	user = getpwnam(text);
	if (user)
		*ret = user->pw_uid;
	return user;
}

static bool find_group(const char *text, uint32_t *ret)
{
	const struct group *group;

	if (parse_id(text, ret))
		return true;
	group = getgrnam(text);
	if (group)
		*ret = group->gr_gid;
	return group;
}

static int read_owner(const struct vm_arguments *arguments, enum key key, uid_t *ret,
		      struct configuration_error *ret_error)
{
	const char *text = arguments->values[key];

	if (!text || find_user(text, ret))
		return 0;
	return configuration_fail_at(ret_error, EX_NOUSER, arguments, key,
				     "%s " QUOTED
				     ": there is no such user; give a name or a number",
				     configuration_keys[key], text);
}

static int read_group(const struct vm_arguments *arguments, enum key key, gid_t *ret,
		      struct configuration_error *ret_error)
{
	const char *text = arguments->values[key];

	if (!text || find_group(text, ret))
		return 0;
	return configuration_fail_at(ret_error, EX_NOUSER, arguments, key,
				     "%s " QUOTED
				     ": there is no such group; give a name or a number",
				     configuration_keys[key], text);
}

int configuration_read_access(const struct vm_arguments *arguments, enum key mode,
			      struct listener_access *ret, struct configuration_error *ret_error)
{
	struct listener_access access = LISTENER_OWNER_ONLY;
	int r = read_mode(arguments, mode, &access.mode, ret_error);

	if (!r)
		r = read_owner(arguments, mode + 1, &access.owner, ret_error);
	if (!r)
		r = read_group(arguments, mode + 2, &access.group, ret_error);
	if (!r)
		*ret = access;
	return r;
}

static int read_ids(const struct vm_arguments *arguments, enum key key,
		    bool (*find)(const char *text, uint32_t *ret), struct peer_ids *ret,
		    struct configuration_error *ret_error)
{
	const char *rest = arguments->values[key];

	while (rest) {
		size_t len = strcspn(rest, "+");
		char name[64]; /* longer than any that a system has */

		(void)snprintf(name, sizeof(name), "%.*s",
			       len < sizeof(name) ? (int)len : (int)sizeof(name), rest);
		if (ret->n == PEER_IDS_MAX)
			return configuration_fail_at(
				ret_error, EX_DATAERR, arguments, key,
				"%s " QUOTED ": give at most %d, joined by '+'",
				configuration_keys[key], arguments->values[key], PEER_IDS_MAX);
		if (len >= sizeof(name) || !find(name, &ret->ids[ret->n]))
			return configuration_fail_at(
				ret_error, EX_NOUSER, arguments, key,
				"%s " QUOTED ": there is no such one; give names or numbers, "
				"joined by '+'",
				configuration_keys[key], name);
		ret->n++;
		rest = rest[len] ? rest + len + 1 : NULL;
	}
	return 0;
}

int configuration_read_peers(const struct vm_arguments *arguments, struct peer_filter *ret,
			     struct configuration_error *ret_error)
{
	int r = read_ids(arguments, KEY_ALLOW_UID, find_user, &ret->allowed_users, ret_error);

	if (!r)
		r = read_ids(arguments, KEY_DENY_UID, find_user, &ret->denied_users, ret_error);
	if (!r)
		r = read_ids(arguments, KEY_ALLOW_GID, find_group, &ret->allowed_groups, ret_error);
	if (!r)
		r = read_ids(arguments, KEY_DENY_GID, find_group, &ret->denied_groups, ret_error);
	return r;
}

int configuration_read_service(const struct vm_arguments *arguments, enum key path,
			       struct service_socket *ret, struct configuration_error *ret_error)
{
	int r;

	for (enum key key = path + 1; key <= path + 3 && !arguments->values[path]; key++)
		if (arguments->values[key])
			return configuration_fail_at(
				ret_error, EX_USAGE, arguments, key,
				arguments->lines[key] ? "%s is given without %s; add \"%s: PATH\""
						      : "--%s is given without --%s; add --%s PATH",
				configuration_keys[key], configuration_keys[path],
				configuration_keys[path]);
	if (!arguments->values[path])
		return 0;
	configuration_set_origin(arguments, path, ret->origin);
	r = configuration_read_access(arguments, path + 1, &ret->access, ret_error);
	return r ? r : configuration_read_path(arguments, path, &ret->path, ret_error);
}

int configuration_read_user(const struct vm_arguments *arguments,
			    struct configuration *configuration,
			    struct configuration_error *ret_error)
{
	const char *text = arguments->values[KEY_USER];
	const struct passwd *user;
	uint32_t id;

	if (!text)
		return 0;
	/* A number too must be known: else there is no group for it. */
	user = parse_id(text, &id) ? getpwuid(id) : getpwnam(text);
	if (!user)
		return configuration_fail_at(
			ret_error, EX_NOUSER, arguments, KEY_USER,
			"user " QUOTED ": there is no such user; create it, or name another", text);
	configuration->has_user = true;
	configuration->user = user->pw_uid;
	configuration->group = user->pw_gid;
	return 0;
}

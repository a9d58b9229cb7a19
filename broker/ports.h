/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Where the ports of a guest lead on the host, and what on the host leads to them:
 *
 *	PORT[-PORT]:ADDRESS
 *
 * with one of these addresses, where a port that is left out is the guest's:
 *
 *	unix:PATH	abstract:NAME	tcp[:IP][:PORT]	vsock:CID[:PORT]	deny
 *
 * IP is one of loopback, 127.0.0.1 unless it is given; IPv6 stands in brackets. A
 * listener has a single guest port and no deny, and its CID may be "any".
 *
 * Reading and looking up touches nothing; ports_connect() and ports_listen() make
 * sockets and are the spawner's.
 */

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

enum port_family {
	PORT_DENY,
	PORT_UNIX,
	PORT_ABSTRACT,
	PORT_TCP,
	PORT_VSOCK,
};

#define PORT_NAME_MAX 107 /* bytes of a path, or of an abstract name: sun_path holds one more */

struct port_address {
	enum port_family family;
	char name[PORT_NAME_MAX + 1]; /* UNIX, ABSTRACT */
	struct in6_addr ip;	      /* TCP; IPv4 as ::ffff:a.b.c.d */
	uint32_t cid;		      /* VSOCK */
	bool has_port;		      /* TCP, VSOCK: this one, not the guest's */
	uint32_t port;
};

struct port_rule {
	uint32_t first, last; /* of the guest */
	struct port_address address;
};

struct port_range {
	uint32_t first, last;
};

/* Which ports may be reached: what is denied may not; where any are allowed, no others may. */
#define PORT_RANGES_MAX 64

struct port_filter {
	struct port_range allowed[PORT_RANGES_MAX], denied[PORT_RANGES_MAX];
	uint32_t n_allowed, n_denied;
};

bool ports_is_same_filter(const struct port_filter *one, const struct port_filter *other);

bool ports_pass(const struct port_filter *filter, uint32_t port);

/* PORT or PORT-PORT, of len bytes. false: it is neither. */
bool ports_parse_range(const char *text, size_t len, struct port_range *ret);

/* Read one rule. NULL, or what is wrong with it: static, for behind the rule in quotes. */
const char *ports_parse_connect(const char *text, struct port_rule *ret);
const char *ports_parse_listen(const char *text, struct port_rule *ret);

/* The same for IP:PORT alone, where neither can be left out. */
const char *ports_parse_tcp(const char *text, struct port_address *ret);

/* The first rule that has this port, or NULL. */
const struct port_rule *ports_find(const struct port_rule *rules, size_t n_rules, uint32_t port);

/* The rule as it would be typed. */
#define PORT_TEXT_SIZE 192
void ports_print(const struct port_rule *rule, char ret[static PORT_TEXT_SIZE]);

/* An address by itself: the same place gives the same text. port: if it has none of its own. */
void ports_print_address(const struct port_address *address, uint32_t port,
			 char ret[static PORT_TEXT_SIZE]);

/* Is the socket bound there? */
bool ports_is_bound(int fd, const struct port_address *address, uint32_t port);

/*
 * A non-blocking socket that is connected, or on its way: 0, -EINPROGRESS, or
 * another negative errno and no fd. port: the guest's. type: SOCK_STREAM, or for
 * unix sockets SOCK_SEQPACKET, of which others are -EPROTONOSUPPORT.
 */
int ports_connect(const struct port_address *address, uint32_t port, int type, int *ret_fd);

/*
 * Can this host have such sockets at all? 0; -EAFNOSUPPORT for vsock without the
 * kernel's part, -EADDRNOTAVAIL for CID 1 without vsock_loopback. Other CIDs come
 * and go.
 */
int ports_check(const struct port_address *address);

/*
 * A non-blocking socket that listens, for any address but unix:, which
 * listener_open() makes. 0 or negative errno.
 */
int ports_listen(const struct port_address *address, uint32_t port, int *ret_fd);

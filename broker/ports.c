/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/ports.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/vm_sockets.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#define TCP_PORT_MAX 65535u

/* ---- reading ---- */

/* Decimal digits up to the end or to one of the characters in ends; NULL: no number. */
static const char *read_number(const char *text, const char *ends, uint32_t max, uint32_t *ret)
{
	uint64_t number = 0;
	size_t len = strspn(text, "0123456789");

	if (len == 0 || len > 10 || (text[len] && !strchr(ends, text[len])))
		return NULL;
	for (size_t i = 0; i < len; i++)
		number = number * 10 + (uint64_t)(text[i] - '0');
	if (number > max)
		return NULL;
	*ret = (uint32_t)number;
	return text + len;
}

static const char *read_name(const char *text, enum port_family family, struct port_address *ret)
{
	size_t len = strlen(text);

	if (len == 0)
		return "the name is empty";
	if (len > PORT_NAME_MAX)
		return "a unix socket allows a name of 107 bytes";
	if (family == PORT_UNIX && text[0] != '/')
		return "the path has to begin with a slash";
	ret->family = family;
	memcpy(ret->name, text, len + 1);
	return NULL;
}

static bool is_loopback(const struct in6_addr *ip)
{
	return IN6_IS_ADDR_LOOPBACK(ip) || (IN6_IS_ADDR_V4MAPPED(ip) && ip->s6_addr[12] == 127);
}

static bool read_ip(const char *text, size_t len, struct in6_addr *ret)
{
	char copy[INET6_ADDRSTRLEN + sizeof("::ffff:")];
	bool is_ipv6 = len > 2 && text[0] == '[' && text[len - 1] == ']';

	if (len >= INET6_ADDRSTRLEN)
		return false;
	if (is_ipv6)
		(void)snprintf(copy, sizeof(copy), "%.*s", (int)len - 2, text + 1);
	else
		(void)snprintf(copy, sizeof(copy), "::ffff:%.*s", (int)len, text);
	return inet_pton(AF_INET6, copy, ret) == 1;
}

static const char *read_tcp_port(const char *text, struct port_address *ret)
{
	if (!read_number(text, "", TCP_PORT_MAX, &ret->port) || ret->port == 0)
		return "a TCP port is a number from 1 to 65535";
	ret->has_port = true;
	return NULL;
}

static size_t ip_len(const char *text)
{
	return *text == '[' ? strcspn(text, "]") + (strchr(text, ']') != NULL) : strcspn(text, ":");
}

static const char not_loopback[] =
	"the address is not one of loopback; others are reached by any host";

const char *ports_parse_tcp(const char *text, struct port_address *ret)
{
	struct port_address address = {.family = PORT_TCP};
	size_t len = ip_len(text);
	const char *reason;

	if (!read_ip(text, len, &address.ip) || text[len] != ':')
		return "give an address and a port, as 127.0.0.1:9100 or [::1]:9100";
	if (!is_loopback(&address.ip))
		return not_loopback;
	reason = read_tcp_port(text + len + 1, &address);
	if (!reason)
		*ret = address;
	return reason;
}

/* Behind "tcp": nothing, ":PORT", ":IP" or ":IP:PORT". */
static const char *read_tcp(const char *text, struct port_address *ret)
{
	static const char loopback[] = "127.0.0.1";
	uint32_t unused;
	size_t len;

	ret->family = PORT_TCP;
	(void)read_ip(loopback, strlen(loopback), &ret->ip);
	if (!*text)
		return NULL;
	if (read_number(++text, "", UINT32_MAX, &unused))
		return read_tcp_port(text, ret);
	len = ip_len(text);
	if (!read_ip(text, len, &ret->ip) || (text[len] && text[len] != ':'))
		return "tcp is followed by an address, a port, or both";
	if (!is_loopback(&ret->ip))
		return not_loopback;
	return text[len] ? read_tcp_port(text + len + 1, ret) : NULL;
}

/* CID or CID:PORT. */
static const char *read_vsock(const char *text, bool is_listener, struct port_address *ret)
{
	static const char any[] = "any";
	const char *rest = NULL;

	ret->family = PORT_VSOCK;
	if (is_listener && strncmp(text, any, strlen(any)) == 0) {
		ret->cid = VMADDR_CID_ANY;
		rest = text + strlen(any);
	} else {
		rest = read_number(text, ":", VMADDR_CID_ANY - 1, &ret->cid);
	}
	if (!rest || (*rest && *rest != ':'))
		return is_listener ? "vsock is followed by a CID, or any"
				   : "vsock is followed by a CID";
	if (!*rest)
		return NULL;
	/* VMADDR_PORT_ANY stands for no port at all. */
	if (!read_number(rest + 1, "", VMADDR_PORT_ANY - 1, &ret->port))
		return "a vsock port is a number from 0 to 4294967294";
	ret->has_port = true;
	return NULL;
}

/* The text behind "NAME" or "NAME:", or NULL if it is another name. */
static const char *behind(const char *text, const char *name)
{
	size_t len = strlen(name);

	return strncmp(text, name, len) == 0 ? text + len : NULL;
}

static const char *read_address(const char *text, bool is_listener, struct port_address *ret)
{
	const char *rest;

	if ((rest = behind(text, "unix:")))
		return read_name(rest, PORT_UNIX, ret);
	if ((rest = behind(text, "abstract:")))
		return read_name(rest, PORT_ABSTRACT, ret);
	if ((rest = behind(text, "tcp")) && (!*rest || *rest == ':'))
		return read_tcp(rest, ret);
	if ((rest = behind(text, "vsock:")))
		return read_vsock(rest, is_listener, ret);
	if (!is_listener && strcmp(text, "deny") == 0)
		return NULL; /* PORT_DENY, as all is zero */
	return is_listener ? "an address begins with unix:, abstract:, tcp or vsock:"
			   : "an address begins with unix:, abstract:, tcp or vsock:, or is deny";
}

static const char *parse(const char *text, bool is_listener, struct port_rule *ret)
{
	struct port_rule rule = {0};
	const char *rest = read_number(text, "-:", UINT32_MAX, &rule.first), *reason;

	rule.last = rule.first;
	if (rest && *rest == '-')
		rest = read_number(rest + 1, ":", UINT32_MAX, &rule.last);
	if (!rest || *rest != ':')
		return "it does not begin with PORT: or PORT-PORT:";
	if (rule.last < rule.first)
		return "the range ends before it begins";
	if (is_listener && rule.last != rule.first)
		return "a listener has one port of the guest";
	reason = read_address(rest + 1, is_listener, &rule.address);
	if (reason)
		return reason;
	if (rule.address.family == PORT_TCP && !rule.address.has_port &&
	    (rule.first == 0 || rule.last > TCP_PORT_MAX))
		return "TCP has no such port; give the one it is to be";
	*ret = rule;
	return NULL;
}

const char *ports_parse_connect(const char *text, struct port_rule *ret)
{
	return parse(text, /* is_listener= */ false, ret);
}

const char *ports_parse_listen(const char *text, struct port_rule *ret)
{
	return parse(text, /* is_listener= */ true, ret);
}

const struct port_rule *ports_find(const struct port_rule *rules, size_t n_rules, uint32_t port)
{
	for (size_t i = 0; i < n_rules; i++)
		if (rules[i].first <= port && port <= rules[i].last)
			return &rules[i];
	return NULL;
}

static void print_address(const struct port_address *address, char *ret, size_t size)
{
	const struct in6_addr *ip = &address->ip;
	char text[INET6_ADDRSTRLEN] = "";

	switch (address->family) {
	case PORT_DENY:
		(void)snprintf(ret, size, "deny");
		return;
	case PORT_UNIX:
	case PORT_ABSTRACT:
		(void)snprintf(ret, size, "%s:%s",
			       address->family == PORT_UNIX ? "unix" : "abstract", address->name);
		return;
	case PORT_TCP:
		if (IN6_IS_ADDR_V4MAPPED(ip))
			(void)snprintf(ret, size, "tcp:%u.%u.%u.%u", ip->s6_addr[12],
				       ip->s6_addr[13], ip->s6_addr[14], ip->s6_addr[15]);
		else
			(void)snprintf(ret, size, "tcp:[%s]",
				       inet_ntop(AF_INET6, ip, text, sizeof(text)));
		return;
	case PORT_VSOCK:
		if (address->cid == VMADDR_CID_ANY)
			(void)snprintf(ret, size, "vsock:any");
		else
			(void)snprintf(ret, size, "vsock:%" PRIu32, address->cid);
		return;
	}
}

void ports_print(const struct port_rule *rule, char ret[static PORT_TEXT_SIZE])
{
	char address[PORT_NAME_MAX + 16], last[16] = "", port[16] = "";

	print_address(&rule->address, address, sizeof(address));
	if (rule->last != rule->first)
		(void)snprintf(last, sizeof(last), "-%" PRIu32, rule->last);
	if (rule->address.has_port)
		(void)snprintf(port, sizeof(port), ":%" PRIu32, rule->address.port);
	(void)snprintf(ret, PORT_TEXT_SIZE, "%" PRIu32 "%s:%s%s", rule->first, last, address, port);
}

static bool uses_port(const struct port_address *address)
{
	return address->family == PORT_TCP || address->family == PORT_VSOCK;
}

void ports_print_address(const struct port_address *address, uint32_t port,
			 char ret[static PORT_TEXT_SIZE])
{
	size_t len;

	print_address(address, ret, PORT_TEXT_SIZE);
	len = strlen(ret);
	if (uses_port(address))
		(void)snprintf(ret + len, PORT_TEXT_SIZE - len, ":%" PRIu32,
			       address->has_port ? address->port : port);
}

static bool is_in(const struct port_range *ranges, size_t n_ranges, uint32_t port)
{
	for (size_t i = 0; i < n_ranges; i++)
		if (ranges[i].first <= port && port <= ranges[i].last)
			return true;
	return false;
}

/* What is not in use is zero. */
bool ports_is_same_filter(const struct port_filter *one, const struct port_filter *other)
{
	return memcmp(one, other, sizeof(*one)) == 0;
}

bool ports_pass(const struct port_filter *filter, uint32_t port)
{
	if (is_in(filter->denied, filter->n_denied, port))
		return false;
	return filter->n_allowed == 0 || is_in(filter->allowed, filter->n_allowed, port);
}

bool ports_parse_range(const char *text, size_t len, struct port_range *ret)
{
	char copy[sizeof("4294967295-4294967295")];
	struct port_range range = {0};
	const char *rest;

	if (len >= sizeof(copy))
		return false;
	memcpy(copy, text, len);
	copy[len] = '\0';
	rest = read_number(copy, "-", UINT32_MAX, &range.first);
	range.last = range.first;
	if (rest && *rest == '-')
		rest = read_number(rest + 1, "", UINT32_MAX, &range.last);
	if (!rest || range.last < range.first)
		return false;
	*ret = range;
	return true;
}

/* ---- sockets ---- */

union socket_address {
	struct sockaddr any;
	struct sockaddr_un un;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
	struct sockaddr_vm vm;
};

static socklen_t fill_unix(const struct port_address *address, struct sockaddr_un *ret)
{
	bool is_abstract = address->family == PORT_ABSTRACT;
	size_t len = strlen(address->name);

	*ret = (struct sockaddr_un){.sun_family = AF_UNIX};
	memcpy(ret->sun_path + is_abstract, address->name, len);
	/* An abstract name has no zero behind it: it would be part of the name. */
	return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len + 1);
}

static socklen_t fill(const struct port_address *address, uint32_t port, union socket_address *ret)
{
	if (address->has_port)
		port = address->port;
	memset(ret, 0, sizeof(*ret));
	switch (address->family) {
	case PORT_TCP:
		if (IN6_IS_ADDR_V4MAPPED(&address->ip)) {
			ret->in.sin_family = AF_INET;
			ret->in.sin_port = htons((uint16_t)port);
			memcpy(&ret->in.sin_addr, &address->ip.s6_addr[12], 4);
			return sizeof(ret->in);
		}
		ret->in6.sin6_family = AF_INET6;
		ret->in6.sin6_port = htons((uint16_t)port);
		ret->in6.sin6_addr = address->ip;
		return sizeof(ret->in6);
	case PORT_VSOCK:
		ret->vm.svm_family = AF_VSOCK;
		ret->vm.svm_cid = address->cid;
		ret->vm.svm_port = port;
		return sizeof(ret->vm);
	default:
		return fill_unix(address, &ret->un);
	}
}

static int open_socket(const union socket_address *address, int type)
{
	int fd = socket(address->any.sa_family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	return fd < 0 ? -errno : fd;
}

int ports_connect(const struct port_address *address, uint32_t port, int type, int *ret_fd)
{
	union socket_address to;
	int fd, error = 0, on = 1;
	socklen_t len;

	if (address->family == PORT_DENY)
		return -EACCES;
	/* Others don't say how long a message is before it is fetched, or tear it apart. */
	if (type != SOCK_STREAM && address->family != PORT_UNIX && address->family != PORT_ABSTRACT)
		return -EPROTONOSUPPORT;
	len = fill(address, port, &to);
	fd = open_socket(&to, type);
	if (fd < 0)
		return fd;
	/* What a guest sends in pieces is not to wait for more. */
	if (address->family == PORT_TCP)
		(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (connect(fd, &to.any, len))
		error = errno;
	if (error && error != EINPROGRESS) {
		close(fd);
		return -error;
	}
	*ret_fd = fd;
	return -error;
}

int ports_check(const struct port_address *address)
{
	union socket_address at;
	int fd, status = 0;
	socklen_t len;

	if (address->family != PORT_VSOCK)
		return 0;
	len = fill(address, 0, &at);
	fd = open_socket(&at, SOCK_STREAM);
	if (fd < 0)
		return fd;
	at.vm.svm_port = VMADDR_PORT_ANY;
	if (address->cid == VMADDR_CID_LOCAL && bind(fd, &at.any, len))
		status = -errno;
	close(fd);
	return status;
}

static bool is_same(const union socket_address *one, const union socket_address *other,
		    socklen_t len)
{
	if (one->any.sa_family != other->any.sa_family)
		return false;
	switch (one->any.sa_family) {
	case AF_UNIX:
		/* A path may have a zero behind it, or not. */
		return one->un.sun_path[0] ? strncmp(one->un.sun_path, other->un.sun_path,
						     sizeof(one->un.sun_path)) == 0
					   : memcmp(&one->un, &other->un, len) == 0;
	case AF_INET:
		return one->in.sin_port == other->in.sin_port &&
		       one->in.sin_addr.s_addr == other->in.sin_addr.s_addr;
	case AF_INET6:
		return one->in6.sin6_port == other->in6.sin6_port &&
		       IN6_ARE_ADDR_EQUAL(&one->in6.sin6_addr, &other->in6.sin6_addr);
	case AF_VSOCK:
		return one->vm.svm_cid == other->vm.svm_cid &&
		       one->vm.svm_port == other->vm.svm_port;
	default:
		return false;
	}
}

bool ports_is_bound(int fd, const struct port_address *address, uint32_t port)
{
	union socket_address wanted, found = {0};
	socklen_t wanted_len = fill(address, port, &wanted), len = sizeof(found);

	if (getsockname(fd, &found.any, &len))
		return false;
	if (address->family == PORT_ABSTRACT && len != wanted_len)
		return false;
	return is_same(&wanted, &found, wanted_len);
}

int ports_listen(const struct port_address *address, uint32_t port, int *ret_fd)
{
	union socket_address at;
	socklen_t len = fill(address, port, &at);
	int fd = open_socket(&at, SOCK_STREAM), on = 1;

	if (fd < 0)
		return fd;
	/* Connections of a predecessor that are over do not keep the port. */
	if (address->family == PORT_TCP)
		(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, &at.any, len) || listen(fd, SOMAXCONN)) {
		int error = errno;

		close(fd);
		return -error;
	}
	*ret_fd = fd;
	return 0;
}

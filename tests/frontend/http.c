/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/frontend/http.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/frontend/host.h"
#include "tests/frontend/socket.h"

static struct sockaddr_in loopback(int port)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};

	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return at;
}

/* Below those that the kernel gives to whoever connects; each process begins elsewhere. */
#define PORT_FIRST 10000
#define PORTS	   20000

int http_free_port(void)
{
	static int n;

	for (int i = 0; i < PORTS; i++) {
		int port = PORT_FIRST + (getpid() * 37 + n++) % PORTS;
		struct sockaddr_in at = loopback(port);
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		bool is_free = fd >= 0 && bind(fd, (const struct sockaddr *)&at, sizeof(at)) == 0;

		if (fd < 0)
			return -errno;
		close(fd);
		if (is_free)
			return port;
	}
	return -EADDRINUSE;
}

int http_connect(int port)
{
	struct sockaddr_in at = loopback(port);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), error;

	if (fd < 0)
		return -errno;
	if (connect(fd, (const struct sockaddr *)&at, sizeof(at)) == 0 || errno == EINPROGRESS)
		return fd;
	error = errno;
	close(fd);
	return -error;
}

ssize_t http_read(int fd, char *ret_text, size_t size, int timeout)
{
	int64_t deadline = deadline_in(timeout);
	char rest[4096];
	ssize_t all = 0, n = 0;
	size_t len = 0;
	int r = 0;

	while (r == 0) {
		bool fits = len < size - 1;

		r = socket_wait(fd, POLLIN, deadline);
		if (r < 0)
			break;
		n = read(fd, fits ? ret_text + len : rest, fits ? size - 1 - len : sizeof(rest));
		if (n < 0 && errno == EAGAIN)
			continue;
		if (n <= 0)
			break;
		all += n;
		len += fits ? (size_t)n : 0;
	}
	if (r == 0 && n < 0)
		r = -errno;
	ret_text[len] = '\0';
	close(fd);
	return r < 0 ? r : all;
}

ssize_t http_ask(int port, const char *request, char *ret_text, size_t size, int timeout)
{
	int fd = http_connect(port);
	int r = fd < 0 ? fd : host_write(fd, request, strlen(request), timeout);

	if (r < 0 && fd >= 0)
		close(fd);
	return r < 0 ? r : http_read(fd, ret_text, size, timeout);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/log.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define LOG_LINE_MAX 1024

static int log_level = LOG_INFO;
static bool has_priorities;
static char *copy; /* NULL, or with so much room left: */
static size_t copy_size;

/* The variable is inherited; the stream may be another one by now (systemd.exec(5)). */
static bool is_journal(void)
{
	const char *text = getenv("JOURNAL_STREAM");
	uintmax_t device, inode;
	struct stat stream;

	return text && sscanf(text, "%ju:%ju", &device, &inode) == 2 &&
	       fstat(STDERR_FILENO, &stream) == 0 && stream.st_dev == device &&
	       stream.st_ino == inode;
}

void log_open(int level)
{
	log_level = level;
	has_priorities = is_journal();
}

void log_set_level(int level)
{
	log_level = level;
}

static const char *priority_name(int priority)
{
	switch (priority) {
	case LOG_ERR:
		return "error";
	case LOG_WARNING:
		return "warning";
	case LOG_NOTICE:
		return "notice";
	case LOG_INFO:
		return "info";
	default:
		return "debug";
	}
}

void log_copy(char *text, size_t size)
{
	copy = text;
	copy_size = size;
	if (text)
		*text = '\0';
}

static void add_copy(uint64_t cid, const char *text)
{
	char line[LOG_LINE_MAX + 32];
	int len;

	len = cid == LOG_NO_VM ? snprintf(line, sizeof(line), "%s\n", text)
			       : snprintf(line, sizeof(line), "VM %" PRIu64 ": %s\n", cid, text);
	if (len < 0 || (size_t)len >= sizeof(line) || (size_t)len >= copy_size)
		return;
	memcpy(copy, line, (size_t)len + 1);
	copy += len;
	copy_size -= (size_t)len;
}

void log_event(int priority, uint64_t cid, const char *format, ...)
{
	char line[LOG_LINE_MAX];
	size_t len = 0;
	va_list arguments;
	int n;

	if (copy) {
		va_start(arguments, format);
		(void)vsnprintf(line, sizeof(line), format, arguments);
		va_end(arguments);
		add_copy(cid, line);
	}
	if (priority > log_level)
		return;
	if (has_priorities)
		len += (size_t)snprintf(line, sizeof(line), "<%d>", priority);
	if (cid == LOG_NO_VM)
		len += (size_t)snprintf(line + len, sizeof(line) - len, "vm=- ");
	else
		len += (size_t)snprintf(line + len, sizeof(line) - len, "vm=%" PRIu64 " ", cid);
	len += (size_t)snprintf(line + len, sizeof(line) - len, "%s: ", priority_name(priority));

	va_start(arguments, format);
	n = vsnprintf(line + len, sizeof(line) - len - 1, format, arguments);
	va_end(arguments);
	if (n > 0)
		len += (size_t)n < sizeof(line) - len - 1 ? (size_t)n : sizeof(line) - len - 2;
	line[len++] = '\n';

	/* A log that can't be written must not stop the service. */
	struct iovec whole = {line, len};
	ssize_t written = writev(STDERR_FILENO, &whole, 1);
	(void)written;
}

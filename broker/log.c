/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#define LOG_LINE_MAX 1024

/* PRIORITY and the other fields next to the text. */
#define ENTRY_MAX (LOG_LINE_MAX + 256)

static int log_level = LOG_INFO;
static bool is_of_journal; /* stderr */
static int journal = -1;   /* its own socket */
static uint64_t n_lost;	   /* that it did not take */
static char *copy;	   /* NULL, or with so much room left: */
static size_t copy_size;

static const char *const ids[LOG_IDS] = {
	[LOG_ID_READY] = "6675369413af4260b19c6ae47aa3cef3",
	[LOG_ID_RELOADED] = "bf10d8c0b53345b5b299c0d01439009d",
	[LOG_ID_RELOAD_REFUSED] = "1fb7b463253c4679b8829a4badfea46d",
	[LOG_ID_FRONTEND_CONNECTED] = "527935bf1ec0445d97d95680f9c0caa2",
	[LOG_ID_FRONTEND_LEFT] = "26cc5445797843cf94bbf154e340afc6",
	[LOG_ID_WORKER_ENDED] = "64941afb71bc4dc8b4fc921c7a94acba",
	[LOG_ID_WORKER_LOST] = "a74ca897cbf146018fcefde099699734",
	[LOG_ID_WORKER_REPLACED] = "2e2ee0ba53a7481283d42b2dc0efa39e",
	[LOG_ID_DEVICE_FAILED] = "af2797a4caab43758a56f10e17d9f924",
	[LOG_ID_RING_BROKEN] = "805c0c283903490baefea51ef895b773",
	[LOG_ID_RESTORED] = "73ab4488ab8a4aadb4d32cd6c97ece81",
	[LOG_ID_SUSPENDED] = "08254f9d912c4a488b4a24db390dbcf9",
	[LOG_ID_LEFT_OUT] = "917fcbbb0713423a8a0923e6896593c2",
};

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
	is_of_journal = is_journal();
}

void log_set_level(int level)
{
	log_level = level;
}

void log_join_journal(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd;

	if (!is_of_journal || strlen(path) >= sizeof(address.sun_path))
		return;
	memcpy(address.sun_path, path, strlen(path) + 1);
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0) {
		close(fd);
		fd = -1;
	}
	journal = fd;
}

void log_settle(void)
{
	if (journal >= 0 && dup2(journal, STDERR_FILENO) >= 0) {
		close(journal);
		journal = STDERR_FILENO;
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

/* Whole or not at all; what is not taken is not waited for. */
static bool write_out(int fd, const struct iovec *whole)
{
	ssize_t n;

	do
		n = writev(fd, whole, 1);
	while (n < 0 && errno == EINTR);
	return n >= 0;
}

/* https://systemd.io/JOURNAL_NATIVE_PROTOCOL/: a datagram of lines, each a field. */
static bool send_entry(int priority, uint64_t cid, const char *text)
{
	const char *id = ids[priority >> 8];
	char entry[ENTRY_MAX];
	struct iovec whole = {entry, 0};
	int len;

	len = snprintf(entry, sizeof(entry), "PRIORITY=%d\nSYSLOG_IDENTIFIER=vsockd\n%s%s%s",
		       LOG_PRI(priority), id ? "MESSAGE_ID=" : "", id ? id : "", id ? "\n" : "");
	if (cid == LOG_NO_VM)
		len += snprintf(entry + len, sizeof(entry) - (size_t)len, "MESSAGE=%s\n", text);
	else
		len += snprintf(entry + len, sizeof(entry) - (size_t)len,
				"VSOCKD_CID=%" PRIu64 "\nMESSAGE=VM %" PRIu64 ": %s\n", cid, cid,
				text);
	whole.iov_len = (size_t)len; /* ENTRY_MAX has room for all of it */
	return write_out(journal, &whole);
}

static void tell_journal(int priority, uint64_t cid, const char *text)
{
	char lost[80];

	if (n_lost > 0) {
		(void)snprintf(lost, sizeof(lost),
			       "%" PRIu64 " lines left out: the journal did not take them", n_lost);
		if (send_entry(LOG_WARNING | LOG_AS(LOG_ID_LEFT_OUT), LOG_NO_VM, lost))
			n_lost = 0;
	}
	if (!send_entry(priority, cid, text))
		n_lost++;
}

static void write_line(int priority, uint64_t cid, const char *text)
{
	char line[ENTRY_MAX], prefix[8] = "", vm[24] = "-";
	struct iovec whole = {line, 0};
	int len;

	if (is_of_journal)
		(void)snprintf(prefix, sizeof(prefix), "<%d>", LOG_PRI(priority));
	if (cid != LOG_NO_VM)
		(void)snprintf(vm, sizeof(vm), "%" PRIu64, cid);
	len = snprintf(line, sizeof(line), "%svm=%s %s: %s\n", prefix, vm,
		       priority_name(LOG_PRI(priority)), text);
	whole.iov_len = (size_t)len; /* ENTRY_MAX has room for all of it */
	/* A log that can't be written must not stop the service. */
	(void)write_out(STDERR_FILENO, &whole);
}

void log_event(int priority, uint64_t cid, const char *format, ...)
{
	bool is_wanted = LOG_PRI(priority) <= log_level;
	char text[LOG_LINE_MAX];
	va_list arguments;

	if (!is_wanted && !copy)
		return;
	va_start(arguments, format);
	(void)vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	/* A path of the operator's may have one; here it would end the event. */
	for (char *c = strchr(text, '\n'); c; c = strchr(c, '\n'))
		*c = ' ';
	if (copy)
		add_copy(cid, text);
	if (is_wanted && journal >= 0)
		tell_journal(priority, cid, text);
	else if (is_wanted)
		write_line(priority, cid, text);
}

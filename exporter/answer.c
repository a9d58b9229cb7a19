/* SPDX-License-Identifier: Apache-2.0 */
#include "exporter/answer.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "ipc/export.h"

#define CONTENT_TYPE "application/openmetrics-text; version=1.0.0; charset=utf-8"

/* Each may be held by a client that reads slowly, for as long as main.c bears it. */
#define TEXTS_MAX 4
#define FRESH_MS  100
/* The front asks all workers, and gives those that hang some seconds itself. */
#define FRONT_MS 8000

struct text {
	bool is_used;
	size_t len;
	char bytes[EXPORT_ANSWER_MAX]; /* pages that were never written take no memory */
};

static struct text texts[TEXTS_MAX];
static int channel;

static struct MHD_Response *not_found, *not_allowed, *unavailable;
static struct MHD_Response *latest; /* or NULL */
static uint64_t latest_at;	    /* ms */

static uint64_t now_ns(void)
{
	struct timespec now = {0};

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static bool ends(const struct text *text)
{
	size_t len = strlen(EXPORT_END);

	return text->len >= len && memcmp(text->bytes + text->len - len, EXPORT_END, len) == 0;
}

static bool ask(uint64_t serial)
{
	struct iovec part = {&serial, sizeof(serial)};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	return sendmsg(channel, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(serial);
}

/*
 * One packet, or the end of the channel's time limit. false: no use to go on. What is
 * for another serial was asked by a former exporter, or too late.
 */
static bool take_packet(uint64_t serial, struct text *text)
{
	uint64_t of = 0;
	struct iovec parts[] = {{&of, sizeof(of)},
				{text->bytes + text->len, sizeof(text->bytes) - text->len}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
	ssize_t n = recvmsg(channel, &message, 0);

	if (n < 0 && errno == EINTR)
		return true;
	if (n < (ssize_t)sizeof(of) || message.msg_flags & MSG_TRUNC)
		return false;
	if (of == serial)
		text->len += (size_t)n - sizeof(of);
	return true;
}

static bool fetch(struct text *text)
{
	uint64_t serial = now_ns(), deadline = serial + FRONT_MS * UINT64_C(1000000);

	text->len = 0;
	/* A former exporter may have left more questions than are answered yet. */
	while (!ask(serial))
		if (errno != EAGAIN || !take_packet(serial, text) || now_ns() > deadline)
			return false;
	while (!ends(text))
		if (!take_packet(serial, text) || now_ns() > deadline)
			return false;
	return true;
}

/* No client needs it any more. */
static void put_back(void *text)
{
	((struct text *)text)->is_used = false;
}

static struct MHD_Response *make(const char *type, void *bytes, size_t len,
				 MHD_ContentReaderFreeCallback free_bytes, void *context)
{
	struct MHD_Response *response = MHD_create_response_from_buffer_with_free_callback_cls(
		len, bytes, free_bytes, context);

	if (response &&
	    (MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type) == MHD_NO ||
	     MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close") == MHD_NO)) {
		MHD_destroy_response(response);
		return NULL;
	}
	return response;
}

static struct MHD_Response *make_fresh(void)
{
	struct MHD_Response *response;

	for (size_t i = 0; i < TEXTS_MAX; i++) {
		struct text *text = &texts[i];

		if (text->is_used)
			continue;
		if (!fetch(text))
			return NULL;
		text->is_used = true;
		response = make(CONTENT_TYPE, text->bytes, text->len, put_back, text);
		if (!response)
			text->is_used = false;
		return response;
	}
	return NULL;
}

struct MHD_Response *answer_metrics(unsigned int *ret_status)
{
	uint64_t now = now_ns() / 1000000;

	if (!latest || now - latest_at >= FRESH_MS) {
		if (latest)
			MHD_destroy_response(latest);
		latest = make_fresh();
		/* As of before the question: what happens from now on is not in it. */
		latest_at = now;
	}
	*ret_status = latest ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE;
	return latest ? latest : unavailable;
}

struct MHD_Response *answer_not_found(void)
{
	return not_found;
}

struct MHD_Response *answer_not_allowed(void)
{
	return not_allowed;
}

static void keep(void *unused)
{
	(void)unused;
}

static struct MHD_Response *make_text(char *text)
{
	return make("text/plain; charset=utf-8", text, strlen(text), keep, NULL);
}

bool answer_init(int front)
{
	static char only_metrics[] = "only /metrics\n", only_get[] = "only GET and HEAD\n",
		    not_now[] = "not now\n";

	channel = front;
	not_found = make_text(only_metrics);
	not_allowed = make_text(only_get);
	unavailable = make_text(not_now);
	return not_found && not_allowed && unavailable &&
	       MHD_add_response_header(not_allowed, MHD_HTTP_HEADER_ALLOW, "GET, HEAD") ==
		       MHD_YES &&
	       MHD_add_response_header(unavailable, MHD_HTTP_HEADER_RETRY_AFTER, "1") == MHD_YES;
}

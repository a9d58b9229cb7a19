/* SPDX-License-Identifier: Apache-2.0 */

/*
 * vsockctl reload, add and remove. What vsockd serves stands in its configuration file:
 * a VM is added or removed there, and then vsockd is asked to read it again. Only
 * vsockd knows what it can serve, so its answer decides: if it refuses, the file gets
 * its former content back. vsockd itself takes no path from anybody who is connected.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sysexits.h>
#include <unistd.h>

#include "ctl/client.h"
#include "ctl/command.h"
#include "ctl/edit.h"

/* As vsockd: 4 KiB for each of 256 VMs. */
#define FILE_LEN_MAX ((size_t)256 * 4096)

struct text {
	char *bytes; /* zero behind it */
	size_t len;
};

/* ---- asking ---- */

static void take_text(void *context, const Control__Reply *reply)
{
	struct text *text = context;
	size_t len;
	char *bytes;

	if (reply->body_case != CONTROL__REPLY__BODY_TEXT)
		return;
	len = strlen(reply->text->text);
	bytes = realloc(text->bytes, text->len + len + 1);
	if (!bytes)
		return;
	memcpy(bytes + text->len, reply->text->text, len + 1);
	text->bytes = bytes;
	text->len += len;
}

static int ask(const struct context *context, enum control_command command, struct text *ret)
{
	const Control__Request request = client_request(command, 0);

	*ret = (struct text){.bytes = calloc(1, 1)};
	return client_ask(context->path, &request, take_text, ret);
}

/* What vsockd said, as it stands in its log. */
static int reload(const struct context *context)
{
	struct text said;
	int r = ask(context, CONTROL_RELOAD, &said);

	for (char *line = said.bytes ? strtok(said.bytes, "\n") : NULL; line;
	     line = strtok(NULL, "\n")) {
		if (r == 0)
			puts(line);
		else
			(void)complain(r, "%s", line);
	}
	free(said.bytes);
	return r;
}

int reload_run(const struct context *context)
{
	return reload(context);
}

/* ---- the file ---- */

struct file {
	struct text path, content;
	int fd; /* locked: others who edit wait */
	struct stat status;
};

static int fail(const struct file *file, const char *what)
{
	return complain(EX_NOINPUT, "\"%s\": %s%s", file->path.bytes, what, strerror(errno));
}

static int read_content(struct file *file)
{
	ssize_t n = 1;

	file->content.bytes = calloc(1, FILE_LEN_MAX + 1);
	while (file->content.bytes && n > 0 && file->content.len < FILE_LEN_MAX) {
		n = read(file->fd, file->content.bytes + file->content.len,
			 FILE_LEN_MAX - file->content.len);
		if (n > 0)
			file->content.len += (size_t)n;
	}
	return file->content.bytes && n == 0 ? 0 : fail(file, "cannot be read: ");
}

/* Whoever edits replaces it: what was waited for may not be the file any more. */
static int lock_file(struct file *file)
{
	struct stat now;

	for (;;) {
		file->fd = open(file->path.bytes, O_RDONLY | O_CLOEXEC);
		if (file->fd < 0)
			return fail(file, "");
		if (flock(file->fd, LOCK_EX) < 0 || fstat(file->fd, &file->status) < 0)
			return fail(file, "cannot be locked: ");
		if (stat(file->path.bytes, &now) == 0 && now.st_ino == file->status.st_ino &&
		    now.st_dev == file->status.st_dev)
			return read_content(file);
		close(file->fd);
	}
}

static int open_file(const struct context *context, struct file *ret)
{
	int r;

	*ret = (struct file){.fd = -1};
	r = ask(context, CONTROL_FILE, &ret->path);
	return r == 0 ? lock_file(ret) : r;
}

static void close_file(struct file *file)
{
	if (file->fd >= 0)
		close(file->fd);
	free(file->path.bytes);
	free(file->content.bytes);
}

static bool write_all(int fd, const char *bytes, size_t len)
{
	while (len > 0) {
		ssize_t n = write(fd, bytes, len);

		if (n < 0)
			return false;
		bytes += n;
		len -= (size_t)n;
	}
	return fsync(fd) == 0;
}

/* At once or not at all, with the owner and mode of before. */
static int write_file(const struct file *file, const char *bytes, size_t len)
{
	char *path = NULL;
	int fd = -1, r = 0;

	if (asprintf(&path, "%s.XXXXXX", file->path.bytes) < 0)
		return fail(file, "");
	fd = mkostemp(path, O_CLOEXEC);
	if (fd < 0)
		r = fail(file, "no file can be made beside it: ");
	else if ((fchown(fd, file->status.st_uid, file->status.st_gid) < 0 &&
		  (file->status.st_uid != geteuid() || file->status.st_gid != getegid())) ||
		 fchmod(fd, file->status.st_mode & 07777) < 0 || !write_all(fd, bytes, len) ||
		 rename(path, file->path.bytes) < 0)
		r = fail(file, "cannot be replaced: ");
	if (r != 0 && fd >= 0)
		(void)unlink(path);
	if (fd >= 0)
		close(fd);
	free(path);
	return r;
}

static int take_up(const struct context *context, const struct file *file, const char *text)
{
	int r = write_file(file, text, strlen(text));

	if (r != 0)
		return r;
	r = reload(context);
	if (r != 0 && write_file(file, file->content.bytes, file->content.len) != 0)
		(void)complain(r, "\"%s\" keeps what was refused", file->path.bytes);
	return r;
}

static int fail_edit(const struct file *file, uint64_t cid, int error)
{
	switch (error) {
	case EDIT_E_YAML:
		return complain(EX_DATAERR, "\"%s\": no YAML with a list \"vms\"",
				file->path.bytes);
	case EDIT_E_EXISTS:
		return complain(EX_DATAERR, "\"%s\": there is a VM with CID %" PRIu64 " already",
				file->path.bytes, cid);
	case EDIT_E_ABSENT:
		return complain(EX_DATAERR, "\"%s\": there is no VM with CID %" PRIu64,
				file->path.bytes, cid);
	case EDIT_E_LAST:
		return complain(EX_DATAERR,
				"\"%s\": CID %" PRIu64
				" is the only VM; vsockd serves at least one",
				file->path.bytes, cid);
	case EDIT_E_FORM:
		return complain(EX_DATAERR,
				"\"%s\": its form is not understood; edit it by hand, then "
				"\"vsockctl reload\"",
				file->path.bytes);
	default:
		return complain(EX_OSERR, "%s", strerror(-error));
	}
}

/* ---- add ---- */

static bool is_list(const char *key, size_t len)
{
	return (len == 7 && strncmp(key, "connect", len) == 0) ||
	       (len == 6 && strncmp(key, "listen", len) == 0);
}

/* In single quotes nothing has a meaning but they themselves. */
static void put_quoted(FILE *out, const char *value)
{
	fputc('\'', out);
	for (; *value; value++) {
		if (*value == '\'')
			fputc('\'', out);
		fputc(*value, out);
	}
	fputc('\'', out);
}

static bool has_same_key(const char *one, const char *other)
{
	size_t len = strcspn(one, "=");

	return strcspn(other, "=") == len && strncmp(one, other, len) == 0;
}

/* All values of a key that is a list, of which this is the first one. */
static void put_list(FILE *out, char *const *arguments, int n)
{
	fputc('[', out);
	for (int i = 0; i < n; i++) {
		if (!has_same_key(arguments[0], arguments[i]))
			continue;
		fputs(i > 0 ? ", " : "", out);
		put_quoted(out, strchr(arguments[i], '=') + 1);
	}
	fputc(']', out);
}

static bool was_before(char *const *arguments, int i)
{
	for (int j = 0; j < i; j++)
		if (has_same_key(arguments[j], arguments[i]))
			return true;
	return false;
}

static int put_keys(FILE *out, char *const *arguments, int n)
{
	for (int i = 0; i < n; i++) {
		const char *argument = arguments[i];
		size_t len = strcspn(argument, "=");

		if (!argument[len] || len == 0 || argument[strcspn(argument, "\r\n")] ||
		    strspn(argument, "abcdefghijklmnopqrstuvwxyz-_") != len)
			return complain(EX_USAGE, "\"%.100s\": not KEY=VALUE", argument);
		if (was_before(arguments, i)) {
			if (is_list(argument, len))
				continue;
			return complain(EX_USAGE, "\"%.*s\" is given more than once", (int)len,
					argument);
		}
		fprintf(out, ", %.*s: ", (int)len, argument);
		if (is_list(argument, len))
			put_list(out, arguments + i, n - i);
		else
			put_quoted(out, argument + len + 1);
	}
	return 0;
}

/* The entry of the file. */
static int make_vm(uint64_t cid, char *const *arguments, int n, char **ret)
{
	size_t size;
	FILE *out = open_memstream(ret, &size);
	int r;

	if (!out)
		return complain(EX_OSERR, "%s", strerror(errno));
	fprintf(out, "{guest-cid: %" PRIu64, cid);
	r = put_keys(out, arguments, n);
	fputc('}', out);
	return fclose(out) == 0 ? r : complain(EX_OSERR, "%s", strerror(errno));
}

/* vm NULL: without it. */
static int change(const struct context *context, uint64_t cid, const char *vm)
{
	struct file file;
	char *text = NULL;
	int r = open_file(context, &file), error;

	if (r == 0) {
		error = vm ? edit_add(file.content.bytes, file.content.len, cid, vm, &text)
			   : edit_remove(file.content.bytes, file.content.len, cid, &text);
		r = error ? fail_edit(&file, cid, error) : take_up(context, &file, text);
	}
	free(text);
	close_file(&file);
	return r;
}

int add_run(const struct context *context)
{
	char *vm = NULL;
	uint64_t cid;
	int r = command_read_cid(context->argv[0], &cid);

	if (r == 0)
		r = make_vm(cid, context->argv + 1, context->argc - 1, &vm);
	if (r == 0)
		r = change(context, cid, vm);
	free(vm);
	return r;
}

int remove_run(const struct context *context)
{
	uint64_t cid;
	int r = command_read_cid(context->argv[0], &cid);

	return r == 0 ? change(context, cid, NULL) : r;
}

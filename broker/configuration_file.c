/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/configuration_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sysexits.h>
#include <unistd.h>

#include "broker/configuration_marks.h"

/* 4 KiB for each VM that there may be. */
#define FILE_LEN_MAX ((size_t)CONFIGURATION_VMS_MAX * 4096)

/* Longer than any value that is valid, so that its own check can say what is wrong. */
#define VALUE_LEN_MAX 4096

#define NAME_LEN_MAX 40

struct list {
	char **entries;
	uint32_t n;
};

/* Each key as it stands in configuration_keys, and with underscores, as the peer's file has it. */
struct values {
	char *plain[N_KEYS];
	char *underscored[N_KEYS];
	struct list lists[N_KEYS]; /* of keys that are lists: no name of those has a hyphen */
};

struct loaded {
	struct values globals;
	struct values *vms;
	uint32_t n_vms;
};

struct schema {
	char underscored[N_KEYS][NAME_LEN_MAX];
	struct cyaml_schema_field vm_fields[2 * N_KEYS + 1];
	struct cyaml_schema_field fields[2 * N_KEYS + 2]; /* "vms", and the end */
	struct cyaml_schema_value vm, file, entry;
};

static const struct cyaml_config cyaml = {
	.mem_fn = cyaml_mem,
	.flags = CYAML_CFG_DEFAULT,
};

static struct cyaml_schema_value text_of(enum cyaml_flag flags)
{
	return (struct cyaml_schema_value){
		.type = CYAML_STRING,
		.flags = flags,
		.data_size = sizeof(char),
		.string = {.min = 0, .max = VALUE_LEN_MAX},
	};
}

static struct cyaml_schema_field field_of(const char *name, size_t offset)
{
	return (struct cyaml_schema_field){
		.key = name,
		.data_offset = (uint32_t)offset,
		.value = text_of(CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL),
	};
}

static struct cyaml_schema_field list_of(const char *name, size_t offset,
					 const struct cyaml_schema_value *entry)
{
	return (struct cyaml_schema_field){
		.key = name,
		.data_offset = (uint32_t)(offset + offsetof(struct list, entries)),
		.count_offset = (uint32_t)(offset + offsetof(struct list, n)),
		.count_size = sizeof(uint32_t),
		.value =
			{
				.type = CYAML_SEQUENCE,
				.flags = CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL,
				.data_size = sizeof(char *),
				.sequence = {.entry = entry,
					     .min = 0,
					     .max = CONFIGURATION_RULES_MAX},
			},
	};
}

static void add_keys(struct schema *schema, struct cyaml_schema_field *fields, enum key first,
		     enum key end)
{
	for (enum key key = first; key < end; key++) {
		const char *name = configuration_keys[key];
		char *other = schema->underscored[key];

		if (configuration_is_list(key)) {
			*fields++ = list_of(
				name, offsetof(struct values, lists) + key * sizeof(struct list),
				&schema->entry);
			continue;
		}
		*fields++ = field_of(name, offsetof(struct values, plain) + key * sizeof(char *));
		if (!strchr(name, '-'))
			continue;
		(void)snprintf(other, NAME_LEN_MAX, "%s", name);
		for (char *c = other; *c; c++)
			if (*c == '-')
				*c = '_';
		*fields++ = field_of(other,
				     offsetof(struct values, underscored) + key * sizeof(char *));
	}
}

/* Made of configuration_keys: what the command line takes is taken here, too. */
static const struct schema *get_schema(void)
{
	static struct schema schema;

	schema = (struct schema){
		.vm = {CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct values, schema.vm_fields)},
		.file = {CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct loaded, schema.fields)},
		.entry = text_of(CYAML_FLAG_POINTER),
	};
	schema.fields[0] = (struct cyaml_schema_field)CYAML_FIELD_SEQUENCE_COUNT(
		"vms", CYAML_FLAG_POINTER, struct loaded, vms, n_vms, &schema.vm, 1,
		CONFIGURATION_VMS_MAX);
	add_keys(&schema, schema.vm_fields, (enum key)0, N_VM_KEYS);
	add_keys(&schema, schema.fields + 1, (enum key)N_SINGLE_VM_KEYS, N_KEYS);
	return &schema;
}

/* ---- reading ---- */

static int fail_file(const char *path, int code, const char *what,
		     struct configuration_error *ret_error)
{
	return configuration_fail(ret_error, code, "config " QUOTED ": %s", path, what);
}

static int read_bytes(const char *path, int fd, unsigned char *bytes, size_t *ret_len,
		      struct configuration_error *ret_error)
{
	size_t len = 0;
	ssize_t n;

	do {
		n = read(fd, bytes + len, FILE_LEN_MAX + 1 - len);
		if (n < 0)
			return fail_file(path, EX_NOINPUT, strerror(errno), ret_error);
		len += (size_t)n;
	} while (n > 0 && len <= FILE_LEN_MAX);
	if (len > FILE_LEN_MAX)
		return configuration_fail(ret_error, EX_CONFIG,
					  "config " QUOTED ": the file is larger than %zu bytes",
					  path, FILE_LEN_MAX);
	*ret_len = len;
	return 0;
}

static int read_all(const char *path, unsigned char *bytes, size_t *ret_len,
		    struct configuration_error *ret_error)
{
	/* Not to wait for the other end of what is no regular file, which is refused. */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat status;
	int r;

	if (fd < 0)
		return fail_file(path, errno == EACCES ? EX_NOPERM : EX_NOINPUT, strerror(errno),
				 ret_error);
	if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode))
		r = fail_file(path, EX_NOINPUT, "not a regular file", ret_error);
	else
		r = read_bytes(path, fd, bytes, ret_len, ret_error);
	close(fd);
	return r;
}

/* ---- what stands in it ---- */

/* An entry a line, as the command line's are joined. */
static int take_lists(struct marks *marks, yaml_node_t *mapping, const struct values *values,
		      struct vm_arguments *ret, struct configuration_error *ret_error)
{
	for (size_t key = 0; key < N_KEYS; key++) {
		const struct list *list = &values->lists[key];

		for (uint32_t i = 0; i < list->n; i++) {
			char *joined = configuration_join(ret->lists[key], list->entries[i]);

			if (!joined)
				return configuration_fail_memory(ret_error);
			free(ret->lists[key]);
			ret->lists[key] = joined;
		}
		ret->values[key] = ret->lists[key] ? ret->lists[key] : ret->values[key];
		if (list->n > 0)
			ret->lines[key] =
				marks_line(marks_value(marks, mapping, configuration_keys[key]));
	}
	return 0;
}

/* Each key in the one spelling that was chosen, with its line. */
static int take_values(const char *path, struct marks *marks, yaml_node_t *mapping,
		       const struct schema *schema, const struct values *values,
		       struct vm_arguments *ret, struct configuration_error *ret_error)
{
	ret->source = VM_FROM_FILE;
	ret->file = path;
	for (size_t key = 0; key < N_KEYS; key++) {
		const char *plain = values->plain[key], *other = values->underscored[key];
		const char *name = plain ? configuration_keys[key] : schema->underscored[key];

		if (!plain && !other)
			continue;
		if (plain && other)
			return configuration_fail(
				ret_error, EX_CONFIG,
				FILE_LINE "%s and %s are the same key; give one of them", path,
				marks_line(marks_value(marks, mapping, schema->underscored[key])),
				configuration_keys[key], schema->underscored[key]);
		ret->values[key] = plain ? plain : other;
		ret->lines[key] = marks_line(marks_value(marks, mapping, name));
	}
	return take_lists(marks, mapping, values, ret, ret_error);
}

static int take_all(const char *path, struct marks *marks, const struct schema *schema,
		    struct configuration_file *file, struct configuration_error *ret_error)
{
	const struct loaded *loaded = file->loaded;
	yaml_node_t *vms = marks_value(marks, NULL, "vms");
	int r = take_values(path, marks, NULL, schema, &loaded->globals, &file->globals, ret_error);

	file->vms = calloc(loaded->n_vms, sizeof(*file->vms));
	if (!file->vms)
		return configuration_fail_memory(ret_error);
	file->n_vms = loaded->n_vms;
	for (size_t i = 0; !r && i < loaded->n_vms; i++) {
		yaml_node_t *vm = marks_entry(marks, vms, i);

		file->vms[i].line = marks_line(vm);
		r = take_values(path, marks, vm, schema, &loaded->vms[i], &file->vms[i], ret_error);
	}
	return r;
}

static int fail_mistake(const char *path, const struct marks_mistake *mistake,
			struct configuration_error *ret_error)
{
	return configuration_fail(ret_error, EX_CONFIG, FILE_LINE "%s", path, mistake->line,
				  mistake->text);
}

static int load(const char *path, const unsigned char *bytes, size_t len,
		struct configuration_file *file, struct configuration_error *ret_error)
{
	const struct schema *schema = get_schema();
	struct marks_mistake mistake;
	struct marks marks;
	cyaml_err_t error;
	int r;

	if (!marks_load(bytes, len, &marks, &mistake))
		return fail_mistake(path, &mistake, ret_error);
	if (!marks_check(&marks, &schema->file, &mistake)) {
		marks_free(&marks);
		return fail_mistake(path, &mistake, ret_error);
	}
	error = cyaml_load_data(bytes, len, &cyaml, &schema->file, &file->loaded, NULL);
	if (error)
		r = fail_file(path, error == CYAML_ERR_OOM ? EX_OSERR : EX_CONFIG,
			      cyaml_strerror(error), ret_error);
	else
		r = take_all(path, &marks, schema, file, ret_error);
	marks_free(&marks);
	return r;
}

int configuration_read_file(const char *path, struct configuration_file *ret,
			    struct configuration_error *ret_error)
{
	struct configuration_file file = {.n_vms = 0};
	unsigned char *bytes = malloc(FILE_LEN_MAX + 1);
	size_t len = 0;
	int r;

	if (!bytes)
		return configuration_fail_memory(ret_error);
	r = read_all(path, bytes, &len, ret_error);
	if (!r)
		r = load(path, bytes, len, &file, ret_error);
	free(bytes);
	if (r)
		configuration_free_file(&file);
	else
		*ret = file;
	return r;
}

void configuration_free_file(struct configuration_file *file)
{
	for (size_t i = 0; i < file->n_vms; i++)
		for (size_t key = 0; key < N_KEYS; key++)
			free(file->vms[i].lists[key]);
	free(file->vms);
	if (file->loaded)
		(void)cyaml_free(&cyaml, &get_schema()->file, file->loaded, 0);
	*file = (struct configuration_file){.n_vms = 0};
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/edit.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

/* Of a VM whose entry names none; vsockd.yaml(5). */
#define CID_DEFAULT 3

struct file {
	const char *text;
	size_t len;
	yaml_document_t document;
	yaml_node_t *vms;
};

/* ---- what stands there ---- */

static bool load(const char *text, size_t len, yaml_document_t *ret)
{
	yaml_parser_t parser;
	bool is_good;

	if (!yaml_parser_initialize(&parser))
		return false;
	yaml_parser_set_input_string(&parser, (const unsigned char *)text, len);
	is_good = yaml_parser_load(&parser, ret);
	yaml_parser_delete(&parser);
	return is_good;
}

static yaml_node_t *value_of(yaml_document_t *document, const yaml_node_t *mapping, const char *key)
{
	for (const yaml_node_pair_t *pair = mapping->data.mapping.pairs.start;
	     pair < mapping->data.mapping.pairs.top; pair++) {
		const yaml_node_t *name = yaml_document_get_node(document, pair->key);

		if (name->type == YAML_SCALAR_NODE &&
		    strcmp((const char *)name->data.scalar.value, key) == 0)
			return yaml_document_get_node(document, pair->value);
	}
	return NULL;
}

/* In "vms", 0 for what is no number: vsockd will say so. */
static uint64_t cid_of(yaml_document_t *document, const yaml_node_t *vm)
{
	const yaml_node_t *value = NULL;

	if (vm->type == YAML_MAPPING_NODE) {
		value = value_of(document, vm, "guest-cid");
		if (!value)
			value = value_of(document, vm, "guest_cid");
		if (!value)
			return CID_DEFAULT;
	}
	return value && value->type == YAML_SCALAR_NODE
		       ? strtoull((const char *)value->data.scalar.value, NULL, 10)
		       : 0;
}

static size_t n_vms(const yaml_node_t *vms)
{
	return (size_t)(vms->data.sequence.items.top - vms->data.sequence.items.start);
}

static yaml_node_t *vm_at(yaml_document_t *document, const yaml_node_t *vms, size_t i)
{
	return yaml_document_get_node(document, vms->data.sequence.items.start[i]);
}

static yaml_node_t *find_vms(yaml_document_t *document)
{
	yaml_node_t *root = yaml_document_get_root_node(document);
	yaml_node_t *vms =
		root && root->type == YAML_MAPPING_NODE ? value_of(document, root, "vms") : NULL;

	return vms && vms->type == YAML_SEQUENCE_NODE ? vms : NULL;
}

static int open_file(const char *text, size_t len, struct file *ret)
{
	*ret = (struct file){.text = text, .len = len};
	if (!load(text, len, &ret->document))
		return EDIT_E_YAML;
	ret->vms = find_vms(&ret->document);
	if (ret->vms)
		return 0;
	yaml_document_delete(&ret->document);
	return EDIT_E_YAML;
}

static int find_vm(struct file *file, uint64_t cid, size_t *ret_i)
{
	for (size_t i = 0; i < n_vms(file->vms); i++) {
		if (cid_of(&file->document, vm_at(&file->document, file->vms, i)) == cid) {
			*ret_i = i;
			return 0;
		}
	}
	return EDIT_E_ABSENT;
}

/* ---- places in the text ---- */

/* libyaml counts characters, not bytes. */
static size_t offset_of(const struct file *file, const yaml_mark_t *mark)
{
	size_t at = 0;

	for (size_t n = 0; at < file->len; at++) {
		bool begins = ((unsigned char)file->text[at] & 0xc0) != 0x80;

		if (begins && n++ == mark->index)
			break;
	}
	return at;
}

static size_t later(size_t one, size_t other)
{
	return one > other ? one : other;
}

/* The end mark of a collection in block style stands at what comes next. */
static size_t end_of(struct file *file, const yaml_node_t *node)
{
	size_t end = 0;

	if (node->type == YAML_MAPPING_NODE &&
	    node->data.mapping.style != YAML_FLOW_MAPPING_STYLE) {
		for (const yaml_node_pair_t *pair = node->data.mapping.pairs.start;
		     pair < node->data.mapping.pairs.top; pair++)
			end = later(end, end_of(file, yaml_document_get_node(&file->document,
									     pair->value)));
		return end;
	}
	if (node->type == YAML_SEQUENCE_NODE &&
	    node->data.sequence.style != YAML_FLOW_SEQUENCE_STYLE) {
		for (size_t i = 0; i < n_vms(node); i++)
			end = later(end, end_of(file, vm_at(&file->document, node, i)));
		return end;
	}
	return offset_of(file, &node->end_mark);
}

static size_t end_of_line(const struct file *file, size_t at)
{
	const char *end;

	/* A text of several lines ends at the beginning of the next one. */
	if (at > 0 && file->text[at - 1] == '\n')
		return at;
	end = memchr(file->text + at, '\n', file->len - at);
	return end ? (size_t)(end - file->text) + 1 : file->len;
}

/* Of the hyphen of an entry in block style; false: something stands in between. */
static bool find_hyphen(const struct file *file, size_t at, size_t *ret)
{
	while (at > 0 && strchr(" \t\r\n", file->text[at - 1]))
		at--;
	if (at == 0 || file->text[at - 1] != '-')
		return false;
	*ret = at - 1;
	return true;
}

static size_t start_of_line(const struct file *file, size_t at)
{
	while (at > 0 && file->text[at - 1] != '\n')
		at--;
	return at;
}

static bool is_blank(const struct file *file, size_t from, size_t to)
{
	for (; from < to; from++)
		if (file->text[from] != ' ')
			return false;
	return true;
}

/* ---- changes ---- */

static int replace(const struct file *file, size_t from, size_t to, const char *text, char **ret)
{
	int n = asprintf(ret, "%.*s%s%.*s", (int)from, file->text, text, (int)(file->len - to),
			 file->text + to);

	return n < 0 ? -ENOMEM : 0;
}

static int add_in_block(struct file *file, const char *vm, char **ret)
{
	const yaml_node_t *last = vm_at(&file->document, file->vms, n_vms(file->vms) - 1);
	size_t hyphen, start, end = end_of_line(file, end_of(file, last));
	char *line;
	int r;

	if (!find_hyphen(file, offset_of(file, &last->start_mark), &hyphen))
		return EDIT_E_FORM;
	start = start_of_line(file, hyphen);
	if (!is_blank(file, start, hyphen))
		return EDIT_E_FORM;
	if (asprintf(&line, "%s%.*s- %s\n", end > 0 && file->text[end - 1] == '\n' ? "" : "\n",
		     (int)(hyphen - start), file->text + start, vm) < 0)
		return -ENOMEM;
	r = replace(file, end, end, line, ret);
	free(line);
	return r;
}

static int add_in_flow(struct file *file, const char *vm, char **ret)
{
	const yaml_node_t *last = vm_at(&file->document, file->vms, n_vms(file->vms) - 1);
	size_t end = end_of(file, last);
	char *entry;
	int r;

	if (asprintf(&entry, ", %s", vm) < 0)
		return -ENOMEM;
	r = replace(file, end, end, entry, ret);
	free(entry);
	return r;
}

static int remove_in_block(struct file *file, size_t i, char **ret)
{
	const yaml_node_t *vm = vm_at(&file->document, file->vms, i);
	size_t hyphen, start, end = end_of_line(file, end_of(file, vm));

	if (!find_hyphen(file, offset_of(file, &vm->start_mark), &hyphen))
		return EDIT_E_FORM;
	start = start_of_line(file, hyphen);
	return is_blank(file, start, hyphen) ? replace(file, start, end, "", ret) : EDIT_E_FORM;
}

static int remove_in_flow(struct file *file, size_t i, char **ret)
{
	const yaml_node_t *vm = vm_at(&file->document, file->vms, i);
	size_t start = offset_of(file, &vm->start_mark), end = end_of(file, vm);

	/* With the comma behind the one before, or before the one behind. */
	if (i > 0)
		start = end_of(file, vm_at(&file->document, file->vms, i - 1));
	else
		end = offset_of(file, &vm_at(&file->document, file->vms, 1)->start_mark);
	return replace(file, start, end, "", ret);
}

/* All the VMs of before, in order, but the one at `without`, and `added` at the end, if not 0. */
static bool is_as_meant(struct file *file, const char *text, size_t without, uint64_t added)
{
	struct file next;
	size_t n_before = n_vms(file->vms), n = 0;
	bool is_good = true;

	if (open_file(text, strlen(text), &next))
		return false;
	for (size_t i = 0; i < n_before && is_good; i++) {
		if (i == without)
			continue;
		is_good = n < n_vms(next.vms) &&
			  cid_of(&next.document, vm_at(&next.document, next.vms, n)) ==
				  cid_of(&file->document, vm_at(&file->document, file->vms, i));
		n++;
	}
	if (added != 0)
		is_good = is_good && n < n_vms(next.vms) &&
			  cid_of(&next.document, vm_at(&next.document, next.vms, n++)) == added;
	is_good = is_good && n == n_vms(next.vms);
	yaml_document_delete(&next.document);
	return is_good;
}

static bool is_flow(const struct file *file)
{
	return file->vms->data.sequence.style == YAML_FLOW_SEQUENCE_STYLE;
}

static int check(struct file *file, int r, size_t without, uint64_t added, char *text, char **ret)
{
	if (r == 0 && !is_as_meant(file, text, without, added)) {
		free(text);
		r = EDIT_E_FORM;
	}
	if (r == 0)
		*ret = text;
	return r;
}

static int add(struct file *file, uint64_t cid, const char *vm, char **ret)
{
	char *text = NULL;
	size_t i;
	int r;

	if (find_vm(file, cid, &i) == 0)
		return EDIT_E_EXISTS;
	if (n_vms(file->vms) == 0)
		return EDIT_E_FORM;
	r = is_flow(file) ? add_in_flow(file, vm, &text) : add_in_block(file, vm, &text);
	return check(file, r, SIZE_MAX, cid, text, ret);
}

static int take_out(struct file *file, uint64_t cid, char **ret)
{
	char *text = NULL;
	size_t i;
	int r = find_vm(file, cid, &i);

	if (r != 0)
		return r;
	if (n_vms(file->vms) == 1)
		return EDIT_E_LAST;
	r = is_flow(file) ? remove_in_flow(file, i, &text) : remove_in_block(file, i, &text);
	return check(file, r, i, 0, text, ret);
}

int edit_add(const char *text, size_t len, uint64_t cid, const char *vm, char **ret)
{
	struct file file;
	int r = open_file(text, len, &file);

	if (r != 0)
		return r;
	r = add(&file, cid, vm, ret);
	yaml_document_delete(&file.document);
	return r;
}

int edit_remove(const char *text, size_t len, uint64_t cid, char **ret)
{
	struct file file;
	int r = open_file(text, len, &file);

	if (r != 0)
		return r;
	r = take_out(&file, cid, ret);
	yaml_document_delete(&file.document);
	return r;
}

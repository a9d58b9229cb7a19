/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/configuration_marks.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "broker/configuration_internal.h"

/* The file has a list of mappings in a mapping. */
#define DEPTH_MAX   16
#define ANCHORS_MAX CONFIGURATION_VMS_MAX

#define NAME_LEN_MAX 64

__attribute__((format(printf, 3, 4))) static bool mistake(struct marks_mistake *ret, size_t line,
							  const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(ret->text, sizeof(ret->text), format, arguments);
	va_end(arguments);
	ret->line = (unsigned int)line + 1;
	return false;
}

static bool fail_parser(const yaml_parser_t *parser, struct marks_mistake *ret)
{
	const char *problem = parser->problem ? parser->problem : "out of memory";

	if (parser->context)
		return mistake(ret, parser->problem_mark.line, "not YAML: %s, %s", problem,
			       parser->context);
	return mistake(ret, parser->problem_mark.line, "not YAML: %s", problem);
}

/* ---- reading ---- */

static int step_into(yaml_event_type_t event)
{
	switch (event) {
	case YAML_SEQUENCE_START_EVENT:
	case YAML_MAPPING_START_EVENT:
		return 1;
	case YAML_SEQUENCE_END_EVENT:
	case YAML_MAPPING_END_EVENT:
		return -1;
	default:
		return 0;
	}
}

static bool has_anchor(const yaml_event_t *event)
{
	switch (event->type) {
	case YAML_SCALAR_EVENT:
		return event->data.scalar.anchor != NULL;
	case YAML_SEQUENCE_START_EVENT:
		return event->data.sequence_start.anchor != NULL;
	case YAML_MAPPING_START_EVENT:
		return event->data.mapping_start.anchor != NULL;
	default:
		return false;
	}
}

/* Looked at first: libyaml's time grows with the square of these numbers. */
static bool is_simple(yaml_parser_t *parser, struct marks_mistake *ret)
{
	bool is_end = false;
	int depth = 0, n_anchors = 0;

	while (!is_end) {
		yaml_event_t event;

		if (!yaml_parser_parse(parser, &event))
			return fail_parser(parser, ret);
		is_end = event.type == YAML_STREAM_END_EVENT;
		depth += step_into(event.type);
		n_anchors += has_anchor(&event);
		yaml_event_delete(&event);
		if (depth > DEPTH_MAX)
			return mistake(ret, parser->mark.line, "lists in lists beyond all need");
		if (n_anchors > ANCHORS_MAX)
			return mistake(ret, parser->mark.line, "more than %d anchors", ANCHORS_MAX);
	}
	return true;
}

/* The second document of a stream would be ignored in silence. */
static bool is_last(yaml_parser_t *parser, struct marks_mistake *ret)
{
	yaml_document_t next;
	const yaml_node_t *root;
	bool is_more;
	size_t line;

	if (!yaml_parser_load(parser, &next))
		return fail_parser(parser, ret);
	root = yaml_document_get_root_node(&next);
	is_more = root != NULL;
	line = root ? root->start_mark.line : 0;
	yaml_document_delete(&next);
	return !is_more || mistake(ret, line, "a second document; one file has one");
}

static bool load(yaml_parser_t *parser, struct marks *ret, struct marks_mistake *ret_mistake)
{
	yaml_document_t document;

	if (!yaml_parser_load(parser, &document))
		return fail_parser(parser, ret_mistake);
	if (yaml_document_get_root_node(&document) && !is_last(parser, ret_mistake)) {
		yaml_document_delete(&document);
		return false;
	}
	ret->document = document;
	return true;
}

bool marks_load(const unsigned char *text, size_t len, struct marks *ret,
		struct marks_mistake *ret_mistake)
{
	yaml_parser_t parser;
	bool is_good;

	if (!yaml_parser_initialize(&parser))
		return mistake(ret_mistake, 0, "out of memory");
	yaml_parser_set_input_string(&parser, text, len);
	is_good = is_simple(&parser, ret_mistake);
	yaml_parser_delete(&parser);
	if (!is_good)
		return false;

	if (!yaml_parser_initialize(&parser))
		return mistake(ret_mistake, 0, "out of memory");
	yaml_parser_set_input_string(&parser, text, len);
	is_good = load(&parser, ret, ret_mistake);
	yaml_parser_delete(&parser);
	return is_good;
}

void marks_free(struct marks *marks)
{
	yaml_document_delete(&marks->document);
}

/* ---- places ---- */

static const char *scalar(const yaml_node_t *node)
{
	return (const char *)node->data.scalar.value;
}

yaml_node_t *marks_value(struct marks *marks, yaml_node_t *mapping, const char *key)
{
	if (!mapping)
		mapping = yaml_document_get_root_node(&marks->document);
	for (const yaml_node_pair_t *pair = mapping->data.mapping.pairs.start;
	     pair < mapping->data.mapping.pairs.top; pair++)
		if (strcmp(scalar(yaml_document_get_node(&marks->document, pair->key)), key) == 0)
			return yaml_document_get_node(&marks->document, pair->value);
	return NULL;
}

yaml_node_t *marks_entry(struct marks *marks, yaml_node_t *sequence, size_t index)
{
	return yaml_document_get_node(&marks->document, sequence->data.sequence.items.start[index]);
}

unsigned int marks_line(const yaml_node_t *node)
{
	return node ? (unsigned int)node->start_mark.line + 1 : 0;
}

/* ---- what is wrong ---- */

static const char *kind(const yaml_node_t *node)
{
	switch (node->type) {
	case YAML_SEQUENCE_NODE:
		return "a list";
	case YAML_MAPPING_NODE:
		return "keys with values";
	default:
		return "a single value";
	}
}

/* How many letters are to be changed, added or taken away. */
static unsigned int distance(const char *one, const char *other)
{
	unsigned int row[NAME_LEN_MAX + 1];
	size_t len = strlen(other);

	if (len > NAME_LEN_MAX || strlen(one) > NAME_LEN_MAX)
		return UINT32_MAX;
	for (size_t i = 0; i <= len; i++)
		row[i] = (unsigned int)i;
	for (; *one; one++) {
		unsigned int diagonal = row[0]++;

		for (size_t i = 1; i <= len; i++) {
			unsigned int changed = diagonal + (*one != other[i - 1]);
			unsigned int shorter = (row[i] < row[i - 1] ? row[i] : row[i - 1]) + 1;

			diagonal = row[i];
			row[i] = changed < shorter ? changed : shorter;
		}
	}
	return row[len];
}

/* The nearest known key, or NULL: what differs in more than a letter in four is another word. */
static const char *find_nearest(const char *key, const struct cyaml_schema_field *fields)
{
	const char *nearest = NULL;
	unsigned int least = UINT32_MAX;

	for (; fields->key; fields++) {
		unsigned int n = distance(key, fields->key);

		if (n >= least || n > 1 + strlen(fields->key) / 4)
			continue;
		least = n;
		nearest = fields->key;
	}
	return nearest;
}

static bool fail_unknown(const yaml_node_t *key, const struct cyaml_schema_field *fields,
			 struct marks_mistake *ret)
{
	const char *nearest = find_nearest(scalar(key), fields);
	char known[1000] = "";
	size_t len = 0;

	if (nearest)
		return mistake(ret, key->start_mark.line,
			       "unknown key " QUOTED "; did you mean \"%s\"?", scalar(key),
			       nearest);
	/* The spelling with underscores is known, too; once is enough here. */
	for (; fields->key && len < sizeof(known); fields++)
		if (!strchr(fields->key, '_'))
			len += (size_t)snprintf(known + len, sizeof(known) - len, "%s%s",
						len ? ", " : "", fields->key);
	return mistake(ret, key->start_mark.line, "unknown key " QUOTED "; known are %s",
		       scalar(key), known);
}

static bool check_node(struct marks *marks, yaml_node_t *node, const char *name,
		       const struct cyaml_schema_value *schema, struct marks_mistake *ret);

static const struct cyaml_schema_field *find_field(const struct cyaml_schema_field *fields,
						   const char *key)
{
	for (; fields->key; fields++)
		if (strcmp(fields->key, key) == 0)
			return fields;
	return NULL;
}

static bool check_pair(struct marks *marks, const yaml_node_t *mapping,
		       const yaml_node_pair_t *pair, const struct cyaml_schema_field *fields,
		       struct marks_mistake *ret)
{
	const yaml_node_t *key = yaml_document_get_node(&marks->document, pair->key);
	const struct cyaml_schema_field *field;

	if (key->type != YAML_SCALAR_NODE)
		return mistake(ret, key->start_mark.line, "%s in the place of a key", kind(key));
	field = find_field(fields, scalar(key));
	if (!field)
		return fail_unknown(key, fields, ret);
	for (const yaml_node_pair_t *other = mapping->data.mapping.pairs.start; other < pair;
	     other++) {
		const yaml_node_t *before = yaml_document_get_node(&marks->document, other->key);

		if (strcmp(scalar(before), field->key) == 0)
			return mistake(ret, key->start_mark.line,
				       "key %s is given more than once, first in line %zu",
				       field->key, before->start_mark.line + 1);
	}
	return check_node(marks, yaml_document_get_node(&marks->document, pair->value), field->key,
			  &field->value, ret);
}

static bool check_mapping(struct marks *marks, yaml_node_t *node, const char *name,
			  const struct cyaml_schema_value *schema, struct marks_mistake *ret)
{
	const struct cyaml_schema_field *fields = schema->mapping.fields;

	if (node->type != YAML_MAPPING_NODE)
		return mistake(ret, node->start_mark.line,
			       "%s: %s where keys with values are expected, as \"%s: ...\"", name,
			       kind(node), fields[0].key);
	for (const yaml_node_pair_t *pair = node->data.mapping.pairs.start;
	     pair < node->data.mapping.pairs.top; pair++)
		if (!check_pair(marks, node, pair, fields, ret))
			return false;
	for (; fields->key; fields++)
		if (!(fields->value.flags & CYAML_FLAG_OPTIONAL) &&
		    !marks_value(marks, node, fields->key))
			return mistake(ret, node->start_mark.line, "%s: key %s is missing", name,
				       fields->key);
	return true;
}

static bool check_sequence(struct marks *marks, yaml_node_t *node, const char *name,
			   const struct cyaml_schema_value *schema, struct marks_mistake *ret)
{
	size_t n;

	if (node->type != YAML_SEQUENCE_NODE)
		return mistake(ret, node->start_mark.line,
			       "%s: %s where a list is expected, whose entries begin with \"-\"",
			       name, kind(node));
	n = (size_t)(node->data.sequence.items.top - node->data.sequence.items.start);
	if (n < schema->sequence.min || n > schema->sequence.max)
		return mistake(ret, node->start_mark.line, "%s: %zu entries; give %u to %u", name,
			       n, schema->sequence.min, schema->sequence.max);
	for (size_t i = 0; i < n; i++)
		if (!check_node(marks, marks_entry(marks, node, i), name, schema->sequence.entry,
				ret))
			return false;
	return true;
}

static bool check_string(const yaml_node_t *node, const char *name,
			 const struct cyaml_schema_value *schema, struct marks_mistake *ret)
{
	if (node->type != YAML_SCALAR_NODE)
		return mistake(ret, node->start_mark.line,
			       "%s: %s where a single value is expected", name, kind(node));
	if (node->data.scalar.length > schema->string.max)
		return mistake(ret, node->start_mark.line, "%s: %zu bytes; give at most %u", name,
			       node->data.scalar.length, schema->string.max);
	if (strlen(scalar(node)) != node->data.scalar.length)
		return mistake(ret, node->start_mark.line, "%s: a byte 0 in the value", name);
	return true;
}

/* The schema has no loops, which bounds the depth; aliases of YAML may have. */
static bool check_node(struct marks *marks, yaml_node_t *node, const char *name,
		       const struct cyaml_schema_value *schema, struct marks_mistake *ret)
{
	switch (schema->type) {
	case CYAML_MAPPING:
		return check_mapping(marks, node, name, schema, ret);
	case CYAML_SEQUENCE:
		return check_sequence(marks, node, name, schema, ret);
	default:
		return check_string(node, name, schema, ret);
	}
}

bool marks_check(struct marks *marks, const struct cyaml_schema_value *schema,
		 struct marks_mistake *ret_mistake)
{
	yaml_node_t *root = yaml_document_get_root_node(&marks->document);

	if (!root)
		return mistake(ret_mistake, 0, "nothing in it; see vsockd.yaml(5)");
	return check_node(marks, root, "the file", schema, ret_mistake);
}

/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Where in a YAML text things stand. libcyaml fills structs by a schema, but does
 * not remember lines; so libyaml, which it stands on, reads the text first, and
 * the same schema says what in it is wrong, and in which line.
 */

#include <cyaml/cyaml.h>
#include <stdbool.h>
#include <stddef.h>
#include <yaml.h>

struct marks {
	yaml_document_t document;
};

struct marks_mistake {
	unsigned int line;
	char text[1200]; /* what was found, what is allowed */
};

/* One whole document. On true *ret is to be freed; on false the mistake is filled. */
bool marks_load(const unsigned char *text, size_t len, struct marks *ret,
		struct marks_mistake *ret_mistake);
void marks_free(struct marks *marks);

/* Does the document have the form of that schema? Mappings, sequences and strings are known. */
bool marks_check(struct marks *marks, const struct cyaml_schema_value *schema,
		 struct marks_mistake *ret_mistake);

/*
 * Places in a document that was found to be right: the value of a key in a mapping
 * (NULL: the outermost one), NULL when it is not there; an entry of a sequence; and
 * the line of either, 0 for NULL.
 */
yaml_node_t *marks_value(struct marks *marks, yaml_node_t *mapping, const char *key);
yaml_node_t *marks_entry(struct marks *marks, yaml_node_t *sequence, size_t index);
unsigned int marks_line(const yaml_node_t *node);

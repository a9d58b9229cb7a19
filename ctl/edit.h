/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * VMs into and out of the text of a configuration file, of which all else stays as it
 * is, comments too. libyaml says where things stand; the result is read once more, and
 * has to be the VMs of before and that one more or less. What is wrong with the file
 * otherwise is vsockd's to say.
 */

#include <stddef.h>
#include <stdint.h>

enum {
	EDIT_E_YAML = 1, /* not YAML, or not a mapping with a sequence "vms" */
	EDIT_E_EXISTS,	 /* there is a VM of that CID already */
	EDIT_E_ABSENT,	 /* there is none */
	EDIT_E_LAST,	 /* it is the only one, and vsockd serves one at least */
	EDIT_E_FORM,	 /* it stands there in a form that has to be edited by hand */
};

/*
 * vm: a flow mapping on one line, that of the VM with this CID. *ret: the new text, for
 * free(). 0, EDIT_E_..., or -ENOMEM.
 */
int edit_add(const char *text, size_t len, uint64_t cid, const char *vm, char **ret);
int edit_remove(const char *text, size_t len, uint64_t cid, char **ret);

/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * For process 1 of a guest: load what lies in /modules. The names begin with the
 * place in the order in which the modules need each other. What cannot be loaded
 * is said on the console.
 */
void modules_load(void);

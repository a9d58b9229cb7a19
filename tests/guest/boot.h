/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Both for process 1 of a guest. */

/* /dev and /proc are there, and the console is input and output. */
void boot_console(void);

/*
 * Load what lies in /modules. The names begin with the
 * place in the order in which the modules need each other. What cannot be loaded
 * is said on the console.
 */
void boot_modules(void);

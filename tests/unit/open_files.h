/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include <stddef.h>

/* Of this process, and as many more each time: to be compared with what it was. */
size_t open_files_count(void);

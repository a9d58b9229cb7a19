/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "broker/configuration.h"

/* What configuration_parse() returned holds together; frees the configuration. */
void check_configured(int status, struct configuration *configuration,
		      const struct configuration_error *error);

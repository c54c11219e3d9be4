// SPDX-License-Identifier: GPL-2.0-only
/* Compiles everywhere: see features.sh. */
#include <linux/module.h>

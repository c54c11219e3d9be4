/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the shim says, on stderr, a whole line at a time. */
#ifndef GREENBOOST_LOG_H
#define GREENBOOST_LOG_H

__attribute__((format(printf, 1, 2))) void log_warn(const char *format, ...);

#endif

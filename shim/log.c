// SPDX-License-Identifier: GPL-2.0-or-later
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

/*
 * One write(2), so that lines of several threads do not mix, and no stdio lock
 * that the program may hold where it called us.
 */
void log_warn(const char *format, ...)
{
	char line[1024] = "greenboost: ";
	size_t used = sizeof("greenboost: ") - 1;
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(line + used, sizeof(line) - used - 1, format, args);
	va_end(args);
	if (n > 0)
		used += (size_t)n < sizeof(line) - used - 1 ? (size_t)n : sizeof(line) - used - 2;
	line[used++] = '\n';
	if (write(STDERR_FILENO, line, used) < 0)
		return; /* nobody to tell */
}

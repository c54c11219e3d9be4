// SPDX-License-Identifier: GPL-2.0-only
/* Since 6.8 eventfd_signal() always adds one. */
#include <linux/eventfd.h>

void probe(struct eventfd_ctx *eventfd)
{
	eventfd_signal(eventfd);
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * The eventfds of open files, for those who wait with poll(), io_uring or an event loop.
 */

#include <linux/err.h>
#include <linux/eventfd.h>
#include <linux/list.h>
#include <linux/spinlock.h>

#include "internal.h"

/* Guards the list, and of all files @eventfd and @listeners. Taken with oom_lock held. */
static DEFINE_SPINLOCK(gb_eventfd_lock);
static LIST_HEAD(gb_listeners);

/**
 * gb_eventfd_bind - have an eventfd signalled for each event, in place of the one before
 * @file: whose eventfd it is
 * @fd: its descriptor, or -1 for none
 *
 * Return: 0, or an error as <uapi/greenboost.h> has it.
 */
int gb_eventfd_bind(struct gb_file *file, int fd)
{
	struct eventfd_ctx *new = NULL, *old;

	if (fd != -1) {
		new = eventfd_ctx_fdget(fd);
		if (IS_ERR(new))
			return PTR_ERR(new);
	}

	spin_lock(&gb_eventfd_lock);
	old = file->eventfd;
	/* The reference is the file's from here on. */
	file->eventfd = new;
	if (new && !old)
		list_add_tail(&file->listeners, &gb_listeners);
	else if (old && !new)
		list_del(&file->listeners);
	spin_unlock(&gb_eventfd_lock);

	if (old)
		eventfd_ctx_put(old);
	return 0;
}

/* Neither sleeps nor allocates. */
void gb_eventfd_signal_all(void)
{
	struct gb_file *file;

	spin_lock(&gb_eventfd_lock);
	list_for_each_entry(file, &gb_listeners, listeners)
#ifdef GB_HAVE_EVENTFD_SIGNAL_ONE
		eventfd_signal(file->eventfd);
#else
		eventfd_signal(file->eventfd, 1);
#endif
	spin_unlock(&gb_eventfd_lock);
}

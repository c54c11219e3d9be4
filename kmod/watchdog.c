// SPDX-License-Identifier: GPL-2.0-only
/*
 * The watchdog: how short memory is, and who has to know.
 *
 * It looks at available RAM by its own clock, the more often the closer that is to a watermark,
 * and at once when the system reclaims memory, is about to kill something, or when what it compares
 * with changes. What it finds is a level (gb_weigh()), and a change of that is an event: eventfds
 * are signalled by whoever found it, netlink messages are sent by a work item.
 */

#include <linux/jiffies.h>
#include <linux/kstrtox.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/notifier.h>
#include <linux/oom.h>
#include <linux/overflow.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/workqueue.h>

#include "internal.h"
#include "trace.h"
#include "uapi/greenboost.h"
#include "uapi/greenboost_netlink.h"

/* So often at most, and as long as memory is short. */
#define GB_SHORT_PERIOD_MS 50
/* How fast programs fill memory, at a guess: 4 GiB/s. */
#define GB_FILL_PAGES_PER_MS (SZ_4M >> PAGE_SHIFT)
/* A fall is measured over no less, for it to be more than noise. */
#define GB_FALL_MS 10
/* For so long an event says it again, and what the OOM killer was asked for stays true. */
#define GB_REPEAT_MS 1000

static unsigned int gb_period_ms = 1000;

/* MiB, or, below zero, percent of RAM: one word, so that it can be read at any time. */
static int gb_min_watermark = -2;
static int gb_low_watermark = -5;
static int gb_high_watermark = -8;

/* Pages, in this order. */
struct gb_marks {
	unsigned long min, low, high;
};

/**
 * struct gb_watch - what the watchdog knows
 * @lock: guards all of it. Taken with oom_lock held; nothing is allocated under it
 * @level: the last one found
 * @cause: and what it was found because of
 * @memory: what it would be for available RAM alone
 * @t3_short: T3 makes it critical
 * @seq: changes of @level
 * @ooms: calls of gb_oom()
 * @t3_total: bytes, of all files
 * @t3_used: bytes, of all files
 * @available: pages, when it was looked at for the fall
 * @looked: jiffies, of that
 * @fall: pages a millisecond that became unavailable before that
 * @held: jiffies until which the level may not get lower; only if @holding
 * @holding: see there
 * @told_wanted: pages, in the last event
 * @told: jiffies, of that
 */
static struct gb_watch {
	spinlock_t lock; /* see above */
	enum greenboost_level level;
	enum greenboost_cause cause;
	enum greenboost_level memory;
	bool t3_short;
	u64 seq;
	u64 ooms;
	u64 t3_total;
	u64 t3_used;
	unsigned long available;
	unsigned long looked;
	unsigned long fall;
	unsigned long held;
	bool holding;
	unsigned long told_wanted;
	unsigned long told;
} gb_watch = {
	.lock = __SPIN_LOCK_UNLOCKED(gb_watch.lock),
};

static void gb_clock_run(struct work_struct *work);
static void gb_send_run(struct work_struct *work);

/* With a rescuer: it is for times when no new worker can be had. */
static struct workqueue_struct *gb_workqueue;
static DECLARE_DELAYED_WORK(gb_clock, gb_clock_run);
static DECLARE_WORK(gb_send, gb_send_run);
static unsigned long gb_hinted = INITIAL_JIFFIES; /* the last hint that was taken */
static atomic_t gb_hint_pending;
static bool gb_started; /* guarded by kernel_param_lock() */

static unsigned long gb_mark_pages(const int *mark)
{
	int value = READ_ONCE(*mark);

	if (value < 0)
		return mult_frac(totalram_pages(), -value, 100);
	return (unsigned long)value << (20 - PAGE_SHIFT);
}

static struct gb_marks gb_marks(void)
{
	struct gb_marks marks = { .low = gb_mark_pages(&gb_low_watermark) };

	/* They are set one by one, and need not be in order meanwhile. */
	marks.min = min(gb_mark_pages(&gb_min_watermark), marks.low);
	marks.high = max(gb_mark_pages(&gb_high_watermark), marks.low);
	return marks;
}

/* What is to be given back at a level that is not calm. */
static unsigned long gb_wanted(const struct gb_marks *marks, unsigned long available)
{
	if (available < marks->high)
		return marks->high - available;
	/* There is enough in all, and still something could not be had. */
	return marks->high - marks->low;
}

/* A level is left only at the watermark above the one that led to it. */
static enum greenboost_level gb_weigh(enum greenboost_level now, const struct gb_marks *marks,
				      unsigned long available)
{
	if (available < marks->min || (available < marks->low && now == GREENBOOST_LEVEL_CRITICAL))
		return GREENBOOST_LEVEL_CRITICAL;
	if (available < marks->low || (available < marks->high && now != GREENBOOST_LEVEL_CALM))
		return GREENBOOST_LEVEL_LOW;
	return GREENBOOST_LEVEL_CALM;
}

/*
 * Whether T3 has no room for what is wanted: then giving back is not all that is needed. It is over
 * when there is room for twice as much, lest it begins again with the next chunk.
 */
static bool gb_t3_short(bool now, unsigned long wanted)
{
	u64 room = gb_watch.t3_total - gb_watch.t3_used;

	return gb_watch.t3_total && room < gb_bytes(wanted) << now;
}

static void gb_measure_fall(unsigned long available)
{
	unsigned int ms = jiffies_to_msecs(jiffies - gb_watch.looked);

	if (ms < GB_FALL_MS)
		return;
	gb_watch.fall = gb_watch.available > available ? (gb_watch.available - available) / ms : 0;
	gb_watch.available = available;
	gb_watch.looked = jiffies;
}

static u32 gb_deadline_ms(const struct gb_marks *marks, unsigned long available)
{
	if (gb_watch.level == GREENBOOST_LEVEL_CRITICAL || available <= marks->min)
		return 0;
	if (!gb_watch.fall)
		return U32_MAX;
	return min((available - marks->min) / gb_watch.fall, (unsigned long)U32_MAX - 1);
}

/* Whether listeners have to be told of it. */
static bool gb_decide(enum greenboost_cause cause, const struct gb_marks *marks,
		      unsigned long available)
{
	unsigned long step = max((marks->high - marks->low) / 4, (unsigned long)GB_BLOCK_PAGES);
	enum greenboost_level old = gb_watch.level;
	enum greenboost_level new = gb_weigh(gb_watch.memory, marks, available);
	unsigned long wanted = gb_wanted(marks, available);

	gb_measure_fall(available);
	gb_watch.memory = new;
	if (new == GREENBOOST_LEVEL_CALM)
		gb_watch.t3_short = false;
	else
		gb_watch.t3_short = gb_t3_short(gb_watch.t3_short, wanted);
	if (gb_watch.t3_short)
		new = GREENBOOST_LEVEL_CRITICAL;
	if (cause == GREENBOOST_CAUSE_OOM) {
		gb_watch.ooms++;
		gb_watch.cause = cause;
		gb_watch.held = jiffies + msecs_to_jiffies(GB_REPEAT_MS);
		gb_watch.holding = true;
		new = GREENBOOST_LEVEL_CRITICAL;
	}
	if (gb_watch.holding && time_after_eq(jiffies, gb_watch.held))
		gb_watch.holding = false;
	if (gb_watch.holding)
		new = max(new, old);

	if (new != old) {
		WRITE_ONCE(gb_watch.level, new);
		gb_watch.cause = cause;
		gb_watch.seq++;
		trace_greenboost_level(old, new, cause, gb_watch.seq, available, wanted);
	} else if (new == GREENBOOST_LEVEL_CALM) {
		return false;
	} else if (cause != GREENBOOST_CAUSE_OOM && wanted < gb_watch.told_wanted + step &&
		   time_before(jiffies, gb_watch.told + msecs_to_jiffies(GB_REPEAT_MS))) {
		return false;
	}
	gb_watch.told_wanted = wanted;
	gb_watch.told = jiffies;
	return true;
}

/*
 * What can be had without swapping. Pages that were freed a moment ago are on the lists of
 * processors, up to an eighth of memory since Linux 6.7, and come off them at some MiB a second
 * or before anybody is killed. They do not count as available, so that an arena that was just
 * given back would be followed by the next, and the next.
 */
static unsigned long gb_available(void)
{
	unsigned long pages = si_mem_available();
	struct zone *zones;
	int node, cpu, i;

	for_each_online_node(node) {
		zones = NODE_DATA(node)->node_zones;
		for (i = 0; i < MAX_NR_ZONES; i++) {
			if (!populated_zone(&zones[i]))
				continue;
			for_each_online_cpu(cpu)
				pages += per_cpu_ptr(zones[i].per_cpu_pageset, cpu)->count;
		}
	}
	return pages;
}

/* Neither sleeps nor allocates. */
static void gb_look(enum greenboost_cause cause)
{
	struct gb_marks marks = gb_marks();
	bool tell;

	/* The module's own comes first. Some of that was not counted as available. */
	if (gb_available() < marks.low)
		gb_pool_trim(0);
	spin_lock(&gb_watch.lock);
	tell = gb_decide(cause, &marks, gb_available());
	spin_unlock(&gb_watch.lock);
	if (!tell)
		return;
	gb_eventfd_signal_all();
	queue_work(gb_workqueue, &gb_send);
}

static void gb_send_run(struct work_struct *work)
{
	gb_netlink_send();
}

/* Until when the low watermark cannot be reached. */
static unsigned long gb_next_look(void)
{
	unsigned int longest = max_t(unsigned int, READ_ONCE(gb_period_ms), GB_SHORT_PERIOD_MS);
	unsigned long available = gb_available();
	struct gb_marks marks = gb_marks();
	unsigned long ms = GB_SHORT_PERIOD_MS;

	if (gb_watchdog_calm() && available > marks.low)
		ms = clamp((available - marks.low) / GB_FILL_PAGES_PER_MS,
			   (unsigned long)GB_SHORT_PERIOD_MS, (unsigned long)longest);
	return msecs_to_jiffies(ms);
}

static void gb_clock_run(struct work_struct *work)
{
	gb_look(atomic_xchg(&gb_hint_pending, 0) ? GREENBOOST_CAUSE_SHRINKER
						 : GREENBOOST_CAUSE_WATERMARK);
	queue_delayed_work(gb_workqueue, &gb_clock, gb_next_look());
}

/**
 * gb_watchdog_hint - the system reclaims memory
 *
 * For the shrinker, which is asked very often: once in GB_SHORT_PERIOD_MS is enough. That it is
 * asked is no pressure yet, since reclaim also makes room for the page cache.
 */
void gb_watchdog_hint(void)
{
	unsigned long last = READ_ONCE(gb_hinted);

	if (time_before(jiffies, last + msecs_to_jiffies(GB_SHORT_PERIOD_MS)) ||
	    cmpxchg(&gb_hinted, last, jiffies) != last)
		return;
	atomic_set(&gb_hint_pending, 1);
	mod_delayed_work(gb_workqueue, &gb_clock, 0);
}

/* Whether idle pages may be kept: those that were given back for want of memory must be free. */
bool gb_watchdog_calm(void)
{
	return READ_ONCE(gb_watch.level) == GREENBOOST_LEVEL_CALM;
}

/**
 * gb_watchdog_state - what is known now
 *
 * Return: the level of the last look, and the rest as it is at this moment.
 */
struct greenboost_state gb_watchdog_state(void)
{
	struct gb_marks marks = gb_marks();
	unsigned long available = gb_available();
	struct greenboost_state state = {
		.available = gb_bytes(available),
		.min_watermark = gb_bytes(marks.min),
		.low_watermark = gb_bytes(marks.low),
		.high_watermark = gb_bytes(marks.high),
		.used = gb_bytes(atomic_long_read(&gb_used)),
		.idle = gb_bytes(gb_pool_idle()),
	};

	spin_lock(&gb_watch.lock);
	state.level = gb_watch.level;
	state.cause = gb_watch.cause;
	state.seq = gb_watch.seq;
	state.ooms = gb_watch.ooms;
	state.t3_total = gb_watch.t3_total;
	state.t3_used = gb_watch.t3_used;
	state.deadline_ms = gb_deadline_ms(&marks, available);
	spin_unlock(&gb_watch.lock);
	if (state.level != GREENBOOST_LEVEL_CALM)
		state.wanted = gb_bytes(gb_wanted(&marks, available));
	return state;
}

/**
 * gb_watchdog_report_t3 - a file's part of T3, in place of what it reported before
 * @file: whose
 * @total: bytes
 * @used: bytes, no more than @total
 *
 * Return: -EOVERFLOW if that is more than can be added up; 0 for a file that reports no T3.
 */
int gb_watchdog_report_t3(struct gb_file *file, u64 total, u64 used)
{
	bool changed;
	u64 sum;

	spin_lock(&gb_watch.lock);
	if (check_add_overflow(gb_watch.t3_total - file->t3_total, total, &sum)) {
		spin_unlock(&gb_watch.lock);
		return -EOVERFLOW;
	}
	changed = file->t3_total != total || file->t3_used != used;
	gb_watch.t3_total = sum;
	/* No file uses more than it has, so this sum is not above the other. */
	gb_watch.t3_used += used - file->t3_used;
	file->t3_total = total;
	file->t3_used = used;
	spin_unlock(&gb_watch.lock);
	if (changed)
		gb_look(GREENBOOST_CAUSE_T3);
	return 0;
}

/* Called with oom_lock held, before something is chosen to be killed; not for memory cgroups. */
static int gb_oom(struct notifier_block *block, unsigned long unused, void *freed)
{
	unsigned long pages = gb_pool_trim(0);

	*(unsigned long *)freed += pages;
	trace_greenboost_oom(pages);
	gb_look(GREENBOOST_CAUSE_OOM);
	/* From now on it looks often. */
	mod_delayed_work(gb_workqueue, &gb_clock, 0);
	return NOTIFY_OK;
}

static struct notifier_block gb_oom_block = {
	.notifier_call = gb_oom,
};

/* A parameter can also be written before the module is ready, and while it goes. */
static void gb_look_again(void)
{
	if (!gb_started)
		return;
	gb_look(GREENBOOST_CAUSE_WATERMARK);
	mod_delayed_work(gb_workqueue, &gb_clock, gb_next_look());
}

static int gb_mark_set(const char *value, const struct kernel_param *param)
{
	unsigned int number;
	char text[16];
	char *digits;
	bool percent;
	size_t length;
	int ret;

	if (strscpy(text, value, sizeof(text)) < 0)
		return -EINVAL;
	digits = strim(text);
	length = strlen(digits);
	percent = length && digits[length - 1] == '%';
	if (percent)
		digits[length - 1] = '\0';
	ret = kstrtouint(digits, 10, &number);
	if (ret)
		return ret;
	if (number > (percent ? 100 : INT_MAX))
		return -ERANGE;
	WRITE_ONCE(*(int *)param->arg, percent ? -(int)number : (int)number);
	gb_look_again();
	return 0;
}

static int gb_mark_get(char *buffer, const struct kernel_param *param)
{
	int value = *(int *)param->arg;

	return sysfs_emit(buffer, "%d%s\n", abs(value), value < 0 ? "%" : "");
}

static const struct kernel_param_ops gb_mark_ops = {
	.set = gb_mark_set,
	.get = gb_mark_get,
};

static int gb_period_ms_set(const char *value, const struct kernel_param *param)
{
	int ret = param_set_uint_minmax(value, param, 1, 3600 * 1000);

	if (!ret)
		gb_look_again();
	return ret;
}

static const struct kernel_param_ops gb_period_ms_ops = {
	.set = gb_period_ms_set,
	.get = param_get_uint,
};

module_param_cb(min_watermark, &gb_mark_ops, &gb_min_watermark, 0644);
MODULE_PARM_DESC(min_watermark,
		 "less available RAM is critical; MiB, or with % a share of RAM (default: 2%)");
module_param_cb(low_watermark, &gb_mark_ops, &gb_low_watermark, 0644);
MODULE_PARM_DESC(low_watermark, "with less, memory is asked for; as above (default: 5%)");
module_param_cb(high_watermark, &gb_mark_ops, &gb_high_watermark, 0644);
MODULE_PARM_DESC(high_watermark, "until there is this much again; as above (default: 8%)");
module_param_cb(period_ms, &gb_period_ms_ops, &gb_period_ms, 0644);
MODULE_PARM_DESC(period_ms, "milliseconds between looks at rest (default: 1000)");

/* After it, everything in here can be called. */
int gb_watchdog_init(void)
{
	int ret;

	gb_watch.looked = jiffies;
	gb_watch.available = gb_available();
	gb_workqueue = alloc_workqueue("greenboost", WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	if (!gb_workqueue)
		return -ENOMEM;
	ret = gb_netlink_init();
	if (ret)
		destroy_workqueue(gb_workqueue);
	return ret;
}

int gb_watchdog_start(void)
{
	int ret = register_oom_notifier(&gb_oom_block);

	if (ret)
		return ret;
	kernel_param_lock(THIS_MODULE);
	gb_started = true;
	gb_look_again();
	kernel_param_unlock(THIS_MODULE);
	return 0;
}

void gb_watchdog_stop(void)
{
	kernel_param_lock(THIS_MODULE);
	gb_started = false;
	kernel_param_unlock(THIS_MODULE);
	unregister_oom_notifier(&gb_oom_block);
}

/* Stopped, and there are no files and no shrinker any more: only the clock is left to look. */
void gb_watchdog_exit(void)
{
	cancel_delayed_work_sync(&gb_clock);
	cancel_work_sync(&gb_send);
	gb_netlink_exit();
	destroy_workqueue(gb_workqueue);
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * /sys/class/greenboost/greenboost/: numbers, one a file. Everybody may read them.
 */

#include <linux/device.h>
#include <linux/kernel.h>
#include <linux/sysfs.h>

#include "internal.h"
#include "uapi/greenboost.h"
#include "uapi/greenboost_netlink.h"

static const char *const gb_level_names[] = {
	[GREENBOOST_LEVEL_CALM] = "calm",
	[GREENBOOST_LEVEL_LOW] = "low",
	[GREENBOOST_LEVEL_CRITICAL] = "critical",
};

static const char *const gb_cause_names[] = {
	[GREENBOOST_CAUSE_WATERMARK] = "watermark",
	[GREENBOOST_CAUSE_SHRINKER] = "shrinker",
	[GREENBOOST_CAUSE_OOM] = "oom",
	[GREENBOOST_CAUSE_T3] = "t3",
};

#define GB_ATTRIBUTE(name, format, value)                                                        \
	static ssize_t name##_show(struct device *dev, struct device_attribute *attr, char *buf) \
	{                                                                                        \
		return sysfs_emit(buf, format "\n", value);                                      \
	}                                                                                        \
	static DEVICE_ATTR_RO(name)

GB_ATTRIBUTE(used_bytes, "%llu", gb_watchdog_state().used);
GB_ATTRIBUTE(limit_bytes, "%llu", gb_bytes(gb_limit()));
GB_ATTRIBUTE(pending_bytes, "%llu", gb_bytes(atomic_long_read(&gb_pending)));
GB_ATTRIBUTE(huge_bytes, "%llu", gb_bytes(atomic_long_read(&gb_huge)));
GB_ATTRIBUTE(buffers, "%ld", atomic_long_read(&gb_buffers));
GB_ATTRIBUTE(pool_bytes, "%llu", gb_watchdog_state().idle);
GB_ATTRIBUTE(pool_limit_bytes, "%llu", gb_bytes(gb_pool_limit()));
GB_ATTRIBUTE(level, "%s", gb_level_names[gb_watchdog_state().level]);
GB_ATTRIBUTE(level_changes, "%llu", gb_watchdog_state().seq);
GB_ATTRIBUTE(cause, "%s", gb_cause_names[gb_watchdog_state().cause]);
GB_ATTRIBUTE(ooms, "%llu", gb_watchdog_state().ooms);
GB_ATTRIBUTE(wanted_bytes, "%llu", gb_watchdog_state().wanted);
GB_ATTRIBUTE(available_bytes, "%llu", gb_watchdog_state().available);
GB_ATTRIBUTE(min_watermark_bytes, "%llu", gb_watchdog_state().min_watermark);
GB_ATTRIBUTE(low_watermark_bytes, "%llu", gb_watchdog_state().low_watermark);
GB_ATTRIBUTE(high_watermark_bytes, "%llu", gb_watchdog_state().high_watermark);
GB_ATTRIBUTE(t3_total_bytes, "%llu", gb_watchdog_state().t3_total);
GB_ATTRIBUTE(t3_used_bytes, "%llu", gb_watchdog_state().t3_used);

/*
 * Several values, as GreenBoost's first module had a file of this name: for people, and for reports
 * that are to have numbers of one moment. Programs read the others.
 */
static ssize_t pool_info_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct greenboost_state s = gb_watchdog_state();

	return sysfs_emit(buf,
			  "level %s\nwanted_bytes %llu\navailable_bytes %llu\n"
			  "used_bytes %llu\nlimit_bytes %llu\nhuge_bytes %llu\nbuffers %ld\n"
			  "pool_bytes %llu\npool_limit_bytes %llu\n"
			  "t3_total_bytes %llu\nt3_used_bytes %llu\n",
			  gb_level_names[s.level], s.wanted, s.available, s.used,
			  gb_bytes(gb_limit()), gb_bytes(atomic_long_read(&gb_huge)),
			  atomic_long_read(&gb_buffers), s.idle, gb_bytes(gb_pool_limit()),
			  s.t3_total, s.t3_used);
}

static DEVICE_ATTR_RO(pool_info);

/* clang-format off */
static struct attribute *gb_attrs[] = {
	&dev_attr_used_bytes.attr,
	&dev_attr_limit_bytes.attr,
	&dev_attr_pending_bytes.attr,
	&dev_attr_huge_bytes.attr,
	&dev_attr_buffers.attr,
	&dev_attr_pool_bytes.attr,
	&dev_attr_pool_limit_bytes.attr,
	&dev_attr_pool_info.attr,
	&dev_attr_level.attr,
	&dev_attr_level_changes.attr,
	&dev_attr_cause.attr,
	&dev_attr_ooms.attr,
	&dev_attr_wanted_bytes.attr,
	&dev_attr_available_bytes.attr,
	&dev_attr_min_watermark_bytes.attr,
	&dev_attr_low_watermark_bytes.attr,
	&dev_attr_high_watermark_bytes.attr,
	&dev_attr_t3_total_bytes.attr,
	&dev_attr_t3_used_bytes.attr,
	NULL,
};

/* clang-format on */

static const struct attribute_group gb_group = {
	.attrs = gb_attrs,
};

const struct attribute_group *gb_attribute_groups[] = {
	&gb_group,
	NULL,
};

/* SPDX-License-Identifier: ((GPL-2.0 WITH Linux-syscall-note) OR BSD-3-Clause) */
/* Do not edit directly, auto-generated from: */
/*	kmod/greenboost.yaml */
/* YNL-GEN uapi header */

#ifndef _UAPI_GREENBOOST_NETLINK_H
#define _UAPI_GREENBOOST_NETLINK_H

#define GREENBOOST_FAMILY_NAME		"greenboost"
#define GREENBOOST_FAMILY_VERSION	1

/**
 * enum greenboost_level - How short memory is. Values have an order, more is
 *   worse.
 * @GREENBOOST_LEVEL_CALM: Nothing is asked for.
 * @GREENBOOST_LEVEL_LOW: Available RAM fell below the low watermark and has
 *   not reached the high one since. Bytes are wanted back.
 * @GREENBOOST_LEVEL_CRITICAL: Available RAM fell below the min watermark and
 *   has not reached the low one since, or the system was about to kill
 *   something for want of memory, or T3 has less room than there are bytes
 *   wanted.
 */
enum greenboost_level {
	GREENBOOST_LEVEL_CALM,
	GREENBOOST_LEVEL_LOW,
	GREENBOOST_LEVEL_CRITICAL,
};

/**
 * enum greenboost_cause - What made the module look when the level changed
 *   last.
 * @GREENBOOST_CAUSE_WATERMARK: Its own clock, somebody who asked, or a
 *   watermark that was set.
 * @GREENBOOST_CAUSE_SHRINKER: The system reclaims memory.
 * @GREENBOOST_CAUSE_OOM: The system was about to kill something for want of
 *   memory.
 * @GREENBOOST_CAUSE_T3: The room in T3 changed.
 */
enum greenboost_cause {
	GREENBOOST_CAUSE_WATERMARK,
	GREENBOOST_CAUSE_SHRINKER,
	GREENBOOST_CAUSE_OOM,
	GREENBOOST_CAUSE_T3,
};

enum {
	GREENBOOST_A_STATE_PAD = 1,
	GREENBOOST_A_STATE_LEVEL,
	GREENBOOST_A_STATE_CAUSE,
	GREENBOOST_A_STATE_SEQ,
	GREENBOOST_A_STATE_OOMS,
	GREENBOOST_A_STATE_WANTED,
	GREENBOOST_A_STATE_AVAILABLE,
	GREENBOOST_A_STATE_MIN_WATERMARK,
	GREENBOOST_A_STATE_LOW_WATERMARK,
	GREENBOOST_A_STATE_HIGH_WATERMARK,
	GREENBOOST_A_STATE_USED,
	GREENBOOST_A_STATE_IDLE,
	GREENBOOST_A_STATE_T3_TOTAL,
	GREENBOOST_A_STATE_T3_USED,
	GREENBOOST_A_STATE_DEADLINE_MS,

	__GREENBOOST_A_STATE_MAX,
	GREENBOOST_A_STATE_MAX = (__GREENBOOST_A_STATE_MAX - 1)
};

enum {
	GREENBOOST_CMD_GET = 1,
	GREENBOOST_CMD_EVENT,

	__GREENBOOST_CMD_MAX,
	GREENBOOST_CMD_MAX = (__GREENBOOST_CMD_MAX - 1)
};

#define GREENBOOST_MCGRP_EVENTS	"events"

#endif /* _UAPI_GREENBOOST_NETLINK_H */

// SPDX-License-Identifier: GPL-2.0-only
/*
 * The generic netlink family "greenboost", as greenboost.yaml has it.
 */

#include <linux/kernel.h>
#include <linux/module.h>
#include <net/genetlink.h>
#include <net/net_namespace.h>
#include <net/sock.h>

#include "internal.h"
#include "uapi/greenboost.h"
#include "uapi/greenboost_netlink.h"

static struct genl_family gb_family;

#define GB_STATE_SIZE (3 * nla_total_size(sizeof(u32)) + 11 * nla_total_size_64bit(sizeof(u64)))

static int gb_put_state(struct sk_buff *skb, u32 portid, u32 seq, u8 command)
{
	struct greenboost_state state = gb_watchdog_state();
	void *header;

	header = genlmsg_put(skb, portid, seq, &gb_family, 0, command);
	if (!header)
		return -EMSGSIZE;

#define PUT_U32(name, field) nla_put_u32(skb, GREENBOOST_A_STATE_##name, state.field)
#define PUT_U64(name, field) \
	nla_put_u64_64bit(skb, GREENBOOST_A_STATE_##name, state.field, GREENBOOST_A_STATE_PAD)
	if (PUT_U32(LEVEL, level) || PUT_U32(CAUSE, cause) || PUT_U64(SEQ, seq) ||
	    PUT_U64(OOMS, ooms) || PUT_U64(WANTED, wanted) || PUT_U64(AVAILABLE, available) ||
	    PUT_U64(MIN_WATERMARK, min_watermark) || PUT_U64(LOW_WATERMARK, low_watermark) ||
	    PUT_U64(HIGH_WATERMARK, high_watermark) || PUT_U64(USED, used) || PUT_U64(IDLE, idle) ||
	    PUT_U64(T3_TOTAL, t3_total) || PUT_U64(T3_USED, t3_used) ||
	    PUT_U32(DEADLINE_MS, deadline_ms)) {
		genlmsg_cancel(skb, header);
		return -EMSGSIZE;
	}
#undef PUT_U64
#undef PUT_U32
	genlmsg_end(skb, header);
	return 0;
}

static int gb_get_doit(struct sk_buff *request, struct genl_info *info)
{
	struct sk_buff *skb = genlmsg_new(GB_STATE_SIZE, GFP_KERNEL);
	int ret;

	if (!skb)
		return -ENOMEM;
	ret = gb_put_state(skb, info->snd_portid, info->snd_seq, GREENBOOST_CMD_GET);
	if (ret) {
		nlmsg_free(skb);
		return ret;
	}
	return genlmsg_reply(skb, info);
}

/*
 * Says what is true now, not what was true when it was asked for: of several changes that come
 * faster than this, the last one counts. Must not run twice at once, or listeners would hear of
 * them in another order.
 *
 * A listener whose socket is full finds ENOBUFS there, as all do if there is no memory for a
 * message. It is not reclaimed for one: memory is short just now.
 */
void gb_netlink_send(void)
{
	struct sk_buff *skb;

	if (!genl_has_listeners(&gb_family, &init_net, 0))
		return;
	skb = genlmsg_new(GB_STATE_SIZE, GFP_ATOMIC | __GFP_NOWARN);
	if (!skb)
		goto set_error;
	if (WARN_ON_ONCE(gb_put_state(skb, 0, 0, GREENBOOST_CMD_EVENT))) {
		nlmsg_free(skb);
		goto set_error;
	}
	genlmsg_multicast(&gb_family, skb, 0, 0, GFP_ATOMIC | __GFP_NOWARN);
	return;

set_error:
	genl_set_err(&gb_family, &init_net, 0, 0, -ENOBUFS);
}

static const struct genl_small_ops gb_ops[] = {
	{
		.cmd = GREENBOOST_CMD_GET,
		.doit = gb_get_doit,
	},
};

static const struct genl_multicast_group gb_groups[] = {
	{ .name = GREENBOOST_MCGRP_EVENTS },
};

/* Of the initial network namespace alone: that is where events can be sent to with one message. */
static struct genl_family gb_family = {
	.name = GREENBOOST_FAMILY_NAME,
	.version = GREENBOOST_FAMILY_VERSION,
	.module = THIS_MODULE,
	.small_ops = gb_ops,
	.n_small_ops = ARRAY_SIZE(gb_ops),
	.resv_start_op = GREENBOOST_CMD_GET,
	.mcgrps = gb_groups,
	.n_mcgrps = ARRAY_SIZE(gb_groups),
};

int gb_netlink_init(void)
{
	return genl_register_family(&gb_family);
}

/* The caller has seen to it that nothing is being sent. */
void gb_netlink_exit(void)
{
	genl_unregister_family(&gb_family);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Chunks that are used where they are in RAM, by the application's addresses: with
 * --paging mapped all that VRAM has no room for, else what a launch names beyond that,
 * until VRAM has room for it, or others need its RAM. As in pager.h, the pager's.
 */
#ifndef GREENBOOST_IN_PLACE_H
#define GREENBOOST_IN_PLACE_H

#include "residency.h"

/*
 * Have an absent chunk of RAM used there, or one that has no bytes yet. True also if it is
 * something else by then. False: no RAM for it, or the driver refuses.
 */
bool in_place_begin(struct device *device, uint32_t index);

/*
 * It becomes absent again: waits for what uses it and, as the driver does that, for every
 * kernel that runs on the device.
 */
void in_place_end(struct device *device, uint32_t index);

/* May it? Nothing is just being given to the device that uses it. */
bool in_place_may_end(const struct device *device, uint32_t index);

/*
 * The same for the one that is needed last; graced: even if the next launch may follow a pointer
 * to it. False: none may.
 */
bool in_place_end_any(struct device *device, bool graced);

/* Its allocation ends, and the device was waited for. */
void in_place_free(struct device *device, uint32_t index);

/*
 * Would the end of the allocation wait for a stream that waits for a value, as some of it is in
 * place? For every thread, in no lock.
 */
bool in_place_free_waits(struct device *device, const struct allocation *allocation);

#endif

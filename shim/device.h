/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The devices of this process: connecting to the daemon, and finding them again. */
#ifndef GREENBOOST_DEVICE_H
#define GREENBOOST_DEVICE_H

#include "residency.h"

/*
 * The device of the current context, connected and ready to page; NULL if there
 * is no context, or no daemon to work with (said once on stderr): then the
 * program runs as without us.
 */
struct device *device_obtain(void);

/* The same without a context, for totals: connected, perhaps not ready to page. */
struct device *device_connect(CUdevice ordinal);

#define MAX_DEVICES 16

/* The device if it is connected already, perhaps not ready to page, else NULL. */
struct device *device_connected(CUdevice ordinal);

/* The device if it is ready to page, else NULL. */
struct device *device_ready(CUdevice ordinal);

/* Has this process more than one device to use? */
bool device_several(void);

/* Is there a daemon to work with, as far as is known? */
bool device_wanted(void);

/* The device in whose paged allocations the address lies; NULL if in none. Takes no lock. */
struct device *device_of(CUdeviceptr address);

/* The device that made this allocation, direct ones included, NULL if none did. */
struct device *device_owning(CUdeviceptr base);

/* The device of the current context if it pages anything, else NULL. */
struct device *device_paging(void);

/* The context is gone and everything in it. */
void device_abandon(CUdevice ordinal);
void device_abandon_context(CUcontext context);

#endif

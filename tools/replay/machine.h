/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The machine under the shim's pager: a driver whose copies, mappings and events
 * take what they are said to take, and a daemon with a disk, all on a clock of
 * their own. Nothing is really moved. Two threads are played by one: the program
 * and the pager, each with its time; whichever calls the driver pays.
 */
#ifndef GREENBOOST_REPLAY_MACHINE_H
#define GREENBOOST_REPLAY_MACHINE_H

#include <stdbool.h>

#include "replay.h"
#include "residency.h"

/* A device of the shim's on a new machine; one at a time. */
struct device *machine_new(const struct machine *machine, uint32_t chunks);
void machine_free(struct device *device);

/* The chunk has other bytes now. */
void machine_change(uint32_t chunk);

double machine_time(void); /* the program's */
void machine_pass_time(double seconds); /* of the program; the pager does what it can meanwhile */

/* The program's only stream: when all that it was given is over. */
CUstream machine_stream(void);
double machine_stream_end(void);

/* The program gives it so much to compute. Returns for how long it had nothing to do before. */
double machine_compute(double seconds);

/* The program waits for the GPU. */
void machine_synchronize(void);

/* The program waits until an allocation has been taken apart. */
void machine_end(struct allocation *allocation);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Inside the predictor: who leaves VRAM after a use, and who stays until the next one. */
#ifndef GREENBOOST_PREDICT_PLAN_H
#define GREENBOOST_PREDICT_PLAN_H

#include "predict.h"

/* The program went on elsewhere: the next plan is of the pass that is there. */
void plan_begin(struct predictor *p);

/* Until a pass has been looked at: as if all of it were one loop. */
void plan_guess(struct predictor *p);

/* After a launch: work on the plan for the next pass, and mark who of this launch leaves. */
void plan_go_on(struct predictor *p);

/* So many chunks of the pass do not fit. */
uint64_t plan_overflow(const struct predictor *p);

/* So many places are for what comes and goes; the others keep what they have. */
uint64_t plan_places(const struct predictor *p);

/* Those marked, in order of use, without the first that are used again or gone. */
uint32_t plan_leaving(struct predictor *p);

/* One of them; PREDICT_NONE: it stays by now. */
uint32_t plan_leaver(const struct predictor *p, uint32_t n);

#endif

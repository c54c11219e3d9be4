/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Says which kernel or copy touched an address that is not mapped, before the process dies of it.
 */
#ifndef SOFTCUDA_FAULT_H
#define SOFTCUDA_FAULT_H

void fault_init(void);

#endif

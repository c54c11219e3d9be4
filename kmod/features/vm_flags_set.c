// SPDX-License-Identifier: GPL-2.0-only
/* Since 6.3 a mapping's flags are changed through functions. */
#include <linux/mm.h>

void probe(struct vm_area_struct *vma)
{
	vm_flags_set(vma, VM_MIXEDMAP);
}

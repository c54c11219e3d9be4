/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A forwarding stub: endbr64 because it is reached through pointers where the
 * processor checks those; a jump, not a call, so that the driver sees the
 * program's own stack and registers.
 */
	.macro STUB name, index
	.globl \name
	.type \name, @function
	.p2align 4
\name:
	endbr64
	jmp *(driver_stub_targets + 8 * \index)(%rip)
	.size \name, . - \name
	.endm

// SPDX-License-Identifier: GPL-2.0-or-later
#include "fault.h"

#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "settings.h"
#include "work.h"

static struct sigaction previous;
static atomic_bool spoilt;
/* initial-exec: reading it in a signal handler must not allocate. */
static __thread sigjmp_buf *back __attribute__((tls_model("initial-exec")));

/* Only what is safe in a signal handler from here on. */

static char *append(char *at, const char *end, const char *text)
{
	while (*text && at < end)
		*at++ = *text++;
	return at;
}

static char *append_hex(char *at, const char *end, uintptr_t value)
{
	char digits[2 * sizeof value + 1];
	size_t i = sizeof digits - 1;

	digits[i] = 0;
	do {
		digits[--i] = "0123456789abcdef"[value % 16];
		value /= 16;
	} while (value);
	return append(append(at, end, "0x"), end, digits + i);
}

static const char *type_name(int type)
{
	switch (type) {
	case CU_GRAPH_NODE_TYPE_KERNEL:
		return "kernel ";
	case CU_GRAPH_NODE_TYPE_HOST:
		return "a ";
	default:
		return "";
	}
}

static void report(const struct work *work, uintptr_t address)
{
	char line[256], *at = line;
	const char *end = line + sizeof line - 1;

	at = append(at, end, "softcuda: ");
	at = append(at, end, type_name(work->type));
	at = append(at, end, work->name);
	at = append(at, end, " touched ");
	at = append_hex(at, end, address);
	at = append(at, end, ", which is not mapped");
	*at++ = '\n';
	/* There is nothing to do about a stderr that cannot be written. */
	(void)!write(STDERR_FILENO, line, (size_t)(at - line));
}

static void on_fault(int signal, siginfo_t *info, void *context)
{
	const struct work *work = work_current();

	/* A signal that was sent by somebody has no address. */
	if (work && info->si_code > 0)
		report(work, (uintptr_t)info->si_addr);
	if (back && info->si_code > 0) {
		spoilt = true;
		siglongjmp(*back, 1);
	}
	if (previous.sa_flags & SA_SIGINFO) {
		previous.sa_sigaction(signal, info, context);
		return;
	}
	if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
		previous.sa_handler(signal);
		return;
	}
	/* The access is tried again on return, and the process dies where it went wrong. */
	sigaction(signal, &(struct sigaction){ .sa_handler = SIG_DFL }, NULL);
	if (info->si_code <= 0)
		raise(signal);
}

void fault_run(softcuda_kernel_fn fn, const struct softcuda_launch *launch, void **params)
{
	sigjmp_buf here;

	if (spoilt)
		return;
	if (settings.spoil) {
		back = &here;
		if (!sigsetjmp(here, 1))
			fn(launch, params);
		back = NULL;
	} else {
		fn(launch, params);
	}
}

CUresult fault_error(void)
{
	return spoilt ? CUDA_ERROR_ILLEGAL_ADDRESS : CUDA_SUCCESS;
}

void fault_init(void)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK };

	sigemptyset(&action.sa_mask);
	sigaction(SIGSEGV, &action, &previous);
}

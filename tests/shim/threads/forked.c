// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A child of fork() ends what its parent began, as the destructors of libraries do. Whatever
 * lock another thread of the parent held then, it does not wait for it.
 *
 * SOURCE is the file whose lock it is, TAKE how it is taken, USE what the child does.
 */
#define _GNU_SOURCE
#include <sys/wait.h>
#include <unistd.h>

#include "driver.h"
#include SOURCE

struct driver driver;

const char *driver_error(CUresult error)
{
	(void)error;
	return "";
}

static CUresult destroy(CUmemoryPool pool)
{
	(void)pool;
	return CUDA_SUCCESS;
}

int main(void)
{
	int status;
	pid_t child;

	driver.cuMemPoolDestroy = destroy;
	TAKE;
	child = fork();
	if (!child) {
		alarm(10);
		USE;
		_exit(0);
	}
	if (child < 0 || waitpid(child, &status, 0) != child)
		return 1;
	return status != 0;
}

// SPDX-License-Identifier: GPL-2.0-or-later
#include "function.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "fork.h"

#define BUCKETS 4096

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards what follows */
static struct function *functions[BUCKETS];
static uint32_t count;

/* A ring. Threads that launch at once may mix up an entry; nothing but a line depends on it. */
static struct {
	_Atomic(CUfunction) function;
	_Atomic(CUstream) stream;
} launches[FUNCTIONS_LAST];
static atomic_uint next_launch;

static struct function **bucket_of(CUfunction f)
{
	return &functions[((uintptr_t)f >> 4) % BUCKETS];
}

static struct function *find(CUfunction f)
{
	struct function *known = *bucket_of(f);

	while (known && known->handle != f)
		known = known->next;
	return known;
}

/* In the thread that launches: one that writes for others must not want the loader's lock. */
static char *demangled(const char *name)
{
	static const char *const function = "__cxa_demangle";
	char *(*demangle)(const char *, char *, size_t *, int *);
	int status = 0;

	if (name[0] != '_')
		return NULL;
	*(void **)&demangle = dlsym(RTLD_DEFAULT, function);
	if (!demangle) {
		/* Python loads it for its extensions alone, not among the symbols of all. */
		void *library = dlopen("libstdc++.so.6", RTLD_LAZY | RTLD_NOLOAD);

		if (library)
			*(void **)&demangle = dlsym(library, function);
	}
	return demangle ? demangle(name, NULL, NULL, &status) : NULL;
}

static struct function *new_function(CUfunction f, const char *name)
{
	struct function *made = malloc(sizeof(*made) + strlen(name) + 1);

	if (!made)
		return NULL;
	*made = (struct function){ .handle = f, .demangled = demangled(name) };
	strcpy(made->name, name);
	return made;
}

struct function *function_of(CUfunction f)
{
	struct function *known, *made;
	const char *name = NULL;

	pthread_mutex_lock(&lock);
	known = find(f);
	pthread_mutex_unlock(&lock);
	if (known)
		return known;
	if (driver.cuKernelGetName(&name, (CUkernel)f) || !name)
		if (driver.cuFuncGetName(&name, f) || !name)
			name = "";
	made = new_function(f, name);
	if (!made)
		return NULL;
	pthread_mutex_lock(&lock);
	known = find(f);
	if (!known) {
		made->number = count++;
		made->next = *bucket_of(f);
		*bucket_of(f) = made;
	}
	pthread_mutex_unlock(&lock);
	if (known) {
		free(made->demangled);
		free(made);
	}
	return known ? known : made;
}

const char *function_shown(const struct function *f)
{
	if (f->demangled)
		return f->demangled;
	return f->name[0] ? f->name : "unnamed kernel";
}

void functions_note(CUfunction f, CUstream stream)
{
	unsigned int n =
		atomic_fetch_add_explicit(&next_launch, 1, memory_order_relaxed) % FUNCTIONS_LAST;

	atomic_store_explicit(&launches[n].function, f, memory_order_relaxed);
	atomic_store_explicit(&launches[n].stream, stream, memory_order_relaxed);
}

const struct function *functions_last(unsigned int n, CUstream *stream)
{
	unsigned int at = (atomic_load(&next_launch) - 1 - n) % FUNCTIONS_LAST;
	CUfunction f = atomic_load(&launches[at].function);

	*stream = atomic_load(&launches[at].stream);
	return f ? function_of(f) : NULL;
}

struct function *function_named(const char *name)
{
	struct function *made = new_function(NULL, name);

	if (!made)
		return NULL;
	pthread_mutex_lock(&lock);
	made->number = count++;
	pthread_mutex_unlock(&lock);
	return made;
}

void functions_forget(void)
{
	for (unsigned int n = 0; n < FUNCTIONS_LAST; n++)
		atomic_store(&launches[n].function, NULL);
	pthread_mutex_lock(&lock);
	for (uint32_t i = 0; i < BUCKETS; i++)
		for (struct function *f = functions[i]; f; f = f->next)
			f->handle = NULL;
	pthread_mutex_unlock(&lock);
}

/* It has no CUDA, and another thread may have been at it. */
static void in_child(void)
{
	pthread_mutex_init(&lock, NULL);
	memset(functions, 0, sizeof(functions));
	count = 0;
}

IN_EVERY_CHILD(in_child)

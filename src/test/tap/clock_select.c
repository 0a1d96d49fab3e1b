/*
 * clock_select.c
 *		Preloaded in front of libfaketime: the engine's postmaster under a shifted clock.
 *
 * While libfaketime waits in its own select(), it shows the real time.  The postmaster of
 * PostgreSQL 15 works in signal handlers that interrupt just that: a background worker
 * that it forks there would never see the shifted clock.  So select() is taken from the
 * C library; nothing in the server needs its time limit to be shifted.
 *
 * libfaketime allocates memory when it is asked for the time, and PostgreSQL asks for it in
 * its handler of SIGALRM.  A session that has statistics to report keeps a timer running
 * while it works (for as long as ten seconds, if the clock has just been set back); an
 * alarm within malloc() then destroyed the heap, once in half an hour of chaos.  So alarms wait
 * until malloc() and its relatives are done.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/select.h>

int
select(int nfds, fd_set *readfds, fd_set *writefds, fd_set *exceptfds, struct timeval *timeout)
{
	static int	(*engine) (int, fd_set *, fd_set *, fd_set *, struct timeval *);

	if (engine == NULL)
	{
		void	   *libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);

		engine = libc != NULL ? dlsym(libc, "select") : NULL;
		if (engine == NULL)
			abort();
	}
	return engine(nfds, readfds, writefds, exceptfds, timeout);
}

/* The C library's own, by the names under which it exports them for this. */
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *block, size_t size);
extern void __libc_free(void *block);

static sigset_t
hold_alarms(void)
{
	sigset_t	alarms;
	sigset_t	before;

	sigemptyset(&alarms);
	sigaddset(&alarms, SIGALRM);
	sigprocmask(SIG_BLOCK, &alarms, &before);
	return before;
}

void *
malloc(size_t size)
{
	sigset_t	before = hold_alarms();
	void	   *block = __libc_malloc(size);

	sigprocmask(SIG_SETMASK, &before, NULL);
	return block;
}

void *
calloc(size_t n, size_t size)
{
	sigset_t	before = hold_alarms();
	void	   *block = __libc_calloc(n, size);

	sigprocmask(SIG_SETMASK, &before, NULL);
	return block;
}

void *
realloc(void *old, size_t size)
{
	sigset_t	before = hold_alarms();
	void	   *block = __libc_realloc(old, size);

	sigprocmask(SIG_SETMASK, &before, NULL);
	return block;
}

void
free(void *block)
{
	sigset_t	before = hold_alarms();

	__libc_free(block);
	sigprocmask(SIG_SETMASK, &before, NULL);
}

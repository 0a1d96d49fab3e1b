/*
 * clock_select.c
 *		Preloaded in front of libfaketime: the engine's postmaster under a shifted clock.
 *
 * While libfaketime waits in its own select(), it shows the real time.  The postmaster of
 * PostgreSQL 15 works in signal handlers that interrupt just that: a background worker
 * that it forks there would never see the shifted clock.  So select() is taken from the
 * C library; nothing in the server needs its time limit to be shifted.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
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

/*
 * shrink.c
 *		Making a failing history small.
 *
 * Parts are taken out as long as what is left still fails: runs of events, from
 * long to short, then single operations, then what makes an event special.
 */
#include "sim.h"

#include <string.h>

static bool
still_fails(const SimHistory *h)
{
	return !SimRun(h);
}

static bool
try_without_events(SimHistory *h, int first, int n)
{
	static SimHistory attempt;

	attempt = *h;
	memmove(&attempt.events[first], &attempt.events[first + n],
			sizeof(SimEvent) * (size_t) (h->nevents - first - n));
	attempt.nevents -= n;
	if (!still_fails(&attempt))
		return false;
	*h = attempt;
	return true;
}

static bool
shrink_events(SimHistory *h)
{
	bool		shrunk = false;

	for (int n = h->nevents / 2; n > 0; n /= 2)
	{
		for (int first = 0; first + n <= h->nevents;)
		{
			if (try_without_events(h, first, n))
				shrunk = true;
			else
				first++;
		}
	}
	return shrunk;
}

/* Try another form of event i. */
static bool
try_event(SimHistory *h, int i, const SimEvent *event)
{
	SimEvent	old = h->events[i];

	if (memcmp(&old, event, sizeof(SimEvent)) == 0)
		return false;
	h->events[i] = *event;
	if (still_fails(h))
		return true;
	h->events[i] = old;
	return false;
}

static bool
shrink_ops(SimHistory *h, int i)
{
	bool		shrunk = false;

	for (int op = 0; op < h->events[i].nops && h->events[i].nops > 1;)
	{
		SimEvent	event = h->events[i];

		memmove(&event.ops[op], &event.ops[op + 1], sizeof(SimOp) * (size_t) (event.nops - op - 1));
		event.nops--;
		if (try_event(h, i, &event))
			shrunk = true;
		else
			op++;
	}
	return shrunk;
}

static bool
shrink_values(SimHistory *h, int i)
{
	bool		shrunk = false;

	for (int op = 0; op < h->events[i].nops; op++)
	{
		for (int j = 0; j < SIM_INDEXES + 3; j++)
		{
			SimEvent	event = h->events[i];

			if (j < SIM_INDEXES)
				event.ops[op].unique[j] = event.ops[op].kind == SIM_INSERT ? -1 : SIM_UNCHANGED;
			else if (j == SIM_INDEXES)
				event.ops[op].wide = false;
			else if (j == SIM_INDEXES + 1)
				event.ops[op].add = 0;
			else if (event.ops[op].kind != SIM_INSERT)
				event.ops[op].set = 0;
			shrunk |= try_event(h, i, &event);
		}
	}
	return shrunk;
}

static bool
shrink_event(SimHistory *h, int i)
{
	SimEvent	event = h->events[i];
	bool		shrunk = false;

	if (event.kind == SIM_CRASH)
		event.kind = SIM_DELIVER;
	if (event.kind == SIM_DELIVER)
		event.c = event.d = event.nops = 0;
	shrunk = try_event(h, i, &event);
	event = h->events[i];
	if (event.kind == SIM_DELIVER)
		event.c = event.d = 0;
	shrunk |= try_event(h, i, &event);
	shrunk |= shrink_ops(h, i);
	shrunk |= shrink_values(h, i);
	return shrunk;
}

static bool
shrink_schema(SimHistory *h)
{
	SimHistory	old = *h;
	bool		shrunk = false;

	for (int t = 0; t < h->ntables; t++)
	{
		for (int change = 0; change < 5; change++)
		{
			old = *h;
			if (change == 0 && h->tables[t].indexes > 0)
				h->tables[t].indexes--;
			if (change == 1)
				h->tables[t].wide = false;
			if (change == 2)
				h->tables[t].merged = false;
			if (change == 3)
				h->tables[t].deferrable = false;
			if (change == 4)
				h->tables[t].range = false;
			if (memcmp(&old, h, sizeof(old)) == 0)
				continue;
			if (still_fails(h))
				shrunk = true;
			else
				*h = old;
		}
	}
	old = *h;
	if (h->nnodes > 2)
	{
		h->nnodes--;
		if (still_fails(h))
			return true;
		*h = old;
	}
	return shrunk;
}

/* The history must fail; it still does afterwards. */
void
SimShrink(SimHistory *h)
{
	bool		shrunk = true;

	for (int round = 0; shrunk && round < 20; round++)
	{
		shrunk = shrink_events(h);
		for (int i = 0; i < h->nevents; i++)
			shrunk |= shrink_event(h, i);
		shrunk |= shrink_schema(h);
	}
}

/*
 * history.c
 *		Random histories; running one and checking its end.
 */
#include "sim.h"

#include <stdarg.h>
#include <string.h>

static Sim	world;
Sim		   *sim = &world;
uint64_t	SimWithout = 0;

void
SimFail(const char *format, ...)
{
	va_list		args;

	if (sim->failure[0] != '\0')
		return;
	va_start(args, format);
	vsnprintf(sim->failure, sizeof(sim->failure), format, args);
	va_end(args);
}

/* ---- random histories ----------------------------------------------------------- */

static uint64_t state;

/* splitmix64 */
static uint32_t
below(uint32_t n)
{
	uint64_t	z = (state += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return (uint32_t) ((z ^ (z >> 31)) % n);
}

static void
random_unique(const SimHistory *h, SimOp *op)
{
	for (int i = 0; i < SIM_INDEXES; i++)
	{
		op->unique[i] = (int8_t) below((uint32_t) h->nvalues);
		if (below(8) == 0)
			op->unique[i] = -1;
		if (op->kind != SIM_INSERT && below(2) == 0)
			op->unique[i] = SIM_UNCHANGED;
	}
}

static bool truncates;

static void
random_op(const SimHistory *h, SimOp *op)
{
	static const uint8_t kinds[] = {
		SIM_INSERT, SIM_INSERT, SIM_INSERT, SIM_UPDATE, SIM_UPDATE, SIM_UPDATE,
		SIM_UPDATE, SIM_DELETE, SIM_DELETE, SIM_REKEY, SIM_SWAP};

	memset(op, 0, sizeof(SimOp));
	op->kind = kinds[below(sizeof(kinds))];
	if (truncates && below(20) == 0)
		op->kind = SIM_TRUNCATE;
	op->table = (int8_t) below((uint32_t) h->ntables);
	op->key = (int8_t) below((uint32_t) h->nkeys);
	op->to = op->kind == SIM_REKEY || op->kind == SIM_SWAP ? (int8_t) below((uint32_t) h->nkeys) : op->key;
	random_unique(h, op);
	op->wide = below(3) == 0;
	if (!h->tables[op->table].merged)
		return;
	if (op->kind == SIM_INSERT)
		op->set = 7;
	else if (below(3) == 0)
		op->set = (int8_t) (below(7) & ~(below(2) ? 1u : 0u));
	for (int i = 0; i < SIM_COLUMNS; i++)
		op->values[i] = below(12) == 0 ? -1 : (int8_t) below(50);
	if (op->kind != SIM_INSERT && below(3) > 0)
		op->add = (int8_t) (1 + below(9));
}

static void
random_event(const SimHistory *h, SimEvent *e, bool members)
{
	uint32_t	dice = below(members ? 106 : 100);
	uint32_t	nodes = members ? SIM_NODES : (uint32_t) h->nnodes;

	memset(e, 0, sizeof(SimEvent));
	e->a = (int) below(nodes);
	e->b = (int) below(nodes);
	if (dice < 36)
	{
		e->kind = SIM_LOCAL;
		e->nops = 1 + (below(3) == 0 ? (int) below(SIM_WRITES) : 0);
		for (int i = 0; i < e->nops; i++)
			random_op(h, &e->ops[i]);
	}
	else if (dice < 82)
	{
		e->kind = SIM_DELIVER;
		e->c = below(4) == 0 ? (int) below(1024) : 0;
		e->d = below(10) == 0 ? 1 + (int) below(4) : 0;
		if (below(10) == 0)
			random_op(h, &e->ops[e->nops++]);
	}
	else if (dice < 85)
	{
		e->kind = SIM_CRASH;
		e->c = 1 + (int) below(12);
	}
	else if (dice < 87)
		e->kind = SIM_RESTART;
	else if (dice < 89)
	{
		e->kind = SIM_CLOCK;
		e->b = (int) below(21) - 10;
	}
	else if (dice < 91)
	{
		e->kind = SIM_TICK;
		e->a = 1 + (int) below(12);
	}
	else if (dice < 95)
		e->kind = SIM_MARK;
	else if (dice < 98)
		e->kind = SIM_COLLECT;
	else if (dice < 100)
	{
		e->kind = SIM_REWRITE;
		e->b = (int) below((uint32_t) h->ntables);
	}
	else
		e->kind = below(3) == 0 ? SIM_STALE : SIM_JOIN;
}

void
SimRandomHistory(SimHistory *h, uint64_t seed)
{
	bool		members;

	state = seed * UINT64_C(0x2545f4914f6cdd1d) + 1;
	memset(h, 0, sizeof(SimHistory));
	members = below(3) == 0;
	truncates = below(8) == 0;
	h->nnodes = 2 + (int) below(SIM_NODES - 1);
	h->nkeys = 1 + (int) below(SIM_KEYS);
	h->nvalues = 1 + (int) below(SIM_VALUES);
	h->ntables = below(4) == 0 ? 1 + (int) below(SIM_TABLES) : 1;
	for (int i = 0; i < h->ntables; i++)
	{
		h->tables[i].indexes = below(3) == 0 ? 0 : 1 + (int) below(SIM_INDEXES);
		h->tables[i].wide = below(3) > 0;
		h->tables[i].merged = below(3) == 0;
		h->tables[i].deferrable = h->tables[i].indexes > 0 && below(3) == 0;
		h->tables[i].range = h->tables[i].indexes > 0 && below(4) == 0;
	}
	h->nevents = 10 + (int) below(SIM_EVENTS - 10);
	if (below(2) == 0)
		h->nevents = 10 + (int) below(40);
	for (int i = 0; i < h->nevents; i++)
		random_event(h, &h->events[i], members);
}

/* ---- running one ------------------------------------------------------------------ */

static void
run_event(const SimEvent *e)
{
	switch (e->kind)
	{
		case SIM_LOCAL:
			SimLocal(e->a, e);
			break;
		case SIM_DELIVER:
			SimDeliver(e->a, e->b, e, 0);
			break;
		case SIM_CRASH:
			SimDeliver(e->a, e->b, NULL, e->c);
			break;
		case SIM_RESTART:
			SimRestart(e->a);
			break;
		case SIM_CLOCK:
			sim->nodes[e->a].skew = e->b;
			break;
		case SIM_TICK:
			sim->time += e->a;
			break;
		case SIM_MARK:
			SimMark(e->a);
			break;
		case SIM_COLLECT:
			SimCollect(e->a);
			break;
		case SIM_JOIN:
			SimJoin(e->a, e->b);
			break;
		case SIM_STALE:
			SimStale(e->a);
			break;
		case SIM_REWRITE:
			SimRewrite(e->a, e->b);
			break;
		case SIM_EVENT_KINDS:
			break;
	}
}

/* Writes have stopped, links are healed: deliver all there is. */
static void
drain(void)
{
	bool		progress = true;

	while (progress && sim->failure[0] == '\0')
	{
		progress = false;
		for (int to = 0; to < SIM_NODES; to++)
		{
			for (int from = 0; from < SIM_NODES; from++)
			{
				while (sim->failure[0] == '\0' && SimDeliver(to, from, NULL, 0))
					progress = true;
			}
		}
	}
}

static void
start(const SimHistory *h)
{
	/* The logs are written before they are read. */
	memset(sim->nodes, 0, sizeof(sim->nodes));
	memset(sim->nlog, 0, sizeof(sim->nlog));
	memset(sim->restarted_at, 0, sizeof(sim->restarted_at));
	memset(sim->restarted_upper, 0, sizeof(sim->restarted_upper));
	sim->history = h;
	sim->time = 20;
	sim->stamp = 0;
	sim->nextras = 0;
	memset(sim->in_doubt, 0, sizeof(sim->in_doubt));
	memset(sim->truncated, 0, sizeof(sim->truncated));
	sim->lost_one = false;
	sim->failure[0] = '\0';
	for (int i = 0; i < h->nnodes; i++)
		sim->nodes[i].active = true;
}

/* A node that was lost is back, so that its promises are tested too. */
static void
bring_back(void)
{
	int			member = 0;

	while (!sim->nodes[member].active)
		member++;
	for (int i = 0; i < SIM_NODES; i++)
	{
		if (!sim->nodes[i].active && sim->nodes[i].greatest > 0)
			SimJoin(i, member);
	}
}

static void
check_collected(void)
{
	for (int round = 0; round < 3; round++)
	{
		for (int i = 0; i < SIM_NODES; i++)
			SimMark(i);
		drain();
		sim->time++;
	}
	for (int i = 0; i < SIM_NODES; i++)
	{
		SimCollect(i);
		if (sim->nodes[i].active && SimLeftovers(i) > 0)
			SimFail("node %d: %d dead rows, claims or records are left in the end", i, SimLeftovers(i));
	}
}

bool
SimRun(const SimHistory *h)
{
	start(h);
	for (int i = 0; i < h->nevents && sim->failure[0] == '\0'; i++)
	{
		sim->time++;
		run_event(&h->events[i]);
	}
	for (int i = 0; i < SIM_NODES; i++)
		sim->nodes[i].skew = 0;
	sim->time += 1000;
	if (sim->failure[0] == '\0')
		drain();
	if (sim->failure[0] == '\0')
		bring_back();
	if (sim->failure[0] == '\0')
		drain();
	if (sim->failure[0] == '\0')
		SimCheck();
	if (sim->failure[0] == '\0')
		check_collected();
	if (sim->failure[0] == '\0')
		SimCheck();
	return sim->failure[0] == '\0';
}

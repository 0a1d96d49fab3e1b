/*
 * sim.h
 *		The simulator of the convergence rules: many nodes in one process.
 *
 *	store.c		what a node stores, and the callbacks of KdbMerge over it
 *	local.c		transactions of a node's own users
 *	stream.c	delivery, crashes, watermarks, the horizon
 *	member.c	joining from a snapshot; losing a node and its return
 *	reference.c what must come out, computed from the set of all writes
 *	history.c	random histories; running one and checking its end
 *	shrink.c	making a failing history small
 *	scenario.c	histories as text
 *	main.c		command line
 *
 * A history is a list of events.  Each event carries all its choices and is lenient:
 * what makes no sense any more (an update of a row that is not there) is passed
 * over.  So events can be taken out one by one, and what fails still fails the same
 * way each time.
 */
#ifndef SIM_H
#define SIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "krahodb/merge.h"

#define SIM_NODES		5
#define SIM_TABLES		3
#define SIM_KEYS		5
#define SIM_INDEXES		3		/* secondary unique keys */
#define SIM_VALUES		4		/* of a unique column */
#define SIM_COLUMNS		3		/* merged: a delta, a maximum, a minimum */
#define SIM_WRITES		4		/* of one transaction */
#define SIM_LOG			96		/* entries of one node's stream */
#define SIM_HISTORY		200		/* contributions to one key */
#define SIM_EVENTS		160
#define SIM_EXTRAS		64
#define SIM_CLAIMANTS	16
#define SIM_NULL		INT32_MIN

/* Rules of the server's side that can be switched off, beside those of src/common. */
enum
{
	SIM_WITHOUT_CLOCK_COMMIT = 1 << 0,	/* commit later than all that was applied */
	SIM_WITHOUT_CLOCK_FETCH = 1 << 1,	/* fetched versions count as applied */
	SIM_WITHOUT_AHEAD = 1 << 2, /* upper bounds count fetched rows */
	SIM_WITHOUT_RETENTION = 1 << 3, /* dead rows and claims are kept until the horizon */
	SIM_WITHOUT_STABILITY = 1 << 4, /* the horizon waits for what peers have received */
	SIM_WITHOUT_RESTART = 1 << 5,	/* a restarted sender raises its upper bounds */
	SIM_WITHOUT_ATOMIC = 1 << 6,	/* data and position change together */
	SIM_WITHOUT_JOIN_DEAD = 1 << 7, /* a snapshot contains dead rows ... */
	SIM_WITHOUT_JOIN_CLAIMS = 1 << 8,	/* ... claims ... */
	SIM_WITHOUT_JOIN_VERSIONS = 1 << 9, /* ... true versions ... */
	SIM_WITHOUT_JOIN_HISTORY = 1 << 10, /* ... contributions ... */
	SIM_WITHOUT_JOIN_AHEAD = 1 << 11,	/* ... and what was fetched */
	SIM_WITHOUT_RESYNC = 1 << 12,	/* a stale node starts from a new snapshot */
	SIM_WITHOUT_LEVEL = 1 << 13,	/* survivors bring each other up */
	SIM_WITHOUT_LOST_ROWS = 1 << 14,	/* ... and exchange rows fetched from the lost node */
	SIM_WITHOUT_NEW_IDENTITY = 1 << 15, /* which comes back as another one */
	SIM_WITHOUT_OLDER_FIRST = 1 << 16,	/* of more holders than are asked for, older ones come first */
	SIM_WITHOUT_CLAIM_AT_END = 1 << 17, /* who has kept a deferrable value is looked at in the end */
	SIM_WITHOUT_REWRITE_HISTORY = 1 << 19,	/* contributions outlive that a table is written anew */
	SIM_WITHOUT_EMPTIED = 1 << 18	/* what was truncated since the write is dead as the write left it */
};

extern uint64_t SimWithout;

#define SIM_RULE(name)	((SimWithout & SIM_WITHOUT_##name) == 0)

typedef struct SimTable
{
	int			indexes;
	bool		deferrable;		/* the first of these */
	bool		range;			/* the last one is an exclusion constraint: value 0 overlaps with all */
	bool		wide;			/* has a column that is not sent when unchanged */
	bool		merged;
} SimTable;

typedef struct SimRow
{
	int8_t		unique[SIM_INDEXES];	/* -1: NULL */
	int32_t		value;
	int32_t		wide;
	int32_t		merged[SIM_COLUMNS];
} SimRow;

/* One change of a transaction, as it is sent; row is complete for the reference. */
typedef struct SimWrite
{
	KdbOperation operation;
	int8_t		table;
	int8_t		old_key;
	int8_t		new_key;
	bool		unsent;
	bool		truncate;		/* the table; nothing else of this counts */
	SimRow		row;
	int32_t		old_merged[SIM_COLUMNS];
} SimWrite;

/* One entry of a node's stream: a transaction, or a watermark. */
typedef struct SimEntry
{
	bool		mark;
	KdbVersion	version;
	uint32_t	transaction;	/* its number where it was committed */
	int			nwrites;
	SimWrite	writes[SIM_WRITES];
	uint64_t	surely[SIM_NODES];
	uint64_t	maybe[SIM_NODES];
	int64_t		written;		/* mark: all commits up to here precede it */
	int64_t		received;		/* mark: of all peers the same was applied there */
} SimEntry;

/* What one write contributed to the merged columns. */
typedef struct SimContribution
{
	KdbVersion	version;
	uint8_t		kind[SIM_COLUMNS];	/* KdbContributionKind */
	int32_t		value[SIM_COLUMNS];
} SimContribution;

/* A key as the server stores it: heap, and a version record beside it. */
typedef struct SimKey
{
	bool		live;
	SimRow		row;
	KdbVersion	shown;			/* version of the transaction that wrote the live row */
	uint32_t	shown_by;		/* number of that local transaction */
	KdbVersion	ended;			/* greatest version of a transaction that ended a row */
	uint32_t	ended_by;
	bool		record;
	bool		record_live;
	KdbVersion	record_version; /* the truth ... */
	KdbVersion	record_shown;	/* ... while the heap shows this */
	uint32_t	record_by;
	bool		rewritten;		/* its table was: where the row stands in a stream is not known */
	int			nhistory;
	SimContribution history[SIM_HISTORY];
} SimKey;

typedef struct SimNode
{
	bool		active;
	int64_t		skew;			/* its clock against the true time */
	int64_t		greatest;		/* timestamp applied, fetched or committed */
	uint32_t	transactions;	/* local ones, numbered */
	SimKey		keys[SIM_TABLES][SIM_KEYS];
	KdbVersion	claims[SIM_TABLES][SIM_INDEXES][SIM_VALUES][SIM_KEYS];
	uint32_t	emptied_by[SIM_TABLES]; /* number of the last transaction that truncated it */
	uint64_t	applied[SIM_NODES]; /* entries of each stream */
	uint64_t	ahead[SIM_NODES];	/* fetched rows may be as far as this */
	uint64_t	floor[SIM_NODES];	/* positions up to here are not known exactly */
	int64_t		written[SIM_NODES]; /* watermarks received */
	int64_t		received[SIM_NODES];
} SimNode;

/* A state that only a fetch had brought from a node which was then lost. */
typedef struct SimExtra
{
	int8_t		table;
	int8_t		key;
	KdbFetched	state;			/* ABSENT: only a claim */
	SimRow		row;
} SimExtra;

typedef enum SimEventKind
{
	SIM_LOCAL,					/* node a commits ops */
	SIM_DELIVER, /* to a from b; c: spoiled seen vector, d: n-th action is disturbed;
								 * ops: committed by a's user after the first write */
	SIM_CRASH,					/* as DELIVER, but a crashes at its c-th callback */
	SIM_RESTART,				/* sender a restarts */
	SIM_CLOCK,					/* skew of a becomes b */
	SIM_TICK,					/* a passes of true time */
	SIM_MARK,					/* a sends its watermarks */
	SIM_COLLECT,				/* a drops what is behind its horizon */
	SIM_JOIN,					/* a joins with a snapshot of b */
	SIM_STALE,					/* a is declared stale */
	SIM_REWRITE,				/* a writes all rows of table b anew */
	SIM_EVENT_KINDS
} SimEventKind;

typedef enum SimOpKind
{
	SIM_INSERT,
	SIM_UPDATE,
	SIM_DELETE,
	SIM_REKEY,					/* key becomes to */
	SIM_SWAP,					/* key and to exchange a unique value (deferred constraint) */
	SIM_TRUNCATE,				/* the table; key does not matter */
	SIM_OP_KINDS
} SimOpKind;

#define SIM_UNCHANGED	(-2)	/* of a unique value */

typedef struct SimOp
{
	uint8_t		kind;
	int8_t		table;
	int8_t		key;
	int8_t		to;
	int8_t		unique[SIM_INDEXES];
	bool		wide;			/* change it */
	int8_t		add;			/* to the delta column */
	int8_t		set;			/* bits: assign this merged column ... */
	int8_t		values[SIM_COLUMNS];	/* ... this; -1: NULL */
} SimOp;

typedef struct SimEvent
{
	SimEventKind kind;
	int			a;
	int			b;
	int			c;
	int			d;
	int			nops;
	SimOp		ops[SIM_WRITES];
} SimEvent;

typedef struct SimHistory
{
	int			nnodes;			/* at the start; others may join */
	int			nkeys;
	int			nvalues;
	int			ntables;
	SimTable	tables[SIM_TABLES];
	int			nevents;
	SimEvent	events[SIM_EVENTS];
} SimHistory;

/* All of the world that a history runs in. */
typedef struct Sim
{
	const SimHistory *history;
	int64_t		time;
	int32_t		stamp;			/* values that are all different */
	SimNode		nodes[SIM_NODES];
	SimEntry	log[SIM_NODES][SIM_LOG];
	int			nlog[SIM_NODES];

	/* The last restart of each sender: what it did not know any more. */
	uint64_t	restarted_at[SIM_NODES][SIM_NODES]; /* sender, receiver */
	uint64_t	restarted_upper[SIM_NODES][SIM_NODES];	/* sender, other node */
	bool		lost_one;
	int			lost;			/* which */
	uint64_t	kept;			/* of its stream */
	bool		in_doubt[SIM_TABLES];	/* truncated while something was on its way: not promised to end equal */
	KdbVersion	truncated[SIM_TABLES];	/* last time */
	int			nextras;
	SimExtra	extras[SIM_EXTRAS];
	char		failure[400];	/* empty if all is well */
	long		conflicts;
	long		fetches;
	long		transactions;
} Sim;

/* The world of the history that runs. */
extern Sim *sim;

/* Note what is wrong, unless something was before. */
extern void SimFail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* store.c */
extern void SimFind(const SimNode *node, int table, int key, KdbLocalRow *local, uint32_t transaction);
extern int	SimHolderOf(const SimNode *node, int table, int index, int value, int except);
extern bool SimOverlaps(int table, int index, int a, int b);
extern void SimStoreLocal(SimNode *node, const SimWrite *write, KdbVersion version);
extern void SimContributionOf(const SimWrite *write, SimContribution *c);
extern int32_t SimCombine(int column, int32_t old, int32_t change);

/*
 * One transaction being applied by node me; SimApply* run the rules.
 */
typedef struct SimApply
{
	int			me;
	SimNode    *node;
	KdbMergeContext context;
	const SimEntry *entry;
	const SimEvent *during;		/* a local transaction beside it, or NULL */
	bool		at_end;
	int			nclaimants;		/* rows beside which older ones have kept a value */
	int8_t		claimants[SIM_CLAIMANTS][2];	/* table, key */
	int			source;			/* node to fetch from */
	bool		exact;			/* seen and positions are exact */
	int			crash_at;		/* callbacks until the crash; 0: none */
	int			disturb_at;		/* actions until one finds the state changed */
	int			calls;
	uint32_t	transaction;

	/* the write */
	const SimWrite *write;
	SimRow		old_key_row;
	SimRow		fetched;
	bool		has_old_key_row;
	int			clashes;		/* values that were found taken while writing */
	int32_t		folded[SIM_COLUMNS];
} SimApply;

extern void SimApplyWrite(SimApply *apply, const SimWrite *write);
extern void SimApplyEnd(SimApply *apply);
extern void SimApplyState(SimApply *apply, const SimExtra *extra);

/* Where callbacks go when a crash comes. */
#include <setjmp.h>
extern jmp_buf SimCrash;

extern void SimEmpty(SimNode *node, int table, uint32_t by);

/* local.c */
extern void SimLocal(int at, const SimEvent *event);
extern void SimLocalBeside(const SimApply *apply, const SimEvent *event);

/* stream.c */
extern int64_t SimClock(int at);
extern int64_t SimReceived(int at);
extern int64_t SimHorizon(int at);
extern bool SimDeliver(int to, int from, const SimEvent *event, int crash_at);
extern void SimLevelUp(int to, int from, int source);
extern void SimRestart(int at);
extern void SimMark(int at);
extern void SimCollect(int at);
extern int	SimLeftovers(int at);
extern bool SimIsApplied(KdbVersion version);
extern bool SimIsQuiet(int table);

/* member.c */
extern void SimJoin(int at, int from);
extern void SimStale(int at);
extern void SimRewrite(int at, int table);

/* reference.c */
extern void SimCheck(void);

/* history.c */
extern void SimRandomHistory(SimHistory *history, uint64_t seed);
extern bool SimRun(const SimHistory *history);

/* shrink.c */
extern void SimShrink(SimHistory *history);

/* scenario.c */
#include <stdio.h>
extern void SimWriteScenario(FILE *file, const SimHistory *history);
extern bool SimReadScenario(FILE *file, SimHistory *history, char *rules, size_t size);

#endif							/* SIM_H */

/*
 * scenario.c
 *		Histories as text, one event a line.
 *
 *	# remark
 *	without RULE			the history must fail if that rule is switched off
 *	nodes 3 keys 2 values 2
 *	table unique=1 wide merged
 *	table unique=2 deferrable range		the first is deferrable, the last one an exclusion
 *							constraint in which 0 overlaps with all values
 *	local 0: insert t0 k1 u=0,-,- sum=5 max=7 min=2; update t0 k1 u=.,1,. wide sum+3
 *	deliver 1 from 0		(spoil N: seen vectors are less exact; disturb N)
 *	deliver 1 from 0 during: update t0 k1 u=1,.,.	1's user commits that after the first write
 *	crash 1 from 0 at 3		at its third callback
 *	restart 0				its streams start again
 *	clock 0 -4				its clock is wrong by that
 *	tick 5
 *	mark 0					it sends its watermarks
 *	collect 0				it drops what is behind its horizon
 *	join 2 from 1			with a snapshot of a member
 *	stale 1					the others go on without it
 *	rewrite 1 t0			it writes all rows of the table anew
 *
 * u= gives the unique columns: a value, - for NULL, . for unchanged.  An update
 * leaves the wide column unsent unless "wide" is there.
 */
#include "sim.h"

#include <stdlib.h>
#include <string.h>

static const char *const op_names[SIM_OP_KINDS] = {"insert", "update", "delete", "rekey", "swap", "truncate"};
static const char *const column_names[SIM_COLUMNS] = {"sum", "max", "min"};

/* ---- writing -------------------------------------------------------------------- */

static void
write_op(FILE *file, const SimHistory *h, const SimOp *op)
{
	fprintf(file, " %s t%d k%d", op_names[op->kind], op->table, op->key);
	if (op->kind == SIM_REKEY || op->kind == SIM_SWAP)
		fprintf(file, " to k%d", op->to);
	if (op->kind == SIM_DELETE || op->kind == SIM_TRUNCATE)
		return;
	if (h->tables[op->table].indexes > 0 && op->kind != SIM_SWAP)
	{
		for (int i = 0; i < SIM_INDEXES; i++)
		{
			fputs(i == 0 ? " u=" : ",", file);
			if (op->unique[i] == SIM_UNCHANGED)
				fputc('.', file);
			else if (op->unique[i] < 0)
				fputc('-', file);
			else
				fprintf(file, "%d", op->unique[i]);
		}
	}
	if (op->wide)
		fputs(" wide", file);
	for (int i = 0; i < SIM_COLUMNS && h->tables[op->table].merged; i++)
	{
		if (!(op->set & (1 << i)))
			continue;
		if (op->values[i] < 0)
			fprintf(file, " %s=-", column_names[i]);
		else
			fprintf(file, " %s=%d", column_names[i], op->values[i]);
	}
	if (op->add != 0 && h->tables[op->table].merged)
		fprintf(file, " sum+%d", op->add);
}

static void
write_ops(FILE *file, const SimHistory *h, const SimEvent *e)
{
	for (int i = 0; i < e->nops; i++)
	{
		if (i > 0)
			fputc(';', file);
		write_op(file, h, &e->ops[i]);
	}
}

static void
write_event(FILE *file, const SimHistory *h, const SimEvent *e)
{
	switch (e->kind)
	{
		case SIM_LOCAL:
			fprintf(file, "local %d:", e->a);
			write_ops(file, h, e);
			break;
		case SIM_DELIVER:
			fprintf(file, "deliver %d from %d", e->a, e->b);
			if (e->c != 0)
				fprintf(file, " spoil %d", e->c);
			if (e->d != 0)
				fprintf(file, " disturb %d", e->d);
			if (e->nops > 0)
				fputs(" during:", file);
			write_ops(file, h, e);
			break;
		case SIM_CRASH:
			fprintf(file, "crash %d from %d at %d", e->a, e->b, e->c);
			break;
		case SIM_RESTART:
			fprintf(file, "restart %d", e->a);
			break;
		case SIM_CLOCK:
			fprintf(file, "clock %d %d", e->a, e->b);
			break;
		case SIM_TICK:
			fprintf(file, "tick %d", e->a);
			break;
		case SIM_MARK:
			fprintf(file, "mark %d", e->a);
			break;
		case SIM_COLLECT:
			fprintf(file, "collect %d", e->a);
			break;
		case SIM_JOIN:
			fprintf(file, "join %d from %d", e->a, e->b);
			break;
		case SIM_STALE:
			fprintf(file, "stale %d", e->a);
			break;
		case SIM_REWRITE:
			fprintf(file, "rewrite %d t%d", e->a, e->b);
			break;
		case SIM_EVENT_KINDS:
			break;
	}
	fputc('\n', file);
}

void
SimWriteScenario(FILE *file, const SimHistory *h)
{
	fprintf(file, "nodes %d keys %d values %d\n", h->nnodes, h->nkeys, h->nvalues);
	for (int i = 0; i < h->ntables; i++)
		fprintf(file, "table unique=%d%s%s%s%s\n", h->tables[i].indexes,
				h->tables[i].deferrable ? " deferrable" : "", h->tables[i].range ? " range" : "",
				h->tables[i].wide ? " wide" : "", h->tables[i].merged ? " merged" : "");
	for (int i = 0; i < h->nevents; i++)
		write_event(file, h, &h->events[i]);
}

/* ---- reading -------------------------------------------------------------------- */

static bool
in_range(int value, int limit)
{
	return value >= 0 && value < limit;
}

static bool
read_unique(const char *text, SimOp *op)
{
	for (int i = 0; i < SIM_INDEXES; i++)
	{
		if (i > 0 && *text++ != ',')
			return false;
		if (*text == '.')
			op->unique[i] = SIM_UNCHANGED;
		else if (*text == '-')
			op->unique[i] = -1;
		else if (*text >= '0' && *text < '0' + SIM_VALUES)
			op->unique[i] = (int8_t) (*text - '0');
		else
			return false;
		text++;
	}
	return *text == '\0';
}

static bool
read_column(const char *word, SimOp *op)
{
	if (strncmp(word, "sum+", 4) == 0)
	{
		op->add = (int8_t) atoi(word + 4);
		return true;
	}
	for (int i = 0; i < SIM_COLUMNS; i++)
	{
		if (strncmp(word, column_names[i], 3) == 0 && word[3] == '=')
		{
			op->set |= (int8_t) (1 << i);
			op->values[i] = word[4] == '-' ? -1 : (int8_t) atoi(word + 4);
			return true;
		}
	}
	return false;
}

static bool
read_op(char *text, SimOp *op)
{
	char	   *save;
	char	   *word = strtok_r(text, " \n", &save);
	int			keys = 0;

	memset(op, 0, sizeof(SimOp));
	for (int i = 0; i < SIM_INDEXES; i++)
		op->unique[i] = SIM_UNCHANGED;
	for (op->kind = 0; word != NULL && op->kind < SIM_OP_KINDS; op->kind++)
	{
		if (strcmp(word, op_names[op->kind]) == 0)
			break;
	}
	if (word == NULL || op->kind == SIM_OP_KINDS)
		return false;
	while ((word = strtok_r(NULL, " \n", &save)) != NULL)
	{
		bool		good = true;

		if (word[0] == 't' && in_range(word[1] - '0', SIM_TABLES))
			op->table = (int8_t) (word[1] - '0');
		else if (word[0] == 'k' && in_range(word[1] - '0', SIM_KEYS))
		{
			op->to = (int8_t) (word[1] - '0');
			if (keys++ == 0)
				op->key = op->to;
		}
		else if (strcmp(word, "wide") == 0)
			op->wide = true;
		else if (strncmp(word, "u=", 2) == 0)
			good = read_unique(word + 2, op);
		else if (strcmp(word, "to") != 0)
			good = read_column(word, op);
		if (!good)
			return false;
	}
	return keys > 0;
}

static bool
read_ops(char *text, SimEvent *e)
{
	char	   *save;

	for (char *op = strtok_r(text, ";", &save); op != NULL; op = strtok_r(NULL, ";", &save))
	{
		if (e->nops == SIM_WRITES || !read_op(op, &e->ops[e->nops++]))
			return false;
	}
	return e->nops > 0;
}

static bool
read_event(char *line, SimEvent *e)
{
	char	   *more;

	memset(e, 0, sizeof(SimEvent));
	if (sscanf(line, "local %d:", &e->a) == 1 && (more = strchr(line, ':')) != NULL)
	{
		e->kind = SIM_LOCAL;
		return in_range(e->a, SIM_NODES) && read_ops(more + 1, e);
	}
	if (sscanf(line, "deliver %d from %d", &e->a, &e->b) == 2)
	{
		e->kind = SIM_DELIVER;
		if ((more = strstr(line, "spoil ")) != NULL)
			e->c = atoi(more + 6);
		if ((more = strstr(line, "disturb ")) != NULL)
			e->d = atoi(more + 8);
		if ((more = strstr(line, "during:")) != NULL && !read_ops(more + 7, e))
			return false;
	}
	else if (sscanf(line, "crash %d from %d at %d", &e->a, &e->b, &e->c) == 3)
		e->kind = SIM_CRASH;
	else if (sscanf(line, "restart %d", &e->a) == 1)
		e->kind = SIM_RESTART;
	else if (sscanf(line, "clock %d %d", &e->a, &e->b) == 2)
	{
		e->kind = SIM_CLOCK;
		return in_range(e->a, SIM_NODES);
	}
	else if (sscanf(line, "tick %d", &e->a) == 1)
	{
		e->kind = SIM_TICK;
		return true;
	}
	else if (sscanf(line, "mark %d", &e->a) == 1)
		e->kind = SIM_MARK;
	else if (sscanf(line, "collect %d", &e->a) == 1)
		e->kind = SIM_COLLECT;
	else if (sscanf(line, "join %d from %d", &e->a, &e->b) == 2)
		e->kind = SIM_JOIN;
	else if (sscanf(line, "stale %d", &e->a) == 1)
		e->kind = SIM_STALE;
	else if (sscanf(line, "rewrite %d t%d", &e->a, &e->b) == 2)
		e->kind = SIM_REWRITE;
	else
		return false;
	return in_range(e->a, SIM_NODES) && in_range(e->b, SIM_NODES);
}

static bool
read_line(char *line, SimHistory *h, char *rules, size_t size)
{
	char		rule[40];

	if (line[0] == '#' || line[0] == '\n' || line[0] == '\0')
		return true;
	if (sscanf(line, "without %39s", rule) == 1)
	{
		snprintf(rules, size, "%s", rule);
		return true;
	}
	if (sscanf(line, "nodes %d keys %d values %d", &h->nnodes, &h->nkeys, &h->nvalues) == 3)
		return h->nnodes >= 1 && h->nnodes <= SIM_NODES && h->nkeys <= SIM_KEYS && h->nvalues <= SIM_VALUES;
	if (strncmp(line, "table ", 6) == 0)
	{
		SimTable   *t = &h->tables[h->ntables];

		if (h->ntables == SIM_TABLES || sscanf(line, "table unique=%d", &t->indexes) != 1 ||
			!in_range(t->indexes, SIM_INDEXES + 1))
			return false;
		t->deferrable = strstr(line, " deferrable") != NULL;
		t->range = strstr(line, " range") != NULL;
		t->wide = strstr(line, " wide") != NULL;
		t->merged = strstr(line, " merged") != NULL;
		h->ntables++;
		return true;
	}
	return h->nevents < SIM_EVENTS && read_event(line, &h->events[h->nevents++]);
}

/*
 * Read a scenario; rules gets the name behind "without", or nothing.  False, with a
 * message on stderr, if a line is not understood.
 */
bool
SimReadScenario(FILE *file, SimHistory *h, char *rules, size_t size)
{
	char		line[1000];
	char		copy[1000];

	memset(h, 0, sizeof(SimHistory));
	rules[0] = '\0';
	while (fgets(line, sizeof(line), file) != NULL)
	{
		memcpy(copy, line, sizeof(line));
		if (!read_line(line, h, rules, size))
		{
			fprintf(stderr, "not understood: %s", copy);
			return false;
		}
	}
	return h->nnodes > 0 && h->ntables > 0;
}

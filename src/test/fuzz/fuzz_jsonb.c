/*
 * fuzz_jsonb.c
 *		Any bytes may come as the datum of a jsonb column: the engine must stand what is accepted.
 *
 * An input is a value without its length word.  What KdbJsonbIsValid accepts is read as the engine
 * reads it, from a block of just that size.
 */
#include "krahodb/jsonb_datum.h"

#include "../unit/jsonb_golden.h"
#include "../unit/jsonb_walk.h"

extern int	LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	bool		ascii = try_jsonb(data, size, true);

	/* what is text in one encoding is text in one that takes more */
	if (try_jsonb(data, size, false) < ascii)
		abort();
	return 0;
}

#ifdef FUZZ_MAIN
#include "fuzz_main.h"

void
write_seeds(const char *directory)
{
	for (size_t i = 0; i < NGOLDEN; i++)
	{
		wire_bytes	seed = {0};

		put_bytes(&seed, jsonb_golden[i].data, jsonb_golden[i].length);
		write_seed(directory, jsonb_golden[i].name, &seed);
		free(seed.data);
	}
}
#endif

/*
 * fuzz_main.h
 *		A fuzzer without libFuzzer: with -DFUZZ_MAIN, for any compiler.
 *
 *		fuzz_x FILE...					runs the files
 *		fuzz_x --seconds N FILE...		then random changes of them for so long
 *		fuzz_x --write-seeds DIRECTORY	writes the seeds that the fuzzer has
 *
 * Included by the file of a fuzzer, which has LLVMFuzzerTestOneInput and
 * write_seeds.  The random numbers are those of KRAHODB_TEST_SEED (tap.h).
 */
#ifndef FUZZ_MAIN_H
#define FUZZ_MAIN_H

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "../unit/tap.h"
#include "../unit/wire_encode.h"

#define MAX_CHANGES	8
#define MAX_GROWTH	64

extern int	LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
extern void write_seeds(const char *directory);

static wire_bytes
read_file(const char *path)
{
	wire_bytes	bytes = {0};
	FILE	   *file = fopen(path, "rb");
	char		buf[4096];
	size_t		n;

	if (file == NULL)
	{
		perror(path);
		exit(1);
	}
	while ((n = fread(buf, 1, sizeof(buf), file)) > 0)
		put_bytes(&bytes, buf, n);
	fclose(file);
	return bytes;
}

static void
write_seed(const char *directory, const char *name, const wire_bytes *seed)
{
	char		path[1024];
	FILE	   *file;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	file = fopen(path, "wb");
	if (file == NULL || fwrite(seed->data, 1, seed->len, file) != seed->len || fclose(file) != 0)
	{
		perror(path);
		exit(1);
	}
}

/* Runs a copy of exact size. */
static void
run_input(const char *data, size_t len)
{
	uint8_t    *copy = malloc(len + (len == 0));

	memcpy(copy, data, len);
	(void) LLVMFuzzerTestOneInput(copy, len);
	free(copy);
}

/* Bytes that are likely to be of interest. */
static char
random_byte(void)
{
	static const char likely[] = {0, 1, 4, 'F', 'L', 'Z', 0x7f, (char) 0x80, (char) 0xff};

	return random_below(2) == 0 ? (char) random_u64() : likely[random_below(sizeof(likely))];
}

/* A change of a seed: bytes set, its end cut off or repeated. */
static void
run_changed(const wire_bytes *seed)
{
	size_t		len = seed->len;
	char	   *data = malloc(len + MAX_GROWTH);
	uint32_t	changes = 1 + random_below(MAX_CHANGES);

	memcpy(data, seed->data, len);
	if (random_below(4) == 0)
		len = random_below((uint32_t) len + 1);
	if (random_below(8) == 0)
	{
		size_t		growth = random_below(MAX_GROWTH);

		for (size_t i = 0; i < growth; i++)
			data[len + i] = len > 0 ? data[random_below((uint32_t) len)] : random_byte();
		len += growth;
	}
	for (uint32_t i = 0; i < changes && len > 0; i++)
		data[random_below((uint32_t) len)] = random_byte();
	run_input(data, len);
	free(data);
}

static void
run_random(const wire_bytes *seeds, int nseeds, int seconds)
{
	time_t		end = time(NULL) + seconds;
	unsigned long inputs = 0;

	random_init();
	while (time(NULL) < end)
	{
		for (int i = 0; i < 1000; i++)
			run_changed(&seeds[random_below((uint32_t) nseeds)]);
		inputs += 1000;
	}
	ok(true, "%lu changed inputs", inputs);
}

int
main(int argc, char **argv)
{
	int			seconds = 0;
	int			nseeds;
	wire_bytes *seeds;

	if (argc == 3 && strcmp(argv[1], "--write-seeds") == 0)
	{
		write_seeds(argv[2]);
		return 0;
	}
	if (argc > 3 && strcmp(argv[1], "--seconds") == 0)
	{
		seconds = atoi(argv[2]);
		argv += 2;
		argc -= 2;
	}

	nseeds = argc - 1;
	seeds = calloc((size_t) nseeds + 1, sizeof(wire_bytes));
	for (int i = 0; i < nseeds; i++)
	{
		seeds[i] = read_file(argv[i + 1]);
		run_input((char *) seeds[i].data, seeds[i].len);
	}
	ok(nseeds > 0, "%d seeds", nseeds);
	if (seconds > 0 && nseeds > 0)
		run_random(seeds, nseeds, seconds);
	for (int i = 0; i < nseeds; i++)
		free(seeds[i].data);
	free(seeds);
	return done_testing();
}

#endif							/* FUZZ_MAIN_H */

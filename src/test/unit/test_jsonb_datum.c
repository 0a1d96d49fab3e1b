/*
 * test_jsonb_datum.c
 *		Jsonb values of another server: real ones are accepted, no other can do harm.
 *
 * Values of a real server are accepted; then each is cut at every byte and changed at random.
 * What is still accepted is read as the engine would (jsonb_walk.h), under AddressSanitizer.
 */
#include "krahodb/jsonb_datum.h"

#include "tap.h"
#include "jsonb_golden.h"
#include "jsonb_walk.h"

static void
test_golden(void)
{
	for (size_t i = 0; i < NGOLDEN; i++)
		ok(try_jsonb(jsonb_golden[i].data, jsonb_golden[i].length, false), "%s is accepted", jsonb_golden[i].name);
	ok(!try_jsonb(golden_object, sizeof(golden_object), true), "not with text that is not of the encoding");
	ok(walk_sum > 0, "all were read");
}

static void
test_truncated(void)
{
	int			accepted = 0;

	for (size_t i = 0; i < NGOLDEN; i++)
	{
		for (size_t length = 0; length < jsonb_golden[i].length; length++)
			accepted += try_jsonb(jsonb_golden[i].data, length, false);
	}
	ok(accepted == 0, "no truncated value is accepted");
}

static void
test_mutated(void)
{
	int			accepted = 0;
	int			refused = 0;

	for (int round = 0; round < 200000; round++)
	{
		size_t		i = random_u64() % NGOLDEN;
		size_t		length = jsonb_golden[i].length;
		unsigned char *data = malloc(length);
		int			changes = 1 + (int) (random_u64() % 3);

		memcpy(data, jsonb_golden[i].data, length);
		for (int c = 0; c < changes; c++)
			data[random_u64() % length] = (unsigned char) (random_u64() % 4 ? random_u64() % 9 : random_u64());
		if (try_jsonb(data, length, false))
			accepted++;
		else
			refused++;
		free(data);
	}
	ok(accepted > 1000 && refused > 1000, "changed values: %d accepted and read, %d refused", accepted, refused);
}

/* Changes of one 32-bit word of a value, at its index. */
static bool
accepted_with(const unsigned char *golden, size_t length, size_t index, uint32_t word)
{
	unsigned char *data = malloc(length);
	bool		accepted;

	memcpy(data, golden, length);
	memcpy(data + 4 * index, &word, 4);
	accepted = try_jsonb(data, length, false);
	free(data);
	return accepted;
}

static void
test_rules(void)
{
	/* {"": 0, "a": 1, ...}: entries 1 .. 4 are the keys "", "a", "bb", "ccc" */
	ok(!accepted_with(golden_object, sizeof(golden_object), 2, 0x00000000), "a key that is there twice is refused");
	ok(!accepted_with(golden_object, sizeof(golden_object), 1, 0x90000000), "a key that is no string is refused");
	ok(!accepted_with(golden_object, sizeof(golden_object), 0, 0x20000005), "more pairs than there are are refused");
	ok(!accepted_with(golden_object, sizeof(golden_object), 0, 0x60000004), "what is both array and object is refused");
	ok(!accepted_with(golden_nested, sizeof(golden_nested), 0, 0x50000001), "a scalar that is a container is refused");
	ok(!accepted_with(golden_nested, sizeof(golden_nested), 1, 0xE0000008), "a type that there is not is refused");
	ok(!accepted_with(golden_null, sizeof(golden_null), 0, 0x50000000), "a scalar without a value is refused");
	ok(!accepted_with(golden_number, sizeof(golden_number), 2, 0x0000007F << 2), "a number that is longer than its place is refused");
	ok(!accepted_with(golden_number, sizeof(golden_number), 3, 0x2710A27F), "a digit above 9999 is refused");
	ok(!accepted_with(golden_number, sizeof(golden_number), 2, 0x00000001), "a number that lies elsewhere is refused");
	ok(accepted_with(golden_number, sizeof(golden_number), 3, 0x270FA27F), "another digit is not");
}

static void
test_depth(void)
{
	uint32_t	words[2 * (MAX_DEPTH + 2)];
	int			n = MAX_DEPTH + 1;

	/* [[[...]]]: a header and an entry for each level but the innermost */
	for (int i = 0; i < n; i++)
	{
		words[2 * i] = 0x40000001;
		words[2 * i + 1] = 0xD0000000 | (uint32_t) (8 * (n - i - 1) + 4);
	}
	words[2 * n] = 0x40000000;
	ok(!try_jsonb(words, 8 * n + 4, true), "one level too many is refused");
	ok(try_jsonb(words + 2, 8 * (n - 1) + 4, true), "one level less is not");
}

int
main(void)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	test_golden();
	test_truncated();
	test_mutated();
	test_rules();
#endif
	test_depth();
	return done_testing();
}

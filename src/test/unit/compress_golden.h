/*
 * compress_golden.h
 *		Compressed frames as liblz4 1.9.4 and libzstd 1.5.4 made them.
 *
 * Another version may write other bytes, but must read these.
 */
#ifndef COMPRESS_GOLDEN_H
#define COMPRESS_GOLDEN_H

static const char lz4_first[] = {
	76, 0, 0, 0, 52, 0, 0, 0, 28, -1, 1, 116, 104, 101, 32, 115,
	97, 109, 101, 32, 119, 111, 114, 100, 115, 44, 32, 16, 0, 11, 96, 32,
	97, 103, 97, 105, 110
};

static const char lz4_second[] = {
	76, 0, 0, 0, 52, 0, 0, 0, 10, 15, 52, 0, 28, 80, 97, 103,
	97, 105, 110
};

static const char zstd_first[] = {
	90, 0, 0, 0, 52, 40, -75, 47, -3, 0, 64, -28, 0, 0, -80, 116,
	104, 101, 32, 115, 97, 109, 101, 32, 119, 111, 114, 100, 115, 44, 32, 32,
	97, 103, 97, 105, 110, 1, 0, 70, -100, 75
};

static const char zstd_second[] = {
	90, 0, 0, 0, 52, 116, 0, 0, 48, 32, 97, 103, 97, 105, 110, 2,
	0, 0, -127, 35, 42, 32
};

#endif							/* COMPRESS_GOLDEN_H */

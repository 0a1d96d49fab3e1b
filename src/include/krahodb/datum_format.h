/*
 * datum_format.h
 *		How this server keeps values, in words that can be compared.
 */
#ifndef KRAHODB_DATUM_FORMAT_H
#define KRAHODB_DATUM_FORMAT_H

/*
 * The same for two databases only if a value of a built-in type that has no OIDs of objects in it is the
 * same bytes in both: PostgreSQL's major version, order of bytes, alignment, width of a datum, and
 * the encoding of text.  palloc'd.
 */
extern char *KdbDatumFormat(void);

#endif							/* KRAHODB_DATUM_FORMAT_H */

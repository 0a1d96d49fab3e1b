/*
 * json.c
 *		JSON output.
 */
#include "tool.h"

static void
json_character(FILE *out, unsigned char c)
{
	switch (c)
	{
		case '"':
			fputs("\\\"", out);
			break;
		case '\\':
			fputs("\\\\", out);
			break;
		case '\n':
			fputs("\\n", out);
			break;
		case '\r':
			fputs("\\r", out);
			break;
		case '\t':
			fputs("\\t", out);
			break;
		default:
			if (c < 0x20 || c == 0x7f)
				fprintf(out, "\\u%04x", c);
			else
				fputc(c, out);
	}
}

/* Bytes above 0x7f are written as they are: the connection's encoding is UTF-8. */
void
KdbJsonString(FILE *out, const char *string)
{
	if (string == NULL)
	{
		fputs("null", out);
		return;
	}
	fputc('"', out);
	for (const char *p = string; *p != '\0'; p++)
		json_character(out, (unsigned char) *p);
	fputc('"', out);
}

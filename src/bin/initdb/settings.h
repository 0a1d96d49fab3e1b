/*
 * settings.h
 *		The block that KrahoDB's initdb appends to postgresql.conf.
 */
#ifndef KRAHODB_BIN_SETTINGS_H
#define KRAHODB_BIN_SETTINGS_H

#include <stdio.h>

/*
 * Write the settings to conf.  server is the path of the engine's postgres, which
 * is asked what it knows.  Errors of conf are left to its ferror().
 */
extern void KdbWriteSettings(FILE *conf, const char *server);

#endif							/* KRAHODB_BIN_SETTINGS_H */

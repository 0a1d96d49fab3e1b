# Makefile
#
# For a fresh clone: installs what is missing, configures, and hands over to
# GNUmakefile.  GNU make prefers a file GNUmakefile over this one, so once that
# exists (or after ./configure by hand) this file is not read any more.

# The first goal does all the work with all goals; the others have nothing to do.
goals := $(or $(MAKECMDGOALS),all)
first := $(firstword $(goals))

.DEFAULT_GOAL := all
.PHONY: all $(goals)
.NOTPARALLEL:

$(first): GNUmakefile
	@$(MAKE) --no-print-directory -f GNUmakefile $(MAKECMDGOALS)

$(filter-out $(first),$(goals)): $(first)
	@:

GNUmakefile: configure GNUmakefile.in
	./configure $(CONFIGURE_OPTIONS)

configure: configure.ac
	config/install-deps
	autoconf && rm -f configure~

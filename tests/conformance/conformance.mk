# Judges all implementations of the lock file's specification, in all languages: the Rust library
# (by `cargo test`), the C library, the Python and the Go package, and the C program without any
# library. Included by the root Makefile, after the makefiles of the languages.

CONFORMANCE_OUT := $(TARGET)/conformance
CONFORMANCE := $(TARGET)/debug/llmlb-conformance
SPEAKERS := tests/conformance/speakers

test: test-conformance
.PHONY: test-conformance conformance test-conformance-c test-conformance-minimal \
    test-conformance-python test-conformance-go

test-conformance: test-conformance-c test-conformance-minimal test-conformance-python \
    test-conformance-go

conformance:
	$(CARGO) build -p llmlb-conformance
	mkdir -p $(CONFORMANCE_OUT)

test-conformance-c: conformance ffi-stage
	$(CC) -std=c11 -Wall -Wextra -Werror -pedantic $(SPEAKERS)/library.c -o $(CONFORMANCE_OUT)/library \
	    $$(PKG_CONFIG_PATH=$(FFI_STAGE)/lib/pkgconfig pkg-config --cflags --libs llmlb_lock) \
	    -Wl,-rpath,$(FFI_STAGE)/lib
	$(CONFORMANCE) $(CONFORMANCE_OUT)/library

test-conformance-minimal: conformance
	$(CC) -std=c11 -Wall -Wextra -Werror -pedantic $(SPEAKERS)/minimal.c -o $(CONFORMANCE_OUT)/minimal
	$(CONFORMANCE) --without read --without list --without hand_over --without identity \
	    $(CONFORMANCE_OUT)/minimal
	$(CONFORMANCE) --beside $(CONFORMANCE_OUT)/minimal --only other --only one_of_many --only heels \
	    --without list --without hand_over $(TARGET)/debug/plain-speaker

test-conformance-python: conformance python-wheel
	$(CONFORMANCE) $(PYTHON_BIN)/python $(SPEAKERS)/speaker.py

test-conformance-go: conformance ffi-stage $(filter $(GO_VENV)/bin/go,$(GO))
	cd $(SPEAKERS)/go && PKG_CONFIG_PATH=$(FFI_STAGE)/lib/pkgconfig GOFLAGS=-mod=mod GOPROXY=off \
	    GOTOOLCHAIN=local CGO_ENABLED=1 CGO_LDFLAGS=-Wl,-rpath,$(FFI_STAGE)/lib \
	    GOCACHE=$${GOCACHE:-$(FFI_OUT)/go/cache} $(GO) build -o $(CONFORMANCE_OUT)/go .
	$(CONFORMANCE) $(CONFORMANCE_OUT)/go

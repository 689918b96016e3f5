# make test            everything: Rust, Python, C, Go, end to end
# make quality-checks  formatting, lints, generated files, documents, licences, packages
# make install         the libraries and the program, below PREFIX; DESTDIR for package builders
# make deb             Debian packages of both, in target/deb
# make wheels          Python packages of the program and the library, in target/dist
# make bench           the figures: the lock beside C, Python beside filelock and portalocker
# make test-windows    core and the program under wine; check-windows and check-macos: types, lints

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

CARGO ?= cargo
PYTHON ?= python3
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
LLMLB_BIN ?= $(TARGET)/debug/llmlb

.DEFAULT_GOAL := test
.PHONY: test test-rust test-readme test-operating picture cli bench quality-checks fmt clippy check-docs check-deny \
    check-rustdoc check-packages check-man

-include ffi/ffi.mk
-include python/python.mk
-include gateway/gateway.mk
-include cluster/cluster.mk
-include packaging/packaging.mk
-include tests/conformance/conformance.mk
-include tests/cross.mk

test: test-rust test-readme test-operating

test-rust:
	$(CARGO) test --workspace

test-readme:
	tests/readme.sh

OPERATING_VENV := $(TARGET)/venv-operating

$(OPERATING_VENV)/ready: tests/operating-requirements.txt
	$(PYTHON) -m venv $(OPERATING_VENV)
	$(OPERATING_VENV)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

# The commands of docs/operating.md.
test-operating: cli $(OPERATING_VENV)/ready
	$(PYTHON) tests/operating.py $(LLMLB_BIN) $(OPERATING_VENV)

# The README's, of the session that it shows.
picture:
	LLMLB_WRITE_PICTURE=1 $(CARGO) test -q -p llmlb-tests --test e2e the_session_of_its_picture

cli:
	$(CARGO) build -p llmlb

bench:
	$(CARGO) bench -p llmlb-lock-core

quality-checks: fmt clippy check-rustdoc check-docs check-deny check-packages check-man

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --workspace --all-targets -- -D warnings

check-rustdoc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items

QUALITY_VENV := $(TARGET)/venv-quality

$(QUALITY_VENV)/ready: tests/quality-requirements.txt
	$(PYTHON) -m venv $(QUALITY_VENV)
	$(QUALITY_VENV)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

check-docs: $(QUALITY_VENV)/ready
	git ls-files -z '*.md' | xargs -0 $(QUALITY_VENV)/bin/rumdl check --no-cache

# The manual pages, as a formatter reads them.
check-man: cli
	@if command -v mandoc >/dev/null; then \
	    pages=$$({ $(LLMLB_BIN) man nothing 2>&1 || true; } | sed -n 's/.*possible values: \(.*\)]/\1/p' | tr -d ,); \
	    [ -n "$$pages" ]; \
	    for page in "" $$pages; do \
	        echo "+ llmlb man $$page | mandoc -T lint -W style"; \
	        $(LLMLB_BIN) man $$page | mandoc -T lint -W style; \
	    done; \
	else \
	    echo "check-man: skipped, as mandoc is not installed (Debian: apt install mandoc)"; \
	fi

# What registries would get.
check-packages: python-wheel
	$(PYTHON) tests/packages.py $(CARGO) $(TARGET)

# Licences, duplicates and sources, without the network; the tool is a long build, and optional.
check-deny:
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
	    $(CARGO) deny --offline check licenses bans sources; \
	else \
	    echo "check-deny: skipped, as cargo-deny is not installed (cargo install cargo-deny)"; \
	fi

# The Python package: built as a wheel, installed into a virtual environment of its own, tested
# there. Nothing is installed into the user's Python.
#
#   make test-python     tests, among them the examples and what the documents show
#   make check-python    types, stubs, formatting and lints
#   make bench-python    the table of python/README.md

PYTHON_VENV := $(TARGET)/venv-python
PYTHON_BIN := $(PYTHON_VENV)/bin
PYTHON_SOURCES := python/llmlb_lock python/tests python/benches examples/python examples/cluster
# Another program or library to test against may be named in the environment.
LLMLB_HOLD ?= $(TARGET)/debug/examples/hold
LLMLB_ACTIVE_STANDBY ?= $(TARGET)/debug/examples/active_standby
# The cluster's tests are for Linux, and take etcd below target.
PYTHON_ETCD := $(if $(filter Linux,$(shell uname -s)),$(TARGET)/etcd/etcd)
ifneq ($(wildcard ffi/Cargo.toml),)
LLMLB_LOCK_LIB ?= $(TARGET)/debug/libllmlb_lock.$(if $(filter Darwin,$(shell uname -s)),dylib,so)
endif

test: test-python
quality-checks: check-python
bench: bench-python

.PHONY: test-python check-python bench-python python-wheel python-peers

$(PYTHON_VENV)/ready: python/requirements.txt
	$(PYTHON) -m venv --clear $(PYTHON_VENV)
	$(PYTHON_BIN)/pip install --quiet --disable-pip-version-check -r $<
	touch $@

python-wheel: $(PYTHON_VENV)/ready python/LICENSE-THIRD-PARTY
	rm -rf $(TARGET)/wheels
	$(PYTHON_BIN)/maturin build --quiet --release --manifest-path python/Cargo.toml \
	    --interpreter $(PYTHON_BIN)/python --out $(TARGET)/wheels
	$(PYTHON_BIN)/pip install --quiet --disable-pip-version-check --force-reinstall --no-deps \
	    $(TARGET)/wheels/*.whl

# Who the tests share ports with: the command, a Rust program and the C library.
python-peers: cli
	$(CARGO) build -p llmlb-lock-core --example hold
	$(if $(PYTHON_ETCD),$(CARGO) build -p llmlb-lock-cluster --example active_standby)
	$(if $(LLMLB_LOCK_LIB),$(CARGO) build -p llmlb-lock-ffi)

test-python: python-wheel python-peers $(PYTHON_ETCD)
	cd python && LLMLB_BIN=$(LLMLB_BIN) LLMLB_HOLD=$(LLMLB_HOLD) LLMLB_LOCK_LIB=$(LLMLB_LOCK_LIB) \
	    $(if $(PYTHON_ETCD),LLMLB_ETCD=$(PYTHON_ETCD) LLMLB_ACTIVE_STANDBY=$(LLMLB_ACTIVE_STANDBY)) \
	    $(PYTHON_BIN)/pytest -p no:cacheprovider

# Stubs are compared with the module they describe, so it is built.
check-python: python-wheel
	$(PYTHON_BIN)/ruff check --no-cache --config python/pyproject.toml $(PYTHON_SOURCES)
	$(PYTHON_BIN)/ruff format --no-cache --check --config python/pyproject.toml $(PYTHON_SOURCES)
	$(PYTHON_BIN)/mypy --config-file python/pyproject.toml --cache-dir $(TARGET)/mypy \
	    $(addprefix $(CURDIR)/,$(PYTHON_SOURCES))
	$(PYTHON_BIN)/pyright --project python/pyproject.toml --pythonpath $(PYTHON_BIN)/python \
	    $(PYTHON_SOURCES)
	cd $(TARGET) && MYPY_CACHE_DIR=$(TARGET)/mypy $(PYTHON_BIN)/stubtest llmlb_lock

bench-python: python-wheel
	$(PYTHON_BIN)/python python/benches/compare.py

# test-gateway-e2e  the load balancer between the OpenAI client and llama.cpp, both from PyPI
# test-compare      what llmlb claims beside others, alone; a part of test
# test-queue        that requests wait in order before servers that are full; a part of test
# compare           docs/compare.md: llmlb beside all others that can be installed; needs wrk, nginx
#                   and haproxy; its parts are compare-features, -costs and -conversations
# bench-choose      what it costs to choose a backend, and to find the model; a part of bench
# bench-gateway     the load balancer beside nginx and haproxy; needs both, and wrk
# bench-queue       how well requests wait, at four times what the servers can do

.PHONY: test-gateway-e2e test-compare test-queue bench-queue compare compare-features compare-costs \
    compare-conversations compare-programs compare-peers bench-choose bench-gateway

GATEWAY_VENV := $(TARGET)/venv-gateway

test: test-gateway-e2e test-compare test-queue

bench: bench-choose

bench-choose:
	$(CARGO) bench -p llmlb-gateway

$(GATEWAY_VENV)/ready: examples/gateway/requirements.txt
	$(PYTHON) -m venv $(GATEWAY_VENV)
	$(GATEWAY_VENV)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

# llama.cpp's wheel is built for AVX2.
test-gateway-e2e: cli $(GATEWAY_VENV)/ready
	@if [ "$$(uname -m)" = x86_64 ] && ! grep -qw avx2 /proc/cpuinfo; then \
	    echo "test-gateway-e2e: skipped, as this CPU has no AVX2"; \
	else \
	    $(GATEWAY_VENV)/bin/python examples/gateway/e2e.py $(LLMLB_BIN); \
	fi

bench-gateway:
	$(CARGO) build --release -p llmlb --bin llmlb -p llmlb-gateway --example model-server
	$(PYTHON) examples/gateway/bench.py $(TARGET)/release/llmlb $(TARGET)/release/examples/model-server

bench-queue:
	$(CARGO) build --release -p llmlb --bin llmlb
	$(PYTHON) examples/gateway/queueing.py $(TARGET)/release/llmlb

test-queue: cli
	$(PYTHON) examples/gateway/queueing.py --smoke $(LLMLB_BIN)

test-compare: cli
	$(PYTHON) examples/gateway/compare.py --smoke $(LLMLB_BIN)

# An environment for each, as two of them bring a program of the same name. Who can't be installed
# is said to be not there.
COMPARE_VENVS := $(TARGET)/venv-compare
COMPARE_PEERS := sglang-router smg vllm-router litellm

compare-peers: $(COMPARE_PEERS:%=$(COMPARE_VENVS)/%/tried)

$(COMPARE_VENVS)/litellm/tried: PACKAGES = 'litellm[proxy]' prometheus-client
$(COMPARE_VENVS)/%/tried:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check $(or $(PACKAGES),$*) || true
	touch $@

# In parts, each of which may be run for itself; all of them take a quarter of an hour.
compare:
	$(MAKE) compare-features
	$(MAKE) compare-costs
	$(MAKE) compare-conversations

compare-programs: compare-peers
	$(CARGO) build --release -p llmlb --bin llmlb -p llmlb-gateway --example model-server

compare-features: compare-programs
	$(PYTHON) examples/gateway/compare.py features $(TARGET)/release/llmlb $(COMPARE_VENVS) \
	    docs/compare.md

compare-costs: compare-programs
	$(PYTHON) examples/gateway/compare.py costs $(TARGET)/release/llmlb $(COMPARE_VENVS) \
	    docs/compare.md $(TARGET)/release/examples/model-server

compare-conversations: compare-programs $(GATEWAY_VENV)/ready
	$(GATEWAY_VENV)/bin/python examples/gateway/affinity.py $(TARGET)/release/llmlb \
	    $(COMPARE_VENVS) docs/compare.md

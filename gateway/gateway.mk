# test-gateway-e2e  the load balancer between the OpenAI client and llama.cpp, both from PyPI
# bench-choose      what it costs to choose a backend, and to find the model; a part of bench
# bench-gateway     the load balancer beside nginx and haproxy; needs both, and wrk

.PHONY: test-gateway-e2e bench-choose bench-gateway

GATEWAY_VENV := $(TARGET)/venv-gateway

test: test-gateway-e2e

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

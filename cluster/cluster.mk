# etcd                  etcd for the tests, below target; nothing is installed
# test-cluster          the cluster's tests, against real etcd
# test-cluster-faults   one exclusive service and faults at random
# test-cluster-torture  that, then the same with faults planted
#                       in llmlb, which have to be found; TORTURE_SECONDS=60 TORTURE_SEED=n
# bench-cluster         what 1,000 registrations and 50 watchers cost

.PHONY: etcd test-cluster test-cluster-faults test-cluster-torture bench-cluster

TORTURE_SECONDS ?= 60
TORTURE := $(TARGET)/debug/cluster-torture

etcd: $(TARGET)/etcd/etcd

$(TARGET)/etcd/etcd: tests/cluster/etcd.sh
	PYTHON=$(PYTHON) tests/cluster/etcd.sh $(TARGET)/etcd
	touch $@

test-rust: $(TARGET)/etcd/etcd

test-cluster: $(TARGET)/etcd/etcd
	$(CARGO) test -p llmlb-lock-cluster -p llmlb-cluster-tests

test-cluster-faults: $(TARGET)/etcd/etcd
	$(CARGO) build -p llmlb-cluster-tests
	$(TORTURE) --seconds $(TORTURE_SECONDS) $(if $(TORTURE_SEED),--seed $(TORTURE_SEED))

test-cluster-torture: test-cluster-faults
	$(CARGO) build -p llmlb-cluster-tests --features planted-faults
	for fault in no-watchdog deadline-from-answer release-by-name; do \
	    $(TORTURE) --seconds 120 --planted $$fault; \
	done
	$(CARGO) build -p llmlb-cluster-tests

bench-cluster: $(TARGET)/etcd/etcd
	$(CARGO) build --profile bench -p llmlb-cluster-tests
	$(TARGET)/release/cluster-bench

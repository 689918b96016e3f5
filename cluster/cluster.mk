# etcd                  etcd for the tests, below target; nothing is installed
# test-cluster          the cluster's tests, against real etcd
# test-cluster-torture  one exclusive service, faults at random, and the same with faults planted;
#                       SECONDS=60 SEED=n
# bench-cluster         1,000 registrations and 50 watchers on one etcd

.PHONY: etcd test-cluster test-cluster-torture bench-cluster

etcd: $(TARGET)/etcd/etcd

$(TARGET)/etcd/etcd: tests/cluster/etcd.sh
	PYTHON=$(PYTHON) tests/cluster/etcd.sh $(TARGET)/etcd
	touch $@

test-rust: $(TARGET)/etcd/etcd

# The tests start the program of all roles, which is another target.
test-cluster: $(TARGET)/etcd/etcd
	$(CARGO) test -p llmlb-lock-cluster -p llmlb-cluster-tests

"""Servers that are found, and one active server per service, on real etcd."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import pickle
import re
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the cluster is for Linux", allow_module_level=True)

from etcd import Etcd
from llmlb_lock import cluster as module
from llmlb_lock.cluster import (
    AcquireTimeout,
    ActiveUnknown,
    AlreadyActive,
    Back,
    CertificateError,
    Cluster,
    ClusterError,
    Corrupt,
    Down,
    Interrupted,
    InvalidRecord,
    InvalidTiming,
    InvalidUrl,
    LeaseLost,
    NotYet,
    Outage,
    Record,
    Refused,
    Snapshot,
    StopRequest,
    Unreachable,
    Up,
)
from support import PATIENCE, free_port, run_python, wait_until

TTL, DRAIN = 3.0, 0.5


@pytest.fixture
def cluster(url: str) -> Cluster:
    return Cluster.connect(url)


def prefix(url: str) -> str:
    return "/" + url.rpartition("/")[2]


def test_a_server_is_found_until_it_is_withdrawn(cluster: Cluster) -> None:
    record = Record("chat", "gpu1", 8000, models=["qwen3", "llama"], slots=4)
    assert cluster.servers().servers == ()
    with cluster.register(record) as registration:
        assert registration.wait_registered(PATIENCE)
        assert registration.registered
        (server,) = cluster.servers("chat")
        assert (server.record, server.registered) == (record, True)
        assert len(cluster.servers("other")) == 0
    assert not registration.registered
    assert cluster.servers().servers == ()
    registration.withdraw()
    with pytest.raises(RuntimeError, match="closed"):
        registration.update(record)


def test_a_watch_tells_what_is_there_and_what_changes(cluster: Cluster) -> None:
    record = Record("chat", "gpu1", 8000)
    with cluster.register(record) as registration:
        assert registration.wait_registered(PATIENCE)
        with cluster.watch("chat") as watch:
            assert watch.next(PATIENCE) == Snapshot((record,))
            changed = record.replace(models=["qwen3"], slots=2)
            registration.update(changed)
            assert watch.next(PATIENCE) == Up(changed)
            assert watch.next(0.05) is None
            registration.withdraw()
            assert next(watch) == Down("chat", "gpu1:8000")
        assert list(watch) == []


def test_a_watch_that_is_closed_elsewhere_ends_its_loop(cluster: Cluster) -> None:
    watch = cluster.watch()
    assert isinstance(next(watch), Snapshot)
    closer = threading.Timer(0.1, watch.close)
    closer.start()
    assert list(watch) == []
    closer.join()


def test_one_server_is_active_and_names_itself_to_others(cluster: Cluster) -> None:
    record = Record("chat", "gpu1", 8000, pid=4321)
    with cluster.acquire("chat", record, ttl=TTL, drain=DRAIN) as active:
        assert active.record == record.replace(token=active.token, exclusive=True)
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        assert now < active.kill_at < active.deadline < now + TTL
        assert 0 < active.remaining < TTL
        assert active.wait_lost(0) is None
        with pytest.raises(AlreadyActive) as refused:
            cluster.acquire("chat", Record("chat", "gpu2", 8000))
        e = refused.value
        assert (e.service, e.host, e.port, e.pid) == ("chat", "gpu1", 8000, 4321)
        assert (e.started_at, e.token) == (record.started_at, active.token)
        assert str(e).startswith("Service chat is active on gpu1:8000 (PID: 4321, started: ")
        assert not isinstance(e, TimeoutError)
        (server,) = cluster.servers("chat")
        assert (server.registered, server.record) == (False, active.record)
    assert active.released
    active.release()
    with pytest.raises(RuntimeError, match="closed"):
        _ = active.remaining
    with cluster.acquire("chat", record) as next_one:
        assert next_one.token > active.token


def test_a_standby_says_for_whom_it_waits_and_takes_over(cluster: Cluster) -> None:
    told: list[ClusterError] = []
    waits = threading.Event()

    def on_wait(reason: ClusterError) -> None:
        told.append(reason)
        waits.set()

    def stand_by() -> None:
        record = Record("chat", "gpu2", 8000)
        got.append(cluster.acquire("chat", record, timeout=math.inf, on_wait=on_wait))

    got: list[module.Exclusive] = []
    standby = threading.Thread(target=stand_by)
    with cluster.acquire("chat", Record("chat", "gpu1", 8000)) as active:
        standby.start()
        assert waits.wait(PATIENCE)
        assert not got
    standby.join(PATIENCE)
    with got[0] as second:
        assert second.token > active.token
    assert [type(reason) for reason in told] == [AlreadyActive]
    assert isinstance(told[0], AlreadyActive)
    assert told[0].host == "gpu1"


def test_time_runs_out_for_a_standby(cluster: Cluster) -> None:
    record = Record("chat", "gpu1", 8000)
    with cluster.acquire("chat", record) as active:
        with pytest.raises(AcquireTimeout) as refused:
            cluster.acquire("chat", record, timeout=0.1)
        assert isinstance(refused.value, TimeoutError)
        assert refused.value.token == active.token


def test_what_on_wait_raises_ends_the_wait(cluster: Cluster) -> None:
    def on_wait(reason: ClusterError) -> None:
        raise LookupError(str(reason))

    record = Record("chat", "gpu1", 8000)
    with cluster.acquire("chat", record), pytest.raises(LookupError, match="is active on gpu1"):
        cluster.acquire("chat", record, timeout=math.inf, on_wait=on_wait)


def test_a_lease_whose_key_is_taken_away_is_lost(cluster: Cluster, etcd: Etcd, url: str) -> None:
    active = cluster.acquire("chat", Record("chat", "gpu1", 8000), ttl=TTL, drain=DRAIN)
    etcd.delete(f"{prefix(url)}/v1/exclusive/chat/holder")
    lost = active.wait_lost(PATIENCE)
    assert lost is not None
    assert "its key was removed" in str(lost)
    assert lost.deadline == active.deadline
    with pytest.raises(LeaseLost) as refused:
        active.release()
    assert (refused.value.service, refused.value.token) == ("chat", active.token)
    # Its time has to run out: nobody has given it back.
    with pytest.raises(NotYet) as early:
        cluster.acquire("chat", Record("chat", "gpu2", 8000), timeout=0.1)
    assert 0 < early.value.wait <= TTL


def test_a_lease_that_nobody_gave_back_ends_by_itself(cluster: Cluster, url: str) -> None:
    code = """
import sys
from llmlb_lock.cluster import Cluster, Record
cluster = Cluster.connect(sys.argv[1])
active = cluster.acquire("chat", Record("chat", "gpu1", 8000), ttl=3, drain=0.5)
print(active.token)
"""
    token = int(run_python(code, url))
    with cluster.acquire("chat", Record("chat", "gpu2", 8000), timeout=PATIENCE) as active:
        assert active.token > token


def test_a_lease_that_is_lost_sight_of_is_not_renewed(cluster: Cluster) -> None:
    record = Record("chat", "gpu1", 8000)
    active = cluster.acquire("chat", record, ttl=TTL, drain=DRAIN)
    token = active.token
    with pytest.warns(ResourceWarning, match="unreleased"):
        del active
    with pytest.raises((AlreadyActive, NotYet)):
        cluster.acquire("chat", record, timeout=0.2)
    with cluster.acquire("chat", record, timeout=PATIENCE) as active:
        assert active.token > token


def test_releasing_ends_the_waits_of_others(cluster: Cluster) -> None:
    active = cluster.acquire("chat", Record("chat", "gpu1", 8000))
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            active.wait_lost()
        except BaseException as e:
            raised.append(e)

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.05)
    active.release()
    waiter.join(PATIENCE)
    # It came late, or was waiting.
    assert isinstance(raised[0], (Interrupted, RuntimeError))
    with cluster.acquire("chat", Record("chat", "gpu1", 8000)):
        pass


def test_a_server_is_stopped_from_elsewhere(cluster: Cluster) -> None:
    record = Record("chat", "gpu1", 8000)
    with cluster.register(record) as registration, cluster.stop_requests(record) as requests:
        assert registration.wait_registered(PATIENCE)
        (server,) = cluster.servers("chat")
        with cluster.request_stop(server.record, "laptop") as ticket:
            assert ticket.server == record
            request = next(requests)
            assert isinstance(request, StopRequest)
            assert request.from_host == "laptop"
            assert request.at <= datetime.now(timezone.utc)
            assert ticket.wait(0.1) == "accepted"
            registration.withdraw()
            assert ticket.wait(PATIENCE) == "stopped"


def test_a_server_that_leaves_is_not_found_and_has_not_ended(cluster: Cluster) -> None:
    record = Record("chat", "gpu1", 8000)
    with cluster.register(record) as registration, cluster.watch("chat") as watch:
        while watch.next(PATIENCE) not in (Snapshot((record,)), Up(record)):
            pass
        with cluster.request_stop(record) as ticket:
            registration.leave()
            assert watch.next(PATIENCE) == Down("chat", "gpu1:8000")
            (server,) = cluster.servers("chat")
            assert (server.record, server.registered, server.leaving) == (record, False, True)
            assert ticket.wait(0.1) == "unanswered"
            registration.withdraw()
            assert ticket.wait(PATIENCE) == "stopped"


def test_a_request_that_nobody_hears_is_unanswered(cluster: Cluster) -> None:
    with cluster.register(Record("chat", "gpu1", 8000)) as registration:
        assert registration.wait_registered(PATIENCE)
        (server,) = cluster.servers()
        with cluster.request_stop(server.record) as ticket:
            assert ticket.wait(0.1) == "unanswered"


def test_what_is_no_record_is_named(cluster: Cluster, etcd: Etcd, url: str) -> None:
    etcd.put(f"{prefix(url)}/v1/servers/chat/evil", "no record")
    listing = cluster.servers()
    assert listing.servers == ()
    assert listing.skipped[0].key.endswith("/servers/chat/evil")
    etcd.put(f"{prefix(url)}/v1/exclusive/chat/holder", "no record")
    with pytest.raises(ActiveUnknown) as held:
        cluster.acquire("chat", Record("chat", "gpu1", 8000))
    assert held.value.key.endswith("/exclusive/chat/holder")
    etcd.put(f"{prefix(url)}/v1/exclusive/index/fence", "no fence")
    with pytest.raises(Corrupt, match="To remove it: etcdctl del"):
        cluster.acquire("index", Record("index", "gpu1", 8000))


def test_an_outage_stops_no_server_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    record = Record("chat", "gpu1", 8000)
    with Etcd() as etcd:
        cluster = Cluster.connect(etcd.url("outage"))
        with (
            cluster.register(record, ttl=2) as registration,
            cluster.watch() as watch,
        ):
            assert registration.wait_registered(PATIENCE)
            while watch.next(PATIENCE) not in (Snapshot((record,)), Up(record)):
                pass
            etcd.kill()
            outage = watch.next(PATIENCE)
            assert isinstance(outage, Outage)
            assert f"127.0.0.1:{etcd.port}" in outage.reason
            wait_until(lambda: not registration.registered, "an outage is noticed")
            with pytest.raises(Unreachable) as unreachable:
                cluster.servers()
            assert isinstance(unreachable.value, ConnectionError)
            ((address, reason),) = unreachable.value.endpoints
            assert (address, reason) == (f"127.0.0.1:{etcd.port}", "connection refused")
            etcd.start_again()
            assert watch.next(PATIENCE) == Back()
            assert registration.wait_registered(PATIENCE)
            assert [server.record for server in cluster.servers()] == [record]
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    mine = [line for line in said if line.startswith("Registration of chat on gpu1:8000: ")]
    assert len(mine) == 1, said
    assert {record.name for record in caplog.records} == {"llmlb_lock"}


def test_a_registration_does_not_need_etcd_to_start(url: str) -> None:
    away = Cluster.connect(f"etcd://127.0.0.1:{free_port()}/x")
    with away.register(Record("chat", "gpu1", 8000)) as registration:
        assert registration.wait_registered(0.2) is False
        assert not registration.registered
    with pytest.raises(Unreachable):
        away.acquire("chat", Record("chat", "gpu1", 8000))


def test_a_user_and_a_password() -> None:
    with Etcd() as etcd:
        etcd.call("auth/user/add", {"name": "root", "password": "of etcd"})
        etcd.call("auth/role/add", {"name": "root"})
        etcd.call("auth/user/grant", {"user": "root", "role": "root"})
        etcd.call("auth/enable", {})
        url = etcd.url("auth")
        cluster = Cluster.connect(url, user="root", password="of etcd")
        assert "of etcd" not in repr(cluster)
        with cluster.acquire("chat", Record("chat", "gpu1", 8000)):
            assert len(cluster.servers()) == 1
        with pytest.raises(Refused, match="check user and password") as refused:
            Cluster.connect(url, user="root", password="wrong").servers()
        assert refused.value.address == f"127.0.0.1:{etcd.port}"
        with pytest.raises(Refused):
            Cluster.connect(url).servers()


def test_wrong_arguments_are_named(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(InvalidUrl, match="has to begin with etcd://") as url:
        Cluster.connect("http://h1")
    assert isinstance(url.value, ValueError)
    with pytest.raises(InvalidUrl, match="LLMLB_CLUSTER_USER") as secret:
        Cluster.connect("etcd://me:secret@h1")
    assert "secret" not in str(secret.value)
    with pytest.raises(TypeError, match="belong together"):
        Cluster.connect("etcd://h1", user="me")
    with pytest.raises(CertificateError, match="none\\.pem"):
        Cluster.connect("etcds://h1", ca=tmp_path / "none.pem")
    with pytest.raises(InvalidRecord, match="service name") as bad:
        cluster.register(Record("a/b", "gpu1", 8000))
    assert (bad.value.what, isinstance(bad.value, ValueError)) == ("service name", True)
    for port in 0, -1, 65536, 1 << 70:
        with pytest.raises(InvalidRecord, match="port"):
            cluster.register(Record("chat", "gpu1", port))
    with pytest.raises(InvalidRecord, match="PID"):
        cluster.register(Record("chat", "gpu1", 8000, pid=-1))
    with pytest.raises(InvalidRecord, match="service name"):
        cluster.servers("a/b")
    started_at = datetime(1, 1, 1, tzinfo=timezone.utc)
    with pytest.raises(InvalidRecord, match="start"):
        cluster.register(Record("chat", "gpu1", 8000, started_at=started_at))
    with pytest.raises(InvalidTiming, match=r"lower the drain to 4\.9 s"):
        cluster.acquire("chat", Record("chat", "gpu1", 8000), ttl=15, drain=5)
    for wrong in "8000", None, 1.5:
        with pytest.raises(TypeError):
            cluster.register(Record("chat", "gpu1", wrong))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="str is not a Record"):
        cluster.register("chat")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a list of names"):
        Record("chat", "gpu1", 8000, models="qwen3")
    for timeout in -1.0, math.nan:
        with pytest.raises(ValueError, match="Invalid timeout"):
            cluster.acquire("chat", Record("chat", "gpu1", 8000), timeout=timeout)


def test_a_record_is_a_value() -> None:
    record = Record("chat", "fe80::1", 8000, models=["a", "b"])
    assert (record.url, record.instance) == ("http://[fe80::1]:8000", "fe80::1:8000")
    assert (record.pid, record.models) == (os.getpid(), ("a", "b"))
    assert record == pickle.loads(pickle.dumps(record)) == copy.deepcopy(record)
    assert len({record, record.replace(), record.replace(slots=1)}) == 2
    assert record.nonce != Record("chat", "fe80::1", 8000).nonce
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.port = 1  # type: ignore[misc]


def test_a_record_has_the_fields_that_are_specified() -> None:
    page = Path(__file__).parents[2] / "docs" / "cluster.md"
    table = page.read_text().partition("### The record")[2].partition("```json")[0]
    specified = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert {field.name for field in dataclasses.fields(Record)} == set(specified)


def test_errors_survive_pickling_and_are_where_they_are_imported_from() -> None:
    error = AlreadyActive("taken", service="chat", port=8000)
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), str(copied), copied.port) == (AlreadyActive, "taken", 8000)
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, type):
            assert value.__module__ == "llmlb_lock.cluster", name
        if isinstance(value, type) and issubclass(value, Exception):
            assert issubclass(value, ClusterError), name
            assert issubclass(value, OSError), name


def test_what_lives_in_threads_is_not_pickled(cluster: Cluster) -> None:
    with (
        cluster.register(Record("chat", "gpu1", 8000)) as registration,
        pytest.raises(TypeError, match="stays with its process"),
    ):
        pickle.dumps(registration)


def test_the_cluster_is_loaded_when_it_is_asked_for() -> None:
    run_python("import llmlb_lock, sys; assert 'llmlb_lock.cluster' not in sys.modules")

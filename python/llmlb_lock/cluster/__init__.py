"""The same stories across hosts, on etcd: servers that are found, one active server per service.

```python
cluster = Cluster.connect("etcd://h1:2379,h2:2379,h3:2379/llm")
record = Record("chat", "gpu1", 8000)

with cluster.acquire("chat", record, timeout=math.inf) as active:  # at most one, on any host
    with cluster.register(active.record):  # found by balancers
        ...  # serve, and until active.deadline end what serves:
        if active.wait_lost() is not None:
            ...
```

Waiting lets other threads run, and Ctrl-C ends it; each wait has a twin for event loops, whose name
ends with `_async`. Times are in seconds. What happens is logged as `llmlb_lock` in `logging`.

A lease and a registration are renewed by threads that Python code can't hold up. To end the server
when the lease is lost is this program's task; `self_fencing` has the kernel end it where the server
is this process, stopped or hung. A server that is a child is run by `llmlb serve --exclusive`.

What a process has acquired and registered stays its own: forked children, such as those of
`os.fork` and `multiprocessing`, can neither use nor end it, and may go on with the `Cluster`.

On Linux. What is promised, and what is not: docs/cluster.md.
"""

from __future__ import annotations

import sys

if sys.platform != "linux":
    raise ImportError("llmlb_lock.cluster is for Linux")

from llmlb_lock.cluster._cluster import Cluster
from llmlb_lock.cluster._errors import (
    AcquireTimeout,
    ActiveUnknown,
    AlreadyActive,
    CertificateError,
    ClusterError,
    Corrupt,
    Interrupted,
    InvalidRecord,
    InvalidTiming,
    InvalidUrl,
    LeaseLost,
    LeaseNotReleased,
    NotEtcd,
    NotYet,
    Refused,
    ThreadError,
    Unreachable,
    WatchdogError,
)
from llmlb_lock.cluster._handles import Exclusive, Registration, StopRequests, StopTicket, Watch
from llmlb_lock.cluster._records import (
    Back,
    Change,
    Down,
    Listing,
    Lost,
    Outage,
    Record,
    Server,
    Skipped,
    Snapshot,
    StopAnswer,
    StopRequest,
    Up,
)

__all__ = [
    "AcquireTimeout",
    "ActiveUnknown",
    "AlreadyActive",
    "Back",
    "CertificateError",
    "Change",
    "Cluster",
    "ClusterError",
    "Corrupt",
    "Down",
    "Exclusive",
    "Interrupted",
    "InvalidRecord",
    "InvalidTiming",
    "InvalidUrl",
    "LeaseLost",
    "LeaseNotReleased",
    "Listing",
    "Lost",
    "NotEtcd",
    "NotYet",
    "Outage",
    "Record",
    "Refused",
    "Registration",
    "Server",
    "Skipped",
    "Snapshot",
    "StopAnswer",
    "StopRequest",
    "StopRequests",
    "StopTicket",
    "ThreadError",
    "Unreachable",
    "Up",
    "Watch",
    "WatchdogError",
]

# What tracebacks and pickles name is where it is imported from.
for _name in __all__:
    _object = globals()[_name]
    if isinstance(_object, type) and _object.__module__.startswith(f"{__name__}."):
        _object.__module__ = __name__

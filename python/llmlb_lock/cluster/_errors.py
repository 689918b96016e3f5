"""The exceptions. All are OSErrors; those that are the caller's mistake are ValueErrors, too."""

from __future__ import annotations

from llmlb_lock._errors import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime


class ClusterError(Failure):
    """Everything that can go wrong beyond one machine.

    `str()` names the address, the service or the key, and says what to do next.
    """


class InvalidUrl(ClusterError, ValueError):
    """Not the URL of a cluster. `url` is without a password."""

    url: str
    reason: str


class CertificateError(ClusterError):
    """A file with certificates or a key can't be used."""

    path: str
    reason: str


class InvalidTiming(ClusterError, ValueError):
    """The times don't fit into the TTL; the message shows the arithmetic."""

    reason: str


class InvalidRecord(ClusterError, ValueError):
    """A name, a host or a record that can't be kept in etcd."""

    what: str
    reason: str


class AlreadyActive(ClusterError):
    """Another server is the active one, and this is who."""

    service: str
    host: str
    port: int
    pid: int
    started_at: datetime
    token: int


class AcquireTimeout(AlreadyActive, TimeoutError):
    """The service was waited for, and the active server did not leave in time."""


class ActiveUnknown(ClusterError):
    """The service is held, but its record can't be read: something else wrote it."""

    service: str
    key: str
    reason: str


class NotYet(ClusterError):
    """The last holder vanished without goodbye; its time is over in `wait` seconds at most."""

    service: str
    wait: float


class Unreachable(ClusterError, ConnectionError):
    """No member of etcd answered; `endpoints` has each address, and why it failed."""

    endpoints: list[tuple[str, str]]


class Refused(ClusterError):
    """etcd answered with an error; `code` is gRPC's number of it."""

    address: str
    code: int
    message: str


class NotEtcd(ClusterError):
    """What answered is not etcd 3.4 or later."""

    address: str
    reason: str


class Corrupt(ClusterError):
    """A key is not what llmlb writes, and nothing is safe until it is removed."""

    key: str
    reason: str


class LeaseLost(ClusterError):
    """The lease that was to be released was not ours any more."""

    service: str
    token: int
    reason: str


class LeaseNotReleased(ClusterError):
    """The lease could not be given back: it ends by itself, within `ttl` seconds."""

    service: str
    ttl: float


class ThreadError(ClusterError):
    """A thread could not be started."""


class WatchdogError(ClusterError):
    """What was to kill the server in time could not be had."""


class Interrupted(ClusterError, InterruptedError):
    """What was waited on was closed meanwhile, in another thread."""

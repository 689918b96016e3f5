"""The door: what can be asked of a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from os import PathLike
from typing import TypeAlias

from llmlb_lock import _native
from llmlb_lock.cluster._errors import ClusterError
from llmlb_lock.cluster._handles import Exclusive, Registration, StopRequests, StopTicket, Watch
from llmlb_lock.cluster._records import Listing, Record, Server, Skipped
from llmlb_lock.cluster._waits import in_thread

_File: TypeAlias = str | PathLike[str]
_OnWait: TypeAlias = Callable[[ClusterError], object]


class Cluster:
    """Servers of many hosts that know of each other by one etcd, below one prefix.

    Connections are made when they are needed. A forked child may go on with it; what it was given
    before, such as a registration, stays the parent's.
    """

    __slots__ = ("__weakref__", "_access", "_made", "_pid")

    def __init__(
        self,
        url: str,
        *,
        user: str | None = None,
        password: str | None = None,
        ca: _File | None = None,
        certificate: tuple[_File, _File] | None = None,
    ) -> None:
        if (user is None) != (password is None):
            raise TypeError("a user and a password belong together")
        login = None if user is None or password is None else (user, password)
        self._access = (url, login, ca, certificate)
        self._made = _native.Cluster(*self._access)
        self._pid = os.getpid()

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        user: str | None = None,
        password: str | None = None,
        ca: _File | None = None,
        certificate: tuple[_File, _File] | None = None,
    ) -> Cluster:
        """Reads the certificates. etcd is not asked yet.

        `etcd://HOST[:PORT][,HOST[:PORT]...][/PREFIX]`, or `etcds://` for TLS, which may end with
        `?ca=FILE&cert=FILE&key=FILE`. These may be given beside it instead: `certificate` is a PEM
        file with the chain, and one with its key. Raises InvalidUrl or CertificateError.

        >>> from llmlb_lock.cluster import Cluster
        >>> Cluster.connect("etcd://h1:2379,h2:2379,h3:2379/llm")
        <Cluster etcd://h1:2379,h2:2379,h3:2379/llm>
        """
        return cls(url, user=user, password=password, ca=ca, certificate=certificate)

    def __repr__(self) -> str:
        return f"<Cluster {self._access[0].partition('?')[0]}>"

    @property
    def _native(self) -> _native.Cluster:
        if self._pid != os.getpid():
            # A thread of the parent may have been in it when it forked.
            self._made = _native.Cluster(*self._access)
            self._pid = os.getpid()
        return self._made

    def register(self, record: Record, *, ttl: float = 15.0) -> Registration:
        """Lets a server be found, until the registration is withdrawn. Does not wait for etcd.

        `ttl`: so many seconds after it was killed it is off the list. InvalidRecord.
        """
        return Registration(self._native.register(record, ttl))

    def acquire(
        self,
        service: str,
        record: Record,
        *,
        ttl: float = 15.0,
        drain: float = 4.0,
        timeout: float | None = None,
        lock_delay: float = 0.0,
        self_fencing: bool = False,
        on_wait: _OnWait | None = None,
    ) -> Exclusive:
        """Makes this server the active one of `service`.

        Without a timeout another that is active is an AlreadyActive at once. With one this waits as
        a standby, and running out of time is an AcquireTimeout; `math.inf` waits without end. After
        one that vanished without goodbye it waits until that one's time is over, at most its TTL.

        `ttl` is how long the lease lasts after its last renewal, `drain` how much of that the
        server may take to end in good order: InvalidTiming, with the arithmetic, if that doesn't
        fit.
        `lock_delay` is added after one that vanished.

        `self_fencing` is for a server that is this process: the kernel kills it (SIGKILL) at
        `kill_at`, however stopped or hung it is, unless a renewal succeeds or the lease is released
        before. What it has started is not killed.

        `on_wait` is called with the reason whenever
        that for which is waited has changed; what it raises ends the wait.
        """
        return Exclusive(
            self._native.acquire(
                service, record, ttl, drain, lock_delay, self_fencing, timeout, on_wait, None
            )
        )

    async def acquire_async(
        self,
        service: str,
        record: Record,
        *,
        ttl: float = 15.0,
        drain: float = 4.0,
        timeout: float | None = None,
        lock_delay: float = 0.0,
        self_fencing: bool = False,
        on_wait: _OnWait | None = None,
    ) -> Exclusive:
        """`acquire` that lets the event loop run. Cancelling it ends the wait and takes nothing."""
        import asyncio

        loop = asyncio.get_running_loop()

        def tell(reason: ClusterError) -> None:
            if on_wait is not None:
                loop.call_soon_threadsafe(on_wait, reason)

        return Exclusive(
            await in_thread(
                lambda stop: self._native.acquire(
                    service, record, ttl, drain, lock_delay, self_fencing, timeout, tell, stop
                ),
                lambda native: native.release(),
            )
        )

    def servers(self, service: str | None = None) -> Listing:
        """Every server there is, of one service or of all, at one moment.

        What is no record is in `skipped`, and no error.
        """
        return _listing(*self._native.servers(service, None))

    async def servers_async(self, service: str | None = None) -> Listing:
        """`servers` that lets the event loop run."""
        return _listing(*await in_thread(lambda stop: self._native.servers(service, stop)))

    def watch(self, service: str | None = None) -> Watch:
        """Follows the servers of one service, or of all. Does not wait for etcd."""
        return Watch(self._native.watch(service))

    def request_stop(self, server: Record, from_host: str | None = None) -> StopTicket:
        """Asks whoever guards this server, one of `servers`, to stop it.

        `from_host` is this host's name, for the other's log.
        """
        host = from_host or os.uname().nodename
        return StopTicket(self._native.request_stop(server, host, None))

    async def request_stop_async(self, server: Record, from_host: str | None = None) -> StopTicket:
        """`request_stop` that lets the event loop run. Cancelling it takes the request back."""
        host = from_host or os.uname().nodename
        return StopTicket(
            await in_thread(
                lambda stop: self._native.request_stop(server, host, stop),
                lambda native: native.close(),
            )
        )

    def stop_requests(self, server: Record) -> StopRequests:
        """Hears of requests to stop this server, as `llmlb stop --cluster` makes them."""
        return StopRequests(self._native.stop_requests(server))


def _listing(servers: list[tuple[Record, bool, bool]], skipped: list[tuple[str, str]]) -> Listing:
    return Listing(
        tuple(Server(*fields) for fields in servers),
        tuple(Skipped(*fields) for fields in skipped),
    )

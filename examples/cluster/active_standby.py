"""A server of which one is active, and the others stand by, on any host:

    active_standby.py ETCD_URL SERVICE HOST PORT

Whoever asks it gets its fencing token. The server is this process: when the lease is lost it ends
at once, long before another may start, and if it can't, as it is stopped or hung, the kernel kills
it. SIGTERM and `llmlb stop --cluster` end it in good order.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
from functools import partial

from llmlb_lock.cluster import Cluster, Exclusive, Record

LEASE_LOST = 6


def say(what: object) -> None:
    print(what, flush=True)


async def answer(token: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    body = f"token {token}\n"
    writer.write(f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    writer.close()


async def until_it_has_to_end(cluster: Cluster, active: Exclusive) -> None:
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    async with cluster.stop_requests(active.record) as requests:
        say(f"active: token {active.token}")
        lost = asyncio.create_task(active.wait_lost_async())
        ends = {
            lost,
            asyncio.create_task(terminated.wait()),
            asyncio.create_task(requests.next_async()),
        }
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if lost.done():
            say(f"lost: {lost.result()}")
            os._exit(LEASE_LOST)
        for task in ends:
            task.cancel()


async def main(url: str, service: str, host: str, port: str) -> None:
    cluster = Cluster.connect(url)
    record = Record(service, host, int(port), url=f"http://127.0.0.1:{port}")
    active = await cluster.acquire_async(
        service,
        record,
        ttl=3,
        drain=0.5,
        self_fencing=True,
        timeout=math.inf,
        on_wait=lambda reason: say(f"standby: {reason}"),
    )
    # Serve, and be found; at the end be found no more, have ended, and give the lease back.
    async with (
        active,
        await asyncio.start_server(partial(answer, active.token), "127.0.0.1", int(port)),
        cluster.register(active.record),
    ):
        await until_it_has_to_end(cluster, active)
    say("ended")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit("active_standby.py ETCD_URL SERVICE HOST PORT")
    asyncio.run(main(*sys.argv[1:]))

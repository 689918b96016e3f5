"""Runs one server on each port and sees to it that they keep running.

    orchestrator.py PORT... -- COMMAND [ARG...]

`{port}` in the arguments is replaced. Commands on standard input, one a line:

    show            the servers, one a line
    replace PORT    stop the server there and start a new one
    quit            stop them all, and leave

A server that dies, as by `kill -9`, is started again: at once if it had run for a while, else after
a pause that doubles each time. The servers outlive an orchestrator that is
killed: the next one finds them by their locks, and leaves them running.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import llmlb_lock

# A server that runs this many seconds has come up well.
WELL = 10.0
# Seconds between two starts of one that does not: from, to.
PAUSES = 0.1, 30.0


class Orchestrator:
    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._mutex = threading.Lock()
        # Those that are to run; one that is not here any more ends on purpose.
        self._servers: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, port: int, pause: float = 0.0) -> None:
        """Starts the server, unless one runs there already. `pause` came before it."""
        try:
            lock = llmlb_lock.acquire(port)
        except llmlb_lock.AlreadyRunning as e:
            say(f"{port}: PID {e.pid} runs already")
            return
        with lock:
            # Standard output is ours; theirs goes where the errors go.
            server = lock.popen(self._command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        say(f"{port}: started PID {server.pid}")
        self._servers[port] = server
        threading.Thread(target=self._watch, args=(port, server, pause), daemon=True).start()

    def _watch(self, port: int, server: subprocess.Popen[bytes], pause: float) -> None:
        started = time.monotonic()
        code = server.wait()
        if time.monotonic() - started >= WELL:
            pause = 0.0
        else:
            pause = min(max(2 * pause, PAUSES[0]), PAUSES[1])
        with self._mutex:
            if self._servers.get(port) is not server:
                return
            say(f"{port}: PID {server.pid} died ({code}), next start in {pause:g} s")
        # Whoever stops or replaces the server meanwhile does not wait for this.
        time.sleep(pause)
        with self._mutex:
            if self._servers.get(port) is server:
                self.start(port, pause)

    def replace(self, port: int) -> None:
        with self._mutex:
            self._stop(port)
            self.start(port)

    def show(self) -> None:
        for info in llmlb_lock.list_all_locks():
            say(f"{info.port}: PID {info.pid} since {info.started_at:%Y-%m-%d %H:%M:%S} UTC")

    def stop_all(self, ports: list[int]) -> None:
        with self._mutex:
            for port in ports:
                self._stop(port)

    def _stop(self, port: int) -> None:
        self._servers.pop(port, None)
        match llmlb_lock.stop_server(port, timeout=5, force=True):
            case llmlb_lock.Stopped(info=info, forced=forced):
                say(f"{port}: {'killed' if forced else 'stopped'} PID {info.pid}")
            case llmlb_lock.TimedOut(info=info):
                say(f"{port}: PID {info.pid} does not end")
            case _:
                pass


def say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    try:
        split = sys.argv.index("--")
        ports = [int(port) for port in sys.argv[1:split]]
    except ValueError:
        sys.exit(__doc__)
    orchestrator = Orchestrator(sys.argv[split + 1 :])
    for port in ports:
        orchestrator.start(port)
    say("ready")
    for line in sys.stdin:
        match line.split():
            case ["show"]:
                orchestrator.show()
                say("shown")
            case ["replace", number]:
                orchestrator.replace(int(number))
            case ["quit"]:
                orchestrator.stop_all(ports)
                say("bye")
                return
            case _:
                say(f"unknown command: {line.strip()}")


if __name__ == "__main__":
    main()

"""`python -m llmlb_lock stop` and `status`: what the `llmlb` program says and exits with, for those
who have the library alone.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timezone
from pathlib import Path
from typing import NoReturn

from llmlb_lock import LockDir, LockError, __version__
from llmlb_lock._advice import PROGRAM
from llmlb_lock._records import (
    LeftOversEnded,
    NotRunning,
    Server,
    StaleCleaned,
    Stopped,
    TimedOut,
)

OK, FAILURE, NOT_RUNNING, UNKNOWN, STARTING = 0, 1, 3, 4, 5
EXIT_CODES = {"Running": OK, "Starting": STARTING, "Stale": NOT_RUNNING}
# A listening port on this machine accepts within microseconds.
CONNECT_TIMEOUT = 0.2


def port(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not in 1..=65535")
    return number


def seconds(text: str) -> float:
    number = float(text)
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds")
    return number


def shown(duration: float) -> str:
    return f"{duration:g}s" if duration >= 1 or duration == 0 else f"{duration * 1000:g}ms"


def stop_one(locks: LockDir, port: int, timeout: float, force: bool) -> str | None:
    """What went wrong, if anything did."""
    server = locks.server(port)
    named = server is not None and server.state == "running" and server.info is not None
    if named:
        assert server is not None
        assert server.info is not None
        print(f"Stopping server on port {port} (PID: {server.info.pid})...", flush=True)
    try:
        outcome = locks.stop_server(port, timeout, force)
    except LockError as e:
        return str(e)
    match outcome:
        case Stopped(info=info, forced=forced):
            if not named:
                print(f"Port {port} was held by PID {info.pid}")
            if not forced:
                print("Server stopped successfully")
            elif not force:
                why = "it does not listen for stop requests"
                print(f"Server terminated: {why} (PID: {info.pid})")
            else:
                why = f"it did not stop within {shown(timeout)}"
                print(f"Server killed: {why} (PID: {info.pid})")
        case NotRunning():
            print(f"No server running on port {port}")
        case StaleCleaned():
            print(f"No server running on port {port}; removed the lock file it left behind")
        case LeftOversEnded():
            print(f"No server running on port {port}; ended what it had left behind")
        case TimedOut(info=info):
            hint = (
                "It was killed and has not ended: it may be waiting for a device"
                if force
                else f"To wait longer: {PROGRAM} stop --port {port} --timeout SECS\n"
                f"To kill it:     {PROGRAM} stop --port {port} --force"
            )
            still = f"still runs after {shown(timeout)}"
            return f"Server on port {port} (PID: {info.pid}) {still}\n\n{hint}"
    return None


def stop(arguments: argparse.Namespace) -> int:
    locks = LockDir()
    ports: list[int]
    if arguments.port is not None:
        ports = [arguments.port]
    else:
        # Another user's is not ours to stop, and no reason to fail.
        ports = [server.port for server in locks.servers() if server.state != "unreadable"]
        if not ports:
            print("No servers running")
            return OK

    def stop_this(port: int) -> str | None:
        return stop_one(locks, port, arguments.timeout, arguments.force)

    with ThreadPoolExecutor(min(len(ports), 32)) as pool:
        failures = [failure for failure in pool.map(stop_this, ports) if failure is not None]
    if failures:
        fail("\n\nError: ".join(failures))
    return OK


def accepts(port: int) -> bool:
    for address in "127.0.0.1", "::1":
        try:
            with socket.create_connection((address, port), CONNECT_TIMEOUT):
                return True
        except TimeoutError:
            return True  # somebody listens, and is too busy to answer
        except OSError:
            pass
    return False


def row(server: Server) -> dict[str, object]:
    status = server.state.capitalize()
    if server.state == "running" and not accepts(server.port):
        status = "Starting"
    # The file of a lock that somebody else holds names the wrong one.
    info = None if server.state == "held" else server.info
    told: dict[str, object] = {"port": server.port, "pid": None, "started_at": None}
    if info is not None:
        told |= json.loads(info.to_json())
    told["status"] = status
    if server.owner is not None:
        told["owner"] = server.owner
    return told


def table(servers: list[Server], rows: list[dict[str, object]]) -> str:
    lines = [("PORT", "PID", "STARTED", "STATUS")]
    for server, row in zip(servers, rows, strict=True):
        started = "-"
        if row["started_at"] is not None and server.info is not None:
            at = server.info.started_at.astimezone(timezone.utc)
            started = f"{at:%Y-%m-%dT%H:%M:%SZ}"
        owner = f" (owner: {server.owner})" if server.owner is not None else ""
        pid = "-" if row["pid"] is None else str(row["pid"])
        lines.append((str(server.port), pid, started, f"{row['status']}{owner}"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def note_hidden(servers: list[Server]) -> None:
    """A line for the rest: whose it is, as far as that can be told."""
    owners = [server.owner or "unknown" for server in servers if server.state == "unreadable"]
    if owners:
        one = len(owners) == 1
        files = "1 lock file" if one else f"{len(owners)} lock files"
        named = ", ".join(sorted(set(owners)))
        rest = f"{files} that can't be read {'is' if one else 'are'} not shown"
        print(f"{rest} (owned by {named}): see --all", file=sys.stderr)


def status(arguments: argparse.Namespace) -> int:
    locks = LockDir()
    if not Path(locks.path).exists():
        print(f"There is no directory {locks.path}, and so no lock in it", file=sys.stderr)
    if arguments.port is not None:
        try:
            server = locks.server(arguments.port)
        except LockError as e:
            fail(str(e), UNKNOWN)
        servers = [] if server is None else [server]
    else:
        servers = locks.servers()
        if not arguments.all:
            note_hidden(servers)
            servers = [server for server in servers if server.state in ("running", "held")]
    rows = [row(server) for server in servers]
    if arguments.format == "json":
        print(json.dumps(rows, separators=(",", ":")))
    elif rows:
        print(table(servers, rows))
    elif arguments.port is not None:
        print(f"No server running on port {arguments.port}")
    else:
        print("No servers running")
    if arguments.port is None:
        return OK
    return EXIT_CODES.get(str(rows[0]["status"]), UNKNOWN) if rows else NOT_RUNNING


def fail(message: str, code: int = FAILURE) -> NoReturn:
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(code)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="See and stop the servers that guard a port of this machine."
    )
    parser.add_argument("--version", action="version", version=f"llmlb-lock {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    stopping = commands.add_parser("stop", help="stop a server, and wait until it has ended")
    which = stopping.add_mutually_exclusive_group(required=True)
    which.add_argument("-p", "--port", type=port, help="the port whose server to stop")
    which.add_argument("--all", action="store_true", help="stop all servers that you may stop")
    stopping.add_argument(
        "-t",
        "--timeout",
        type=seconds,
        default=5.0,
        metavar="SECS",
        help="how long a server may take (default: 5)",
    )
    stopping.add_argument(
        "-f", "--force", action="store_true", help="kill it when the time has run out"
    )
    stopping.set_defaults(run=stop)

    showing = commands.add_parser("status", help="show what runs")
    showing.add_argument(
        "-p",
        "--port",
        type=port,
        help="this port alone; exits with 0 running, 3 not running, 4 cannot tell",
    )
    showing.add_argument("--format", choices=["table", "json"], default="table")
    showing.add_argument("-a", "--all", action="store_true", help="left-over files too")
    showing.set_defaults(run=status)
    return parser


def main() -> None:
    arguments = parser().parse_args()
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
    except LockError as e:
        fail(str(e))
    except BrokenPipeError:
        # A reader that has left has all it wanted; the interpreter would complain at its end.
        sys.stdout = None
        code = OK
    sys.exit(code)


if __name__ == "__main__":
    main()

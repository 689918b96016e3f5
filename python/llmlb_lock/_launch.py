"""How a server is started under its lock: what `popen` and `popen_async` share."""

from __future__ import annotations

import os
import sys

from llmlb_lock import _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike
    from typing import Any, Protocol, TypeAlias

    _Argument: TypeAlias = str | bytes | PathLike[str] | PathLike[bytes]

    class _Process(Protocol):
        @property
        def pid(self) -> int: ...
        def kill(self) -> None: ...


_NEW_GROUP: dict[str, Any] = (
    {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
)


class Launch:
    """What to start: `args` with the placeholders replaced, and the options of `Popen`."""

    __slots__ = ("_leads", "args", "options")

    def __init__(
        self,
        lock: _native.Lock,
        port: int,
        args: _Argument | Sequence[_Argument],
        host: str,
        env: Mapping[str, str] | None,
        options: dict[str, Any],
    ) -> None:
        if sys.platform == "win32":
            raise NotImplementedError("start the server with: llmlb serve -- COMMAND")
        values = {"port": str(port), "host": host}
        self.args: Any
        if isinstance(args, (str, bytes, os.PathLike)):
            self.args = _fill(args, values)
        else:
            self.args = [_fill(argument, values) for argument in args]
        environment = dict(os.environ if env is None else env)
        for name, value in values.items():
            environment[name.upper()] = environment[f"LLMLB_{name.upper()}"] = value
        environment[_native.SERVER_ID_ENV] = lock.server_id()
        environment.pop(_native.GUARDED_PORT_ENV, None)
        if not options.get("start_new_session") and options.get("process_group") is None:
            options |= _NEW_GROUP
        self._leads = bool(options.get("start_new_session")) or options.get("process_group") == 0
        if self._leads:
            environment[_native.GUARDED_PORT_ENV] = values["port"]
        options["pass_fds"] = (*options.get("pass_fds", ()), *lock.filenos())
        self.options: dict[str, Any] = {**options, "env": environment}

    def kill(self, process: _Process) -> None:
        """Ends what was started, which must not have been waited for: its id is its own yet."""
        import signal

        if self._leads:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _fill(argument: _Argument, values: dict[str, str]) -> str | bytes:
    text = os.fspath(argument)
    for name, value in values.items():
        if isinstance(text, bytes):
            text = text.replace(b"{%b}" % name.encode(), os.fsencode(value))
        else:
            text = text.replace(f"{{{name}}}", value)
    return text

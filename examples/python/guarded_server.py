"""An HTTP server that cannot be started twice on a port: `guarded_server.py [PORT]`."""

from __future__ import annotations

import signal
import sys
from http.server import HTTPServer, SimpleHTTPRequestHandler

import llmlb_lock


def main() -> None:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    # As Ctrl-C: leaves the block, which gives the lock back.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with llmlb_lock.ServerLock(port):
            HTTPServer(("127.0.0.1", port), SimpleHTTPRequestHandler).serve_forever()
    except llmlb_lock.AlreadyRunning as e:
        sys.exit(f"Error: {e}")
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()

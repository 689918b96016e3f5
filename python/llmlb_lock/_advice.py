"""What errors advise: the commands that somebody has who has this package."""

from __future__ import annotations

import os
import re
import sys

# The name alone: what it is in a virtual environment, and in most shells.
PROGRAM = f"{(sys.executable or '').rpartition(os.sep)[2] or 'python'} -m llmlb_lock"


def of_package(message: str) -> str:
    """Core's message, which names commands of the `llmlb` program."""
    return re.sub(r"\bllmlb (?=(stop|status)\b)", lambda _: f"{PROGRAM} ", message)

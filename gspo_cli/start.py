"""The entry points of all commands: Ctrl-C while a command's modules are still being imported ends it without
a traceback. Imports nothing else of the package."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from types import FrameType

INTERRUPTED = 130  # exit code, as shells have it


def train() -> None:
    """`gspo-train`."""
    _run("train")


def evaluate() -> None:
    """`gspo-eval`."""
    _run("evaluate")


def chat() -> None:
    """`gspo-chat`."""
    _run("chat")


def serve() -> None:
    """`gspo-serve`."""
    _run("serve")


def export() -> None:
    """`gspo-export`."""
    _run("export")


def doctor() -> None:
    """`gspo-doctor`."""
    _run("doctor")


def compare() -> None:
    """`gspo-compare`."""
    _run("compare")


def _run(name: str) -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored, as under nohup
        signal.signal(signal.SIGINT, _stopped)
    import_module(f"gspo_cli.commands.{name}").main()


def _stopped(number: int, frame: FrameType | None) -> None:
    """Nothing has begun yet, and imports are not to see an exception."""
    os.write(2, f"{os.path.basename(sys.argv[0])}: stopped\n".encode())
    os._exit(INTERRUPTED)

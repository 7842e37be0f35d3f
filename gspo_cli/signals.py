"""Signals that end a command: Ctrl-C, SIGTERM, and SIGHUP, which a closed terminal sends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal ended the command."""


@contextmanager
def signals_handled_by(handler: Callable[[int], None]) -> Iterator[None]:
    """A block in which the signals of ENDING call `handler`, and nothing else; not those that are ignored, as
    SIGHUP is under nohup. Signals reach the main thread only: in another thread this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    last = signal.SIGINT

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal last
        last = signal.Signals(number)
        if number == signal.SIGHUP:
            _leave_terminal()
        handler(number)

    def send_again(lost: UnraisableHookArgs) -> None:
        """Python drops what is raised in a destructor or a weak reference's callback, where a signal can
        arrive (thousands run while modules are imported)."""
        if isinstance(lost.exc_value, Stopped):
            threading.Timer(0.02, signal.raise_signal, [last]).start()
        else:
            reported(lost)

    numbers = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in numbers}
    reported, sys.unraisablehook = sys.unraisablehook, send_again
    try:
        yield
    finally:
        sys.unraisablehook = reported
        for number, before in previous.items():
            signal.signal(number, before)


def stop(number: int) -> None:
    """A handler that ends what runs. Raises Stopped."""
    raise Stopped


def can_be_ctrl_c(error: KeyboardInterrupt) -> bool:
    """Whether `error` is the user's: while this module handles Ctrl-C, only Stopped is; anything else was
    raised by the code itself."""
    return isinstance(error, Stopped) or signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _leave_terminal() -> None:
    """Write nowhere from now on, where output went to the terminal that was closed."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a stream without a file
            if os.isatty(stream.fileno()):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)

"""A process that scores one text at a time: what somebody's library does with a model's text can take for
ever, and must not hang a run."""

from __future__ import annotations

import signal
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from threading import Lock
from typing import Any

from gspo_cli.concurrency import TookTooLong

Score = Callable[[Any], Any]


class Worker:
    """Answers requests by the function that `setup` returns; `setup` runs in the process, once, and has to be
    picklable. The process starts with the first request and is replaced after one that took too long."""

    def __init__(self, setup: Callable[[], Score]) -> None:
        self._setup = setup
        self._lock = Lock()  # without the lock, threads would receive each other's results
        self._running: tuple[BaseProcess, Connection] | None = None

    def ask(self, request: Any, seconds: float) -> Any:
        """The function's value for `request`. Raises TookTooLong after `seconds`, EOFError or OSError where
        the process dies."""
        with self._lock:
            process, pipe = self._running = self._running or self._start()
            try:
                pipe.send(request)
                if pipe.poll(seconds):
                    return pipe.recv()
            except (EOFError, OSError):  # raise now, and start a new process for the next request
                self._running = None
                raise
            process.kill()
            self._running = None
            raise TookTooLong(f"took longer than {seconds:g} s")

    def _start(self) -> tuple[BaseProcess, Connection]:
        context = get_context("spawn")  # forking a process with torch's threads can deadlock
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, self._setup), daemon=True)
        process.start()
        there.close()
        here.recv()  # ready: imports do not count against the first request's time
        return process, here


def _serve(pipe: Connection, setup: Callable[[], Score]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's, which finishes its iteration
    score = setup()
    pipe.send("ready")
    while True:
        try:
            request = pipe.recv()
        except EOFError:  # the parent has exited
            return
        pipe.send(score(request))

"""Waiting for many slow answers at once, from code that does not wait itself.

One event loop lives in a background thread for the whole process: calls work inside a running loop too
(Jupyter, an async script), and HTTP connections outlive them. A job that blocks instead of awaiting holds all
others up, and no time limit can end it."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any


class TookTooLong(Exception):
    """A job passed its time limit."""


class Background:
    """An event loop in a daemon thread, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        """The running loop."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="gather", daemon=True)
                self._thread.start()
            return self._loop

    def is_current_thread(self) -> bool:
        """Whether the caller runs in this loop, where waiting for it would wait for ever."""
        return threading.current_thread() is self._thread


BACKGROUND = Background()


def gather(jobs: Iterable[Awaitable[Any]], limit: int, timeout: float | None) -> list[Any]:
    """Run all jobs, `limit` at a time and each for at most `timeout` seconds, and return in their order what
    they returned or the exception they raised; TookTooLong where time was up.

    The time of a job starts with the job. Raises RuntimeError inside one of its own jobs."""
    waiting = list(jobs)
    if not waiting:
        return []
    if BACKGROUND.is_current_thread():
        _close(waiting)
        raise RuntimeError("gather is called by one of its own jobs; use await and asyncio.gather there")
    future = asyncio.run_coroutine_threadsafe(_run(waiting, limit, timeout), BACKGROUND.loop())
    try:
        return future.result()
    except BaseException:  # Ctrl-C here ends the jobs there
        future.cancel()
        raise


async def _run(jobs: Sequence[Awaitable[Any]], limit: int, timeout: float | None) -> list[Any]:
    places = asyncio.Semaphore(limit)

    async def one(job: Awaitable[Any]) -> Any:
        async with places:
            return await _outcome(job, timeout)

    try:
        return await asyncio.gather(*(one(job) for job in jobs), return_exceptions=True)
    finally:
        _close(jobs)


async def _outcome(job: Awaitable[Any], timeout: float | None) -> Any:
    try:
        async with asyncio.timeout(timeout) as clock:
            return await job
    except TimeoutError as error:  # its own limit, or one inside the job
        return TookTooLong(f"took longer than {timeout:g} s") if clock.expired() else error
    except (KeyboardInterrupt, SystemExit) as error:  # left alone, it ends the loop that all share
        return RuntimeError(f"raised {type(error).__name__}")
    except Exception as error:  # of whatever job: the caller's to judge
        return error


def _close(jobs: Sequence[Awaitable[Any]]) -> None:
    """Coroutines that never started would warn of it; closing a finished one does nothing."""
    for job in jobs:
        if inspect.iscoroutine(job):
            job.close()

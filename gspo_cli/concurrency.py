"""Running many coroutines concurrently from synchronous code.

One event loop runs in a background thread for the lifetime of the process: so calls work inside a running
loop too (Jupyter, an async script), and HTTP connections are reused between calls. A job that blocks instead
of awaiting stops all others, and no time limit can end it."""

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
        """Whether the caller runs in this loop, where waiting for it would deadlock."""
        return threading.current_thread() is self._thread


BACKGROUND = Background()


def gather(jobs: Iterable[Awaitable[Any]], limit: int, timeout: float | None) -> list[Any]:
    """Run all jobs, `limit` at a time and each for at most `timeout` seconds. Returns, in the order of the
    jobs, what each returned or the exception it raised; TookTooLong where a job exceeded its limit.

    The clock of a job starts with the job. Raises RuntimeError when called by one of its own jobs."""
    pending = list(jobs)
    if not pending:
        return []
    if BACKGROUND.is_current_thread():
        _close(pending)
        raise RuntimeError("gather was called from one of its own jobs; use await and asyncio.gather there")
    future = asyncio.run_coroutine_threadsafe(_run(pending, limit, timeout), BACKGROUND.loop())
    try:
        return future.result()
    except BaseException:  # Ctrl-C ends the jobs, too
        future.cancel()
        raise


async def _run(jobs: Sequence[Awaitable[Any]], limit: int, timeout: float | None) -> list[Any]:
    slots = asyncio.Semaphore(limit)

    async def one(job: Awaitable[Any]) -> Any:
        async with slots:
            return await _outcome(job, timeout)

    try:
        return await asyncio.gather(*(one(job) for job in jobs), return_exceptions=True)
    finally:
        _close(jobs)


async def _outcome(job: Awaitable[Any], timeout: float | None) -> Any:
    try:
        async with asyncio.timeout(timeout) as clock:
            return await job
    except TimeoutError as error:  # this limit, or a time limit inside the job
        return TookTooLong(f"took longer than {timeout:g} s") if clock.expired() else error
    except (KeyboardInterrupt, SystemExit, GeneratorExit) as error:  # these would end the shared loop
        return RuntimeError(f"raised {type(error).__name__}")
    except Exception as error:  # the caller handles it
        return error


def _close(jobs: Sequence[Awaitable[Any]]) -> None:
    """Close coroutines that never started, which would warn; closing a finished one does nothing."""
    for job in jobs:
        if inspect.iscoroutine(job):
            job.close()

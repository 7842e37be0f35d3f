"""How the API awaits what computes: in a thread, while other tasks of the event loop run.

Only one run trains at a time in a process, since runs share its terminal, its threads and its signals. Python
delivers signals to the main thread only. So while a run is awaited there, Ctrl-C, SIGTERM and SIGHUP are
handled there for the run: the first ends it after the current iteration, with a checkpoint, and the second at
once. Cancelling the task that awaits does the same."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from threading import Lock
from typing import Any, TypeVar, cast

from gspo_cli.errors import UserError
from gspo_cli.signals import Stopped, signals_handled_by
from gspo_cli.training.watch import Watch

Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., Any])
TRAINING = Lock()
LOOK = 0.05  # seconds between looks at whether another run is over
PRESSES = 3  # with this signal a run that does not even end at once is left alone


async def train_in_thread(work: Callable[[], Result], watch: Watch) -> Result:
    """What `work` returns, which trains under `watch` in a thread. Raises what it raises."""
    while not TRAINING.acquire(blocking=False):
        await asyncio.sleep(LOOK)
    try:
        return await _in_thread(work, watch)
    finally:
        TRAINING.release()


async def _in_thread(work: Callable[[], Result], watch: Watch) -> Result:
    executor = ThreadPoolExecutor(1, thread_name_prefix="gspo training")
    future = asyncio.get_running_loop().run_in_executor(executor, copy_context().run, work)
    executor.shutdown(wait=False)
    cancelled: asyncio.CancelledError | None = None
    with signals_handled_by(_handler(watch)):
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
                watch.interrupt()
    if cancelled is not None:
        future.exception()  # the run's own is not reported in its place
        raise cancelled
    return future.result()


def _handler(watch: Watch) -> Callable[[int], None]:
    presses = 0

    def handle(number: int) -> None:
        nonlocal presses
        presses += 1
        watch.interrupt()
        if presses >= PRESSES:
            raise Stopped

    return handle


def bordered(function: Function) -> Function:
    """`function`, whose UserErrors, and the interrupt of a signal, begin at the border of the API: where a
    script does not catch them, their traceback shows its own lines and the sentence, and nothing of this
    package's inside."""

    @functools.wraps(function)
    def called(*values: Any, **named: Any) -> Any:
        try:
            return function(*values, **named)
        except (UserError, Stopped) as error:
            raise error.with_traceback(None) from None

    @functools.wraps(function)
    async def awaited(*values: Any, **named: Any) -> Any:
        try:
            return await function(*values, **named)
        except (UserError, Stopped) as error:
            raise error.with_traceback(None) from None

    return cast(Function, awaited if inspect.iscoroutinefunction(function) else called)

"""A run as seen by the script that awaits it: callbacks hear of its events, and may end it.

A run trains in a thread of its own, which calls the hooks of the callbacks; a hook that is a coroutine runs
in the event loop of the script. What has to end the run is only noted here, and the trainer looks at it
between iterations, so that a run ends with a checkpoint."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gspo_cli.config.checks import require
from gspo_cli.console.reporting import Reporter, ShownSample
from gspo_cli.errors import FOREIGN
from gspo_cli.run.summary import RunStatus
from gspo_cli.signals import Stopped

HOOKS = ("on_start", "on_iteration", "on_evaluation", "on_end")
PATIENCE = 0.1  # seconds between looks at whether the run has to end while a coroutine of a callback runs
STOPPING = "stopping after this iteration with a checkpoint"


@dataclass
class StopRequest:
    """`status` is how the run is to end after the current iteration; None lets it go on."""

    status: RunStatus | None = None


def hooks_of(callbacks: Sequence[Any]) -> dict[str, list[Callable[..., Any]]]:
    """The methods of `callbacks` by the name of their event. Raises UserError on an object without any, or
    with one of another event."""
    require(
        isinstance(callbacks, list | tuple),
        f"callbacks: is a {type(callbacks).__name__}; give a list of objects with {_or(HOOKS)}",
    )
    found: dict[str, list[Callable[..., Any]]] = {name: [] for name in HOOKS}
    for place, callback in enumerate(callbacks):
        own = [name for name in dir(callback) if name.startswith("on_")]
        strange = next((name for name in own if name not in HOOKS), None)
        of = f"callbacks[{place}]: {type(callback).__name__}"
        require(strange is None, f"{of} has {strange}, which is never called; callbacks have {_or(HOOKS)}")
        require(own != [], f"{of} has none of the methods {', '.join(HOOKS)}; give it one")
        for name in own:
            found[name].append(getattr(callback, name))
    return found


class Watch:
    """A `Reporter` over the one that `showing` names, which also tells the callbacks.

    A hook that returns False ends the run early. What a hook raises is kept in `error`, ends the run with a
    checkpoint, and is the last that callbacks hear of it."""

    def __init__(
        self,
        folder: Path,
        callbacks: Sequence[Any] = (),
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.folder, self.loop = folder, loop
        self.hooks = hooks_of(callbacks)
        self.stop = StopRequest()
        self.error: BaseException | None = None
        self._training = self._at_once = self._announced = False
        self._shown: Reporter

    def showing(self, shown: Reporter) -> Watch:
        """This object, which shows everything through `shown`."""
        self._shown = shown
        return self

    def interrupt(self) -> None:
        """End the run after this iteration, with a checkpoint; at once if it is asked for a second time, or
        before the first iteration. May be called in any thread, and by a signal handler."""
        self._at_once = not self._training or self.stop.status is RunStatus.interrupted
        self.stop.status = RunStatus.interrupted

    def begin(self, title: str, card: str, iterations: int, start: int) -> None:
        """See `Reporter`; tells `on_start`."""
        self._training = True
        self._check()
        self._shown.begin(title, card, iterations, start)
        places = {"run_folder": self.folder, "iteration": start, "total_iterations": iterations}
        self._tell("on_start", {"title": title, **places, "card": card})

    def stage(self, name: str, done: int, total: int, note: str = "") -> None:
        """See `Reporter`."""
        self._check()
        self._shown.stage(name, done, total, note)

    def iteration(self, metrics: Mapping[str, Any]) -> None:
        """See `Reporter`; tells `on_iteration`."""
        self._check()
        self._shown.iteration(metrics)
        self._tell("on_iteration", metrics)

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """See `Reporter`; tells `on_evaluation`."""
        self._check()
        self._shown.evaluation(record)
        self._tell("on_evaluation", record)

    def samples(self, samples: Sequence[ShownSample]) -> None:
        """See `Reporter`."""
        self._shown.samples(samples)

    def warn(self, text: str) -> None:
        """See `Reporter`."""
        self._shown.warn(text)

    def end(self, summary: Mapping[str, Any]) -> None:
        """See `Reporter`; tells `on_end`."""
        self._training = False
        self._shown.end(summary)
        self._tell("on_end", summary)

    def _check(self) -> None:
        """Raise Stopped where the run has to end at once; report that it ends after this iteration."""
        if self._at_once:
            raise Stopped
        if self.stop.status is RunStatus.interrupted and not self._announced:
            self._announced = True
            self._shown.warn(STOPPING)

    def _tell(self, name: str, record: Mapping[str, Any]) -> None:
        for hook in self.hooks[name]:
            if self.error is not None:
                return
            try:
                answer = self._awaited(hook(dict(record)))
            except Stopped:  # of the user, while a coroutine ran
                raise
            except FOREIGN as error:
                self.error, self.stop.status = error, RunStatus.failed
            else:
                if answer is False and self.stop.status is None:
                    self.stop.status = RunStatus.stopped_early
        if self._training:
            self._check()

    def _awaited(self, answer: Any) -> Any:
        """What a hook returned; of a coroutine what it returns, in the event loop of the script."""
        if not inspect.iscoroutine(answer) or self.loop is None:
            return answer
        future = asyncio.run_coroutine_threadsafe(answer, self.loop)
        while not wait([future], PATIENCE).done:
            if self._at_once:
                future.cancel()
                raise Stopped
        return future.result()


def _or(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"

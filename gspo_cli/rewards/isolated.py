"""A reward in a process of its own: a time limit can end it, and it cannot end the run."""

from __future__ import annotations

import atexit
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from gspo_cli.errors import FOREIGN, UserError, as_exception
from gspo_cli.rewards.base import RewardError, RewardFunction, Score
from gspo_cli.types import RewardResult, Trajectory

Make = Callable[[], RewardFunction]
STARTS = 600.0  # seconds for imports, and for a reward model to load


class IsolatedReward(RewardFunction):
    """The reward that `make` builds, which must be picklable, in another process.

    A batch may take `timeout` seconds for each conversation; coroutines run `limit` at a time. A process that
    takes longer, or dies, is replaced for the next batch. Raises UserError if the reward cannot be built."""

    def __init__(self, make: Make, limit: int, timeout: float) -> None:
        self._arguments, self._timeout = (make, limit, timeout), timeout
        self._start()

    def compute_rewards(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        """As the reward itself; one conversation at a time unless it scores batches in its own way, so that
        only the one that hangs has no reward."""
        if self._scores_batches:
            return self._ask(list(trajectories))
        return [score for trajectory in trajectories for score in self._ask([trajectory])]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _start(self) -> None:
        context = get_context("spawn")  # forking a process with torch's threads can deadlock
        self._pipe, there = context.Pipe()
        # not a daemon: a reward may start processes itself
        self._process = context.Process(target=_serve, args=(there, *self._arguments))
        self._process.start()
        there.close()
        atexit.register(self._process.kill)  # a hanging one would keep the interpreter from ending
        ready: Any = self._answer(STARTS, "did not start")
        if isinstance(ready, UserError):
            self.close()
            raise ready
        if isinstance(ready, RewardError):
            raise UserError(f"reward: {ready}; try it with training.isolate_reward=false")
        self.name: str = ready[0]
        self._scores_batches: bool = ready[1]

    def _ask(self, trajectories: list[Trajectory]) -> list[Score]:
        if not self._process.is_alive():
            self._start()
        with suppress(OSError):  # it has died just now: the answer says how
            self._pipe.send(trajectories)
        limit = self._timeout * len(trajectories)
        answer = self._answer(limit, f"{self.name} took longer than {limit:g} s and was stopped")
        return [answer] * len(trajectories) if isinstance(answer, RewardError) else answer

    def _answer(self, seconds: float, late: str) -> Any:
        """What the process sends, or a RewardError: `late`, or that it died."""
        try:
            if self._pipe.poll(seconds):
                return self._pipe.recv()
            why = late
        except (EOFError, OSError):
            self._process.join()
            why = f"its process ended with exit code {self._process.exitcode}"
        except Exception as error:  # objects of its own that cannot be made anew here
            why = f"its result cannot be read by the run ({type(error).__name__}: {error})"
        self.close()
        return RewardError(why)


def _serve(pipe: Connection, make: Make, limit: int, timeout: float) -> None:
    """Score what arrives, until the parent closes the pipe."""
    from gspo_cli.rewards.scoring import score, validate

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's, which finishes its iteration
    try:
        function = make()
    except UserError as error:
        pipe.send(error)
        return
    pipe.send((type(function).__name__, type(function).compute_rewards is not RewardFunction.compute_rewards))
    while True:
        try:
            trajectories = pipe.recv()
        except EOFError:
            return
        found: list[RewardResult | RewardError] = []
        scores = score(function, trajectories, limit, timeout)
        for trajectory, value in zip(trajectories, scores, strict=True):
            try:
                found.append(validate(function, trajectory, value))
            except RewardError as error:
                found.append(RewardError(str(error)))  # its cause may not be picklable
        try:
            pipe.send(found)
        except FOREIGN as error:
            pipe.send(RewardError(f"its result cannot be sent to the run ({as_exception(error)})"))

"""What a run keeps of its agent from one rollout to the next: the endpoint, and what was said of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from gspo_cli.agents.endpoint import EndpointServer
from gspo_cli.agents.rollout import AgentRollout, Waits
from gspo_cli.agents.running import LOCAL, Agent
from gspo_cli.policy.chat import ChatFormat
from gspo_cli.rollout.conversations import Limits, Start, run_to_end
from gspo_cli.rollout.engine import RolloutEngine, Sampling
from gspo_cli.rollout.progress import RolloutProgress
from gspo_cli.types import Trajectory


class AgentHost:
    """Runs an agent against the policy of `engine`. Its endpoint is up from the first rollout to `close`, so
    that an agent that asks after its conversation is told so."""

    def __init__(
        self,
        engine: RolloutEngine,
        chat: ChatFormat,
        agent: Agent,
        waits: Waits,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.engine, self.chat, self.agent, self.waits, self.warn = engine, chat, agent, waits, warn
        self.notes: dict[str, str] = {}
        self._told: set[str] = set()
        self._server: EndpointServer | None = None
        self._begun = 0

    def roll_out(
        self,
        starts: Sequence[Start],
        sampling: Sampling,
        limits: Limits,
        seed: int,
        progress: RolloutProgress | None = None,
    ) -> tuple[list[Trajectory], float]:
        """Run the agent on the problems of all `starts`; `seed` is the run's. What it returned is in its
        trajectory's outcome, and what to say of it in `notes`.

        -> finished conversations in the order of `starts`, and the probability mass that top_p and top_k left
        out, averaged over turns. Raises RuntimeError where the endpoint does not start."""
        if self._server is None:
            self._server = EndpointServer()
            self._server.start()
            _quieten_clients()
            _reach_without_proxy()
        with self.engine.session():
            asked = sampling, limits, seed
            rollout = AgentRollout(
                self.engine, self.chat, self.agent, self._server, self._begun, self.waits, *asked
            )
            self._begun += len(starts)
            run_to_end(rollout, self.engine, starts, progress)
        self.notes = rollout.notes
        return rollout.trajectories, rollout.truncated_mass

    def tell(self, notes: Mapping[str, str]) -> None:
        """Say what was not said before, each kind once."""
        for kind, text in notes.items():
            if kind not in self._told:
                self._told.add(kind)
                self.warn(text)

    def __enter__(self) -> Self:
        """For a `with` statement, at whose end it is closed."""
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the endpoint and what the agent uses."""
        self.agent.close()
        if self._server is not None:
            self._server.stop()
            self._server = None


def _quieten_clients() -> None:
    """Requests of agents in this process are no news: unless the user wishes, they are not logged."""
    for client in map(logging.getLogger, ("httpx", "httpx2")):  # the second is the OpenAI SDK's own
        if client.level == logging.NOTSET:
            client.setLevel(logging.WARNING)


def _reach_without_proxy() -> None:
    """Clients in this process talk to this machine directly, where others go through a proxy."""
    for name in ("NO_PROXY", "no_proxy"):
        known = os.environ.get(name, "")
        if LOCAL not in known:
            os.environ[name] = f"{known},{LOCAL}".strip(",")

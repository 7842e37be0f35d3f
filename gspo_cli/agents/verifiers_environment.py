"""An environment of the package verifiers: its tasks as problems, and a conversation as one of its episodes.

Written for the interface `verifiers.v1`, as of 0.4."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any

import verifiers.v1 as vf
from pydantic import ValidationError
from verifiers.v1.configs.agent import agent_config_fields
from verifiers.v1.types import content_text

from gspo_cli.agents.running import Endpoint
from gspo_cli.agents.verifiers_chat import CHAT, ChatConfig
from gspo_cli.config.checks import require
from gspo_cli.config.compose import import_from_here, locate
from gspo_cli.errors import FOREIGN, UserError, as_exception
from gspo_cli.types import Message, RewardResult

SHELL = (
    "bash"  # the package's default for an environment that brings no agent; it runs commands of the policy
)
KEYS = itertools.count()
for name in ("verifiers", "aiohttp.access"):  # they report every request and every episode
    logging.getLogger(name).setLevel(logging.WARNING)


class EpisodeError(Exception):
    """An episode went wrong, or has no reward."""


@dataclass(frozen=True)
class Source:
    """An environment, the `seat` that the policy plays in it, and the setting that it comes from."""

    environment: vf.Env
    seat: str
    setting: str

    def tasks(self, most: int | None) -> list[vf.Task]:
        """All its tasks, or the first `most`. Raises UserError where they cannot be read."""
        taskset = self.environment.taskset
        bounded = taskset.bounded or most is not None
        require(bounded, f"{self.setting}: its tasks have no end; say how many to use with task.problems")
        with _said_of(self.setting):
            found = list(taskset if most is None else taskset.take(most))
        require(found != [], f"{self.setting}: has no tasks; give other arguments")
        return found


def source_of(environment: str, arguments: Mapping[str, Any], key: str) -> Source:
    """The environment that a setting names: a taskset or an environment of the package by its id, or what a
    function returns. `key` is the setting of its arguments. Raises UserError in one sentence."""
    setting = f"task.environment_id={environment}"
    if ":" in environment:
        function = locate(environment.replace(":", "."), "task.environment_id")
        require(callable(function), f"{setting}: is not a function; give my_module:load")
        with _said_of(setting):
            built = function(**arguments)
        require(isinstance(built, vf.Env), f"{setting}: returned {built!r:.60}, which is no verifiers.v1.Env")
        kind, config = type(built), built.config
    else:
        import_from_here()
        given = arguments.get("taskset") or {}
        fits = isinstance(given, Mapping) and given.get("id", environment) == environment
        require(fits, f"{key}.taskset: must be a mapping without id, which is task.environment_id")
        with _said_of(setting, key):
            config = vf.resolve_env_config({**arguments, "taskset": {**given, "id": environment}})
            kind = vf.environment_class(environment, config.id)
    seat, config = _seated(config, setting, key)
    with _said_of(setting):
        found = kind(config)
    source = Source(found, seat, setting)
    _require_local(source, key)
    return source


def _seated(config: vf.EnvConfig, setting: str, key: str) -> tuple[str, vf.EnvConfig]:
    """The seat of the policy, and the settings in which seats that say nothing else have the agent and the
    place that suit a run."""
    seats = agent_config_fields(config)
    own = [name for name, spec in seats.items() if spec.client is None]
    require(
        len(own) == 1,
        f"{setting}: the policy would play {', '.join(own) or 'no seat'}, but a conversation has one agent "
        f"and one reward; give {'the other seats' if own else 'one seat no'} client in {key}",
    )
    retries = [config.retries, *(spec.retries for spec in seats.values())]
    calm = all(each.max_retries == 0 and not each.rules for each in retries)
    require(calm, f"{setting}: repeats what fails, but each conversation counts; leave retries out of {key}")
    bundled = vf.default_agent_harness(config.taskset.id).id
    changes: dict[str, Any] = {}
    for name, spec in seats.items():
        update: dict[str, Any] = {}
        if spec.harness is None and bundled == SHELL:
            update["harness"] = ChatConfig(id=CHAT)
        if "runtime" not in spec.model_fields_set:
            update["runtime"] = vf.SubprocessConfig()
        changes[name] = spec.model_copy(update=update)
    return own[0], config.model_copy(update=changes)


def _require_local(source: Source, key: str) -> None:
    """Raise UserError where tasks need a container, and the seat has none."""
    task_type = type(source.environment.taskset).task_type()
    spec = agent_config_fields(source.environment.config)[source.seat]
    local = isinstance(spec.runtime, vf.SubprocessConfig)
    require(
        not (task_type.NEEDS_CONTAINER and local),
        f"{source.setting}: its tasks need a container; give one with {key}.{source.seat}.runtime, such as "
        "{type: docker}",
    )


@contextmanager
def _said_of(setting: str, key: str = "task.arguments") -> Iterator[None]:
    """What goes wrong inside, as a UserError that names the setting."""
    try:
        yield
    except UserError:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, (key, *first["loc"])))
        raise UserError(
            f"{place}: {first['msg']}; see the settings of {setting.partition('=')[2]}"
        ) from error
    except FOREIGN as error:
        reason = " ".join(str(as_exception(error)).split())
        raise UserError(f"{setting}: {type(error).__name__}: {reason:.300}; correct it or {key}") from error


def opening_of(task: vf.Task) -> tuple[Message, ...]:
    """What a task says to begin with, for people and for reports; the agent writes its own prompts."""
    data = task.data
    said = [] if data.system_prompt is None else [Message("system", data.system_prompt)]
    if data.prompt is None:
        return (*said, Message("user", data.description or data.name or data.model_dump_json()))
    if isinstance(data.prompt, str):
        return (*said, Message("user", data.prompt))
    return (*said, *(Message(each.role, content_text(each.content)) for each in data.prompt))


class Episodes:
    """Runs episodes of an environment. What they share, such as servers of tools, is up while at least one
    runs. All of it happens in one event loop."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._running = 0
        self._keeper: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._over: asyncio.Event | None = None

    async def run(self, task: vf.Task, endpoint: Endpoint) -> RewardResult:
        """One episode, whose model calls go to `endpoint`. Raises EpisodeError where it failed."""
        async with self._serving():
            with _key(endpoint.api_key) as variable:
                client = vf.EvalClientConfig(base_url=endpoint.base_url, api_key_var=variable)
                context = vf.ModelContext(endpoint.model, client)
                episode = await self.source.environment.run_episode(task, context)
        return reward_of(episode, self.source.seat)

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        if self._keeper is None:
            self._ready = asyncio.get_running_loop().create_future()
            self._over = asyncio.Event()
            self._keeper = asyncio.create_task(self._keep(self._ready, self._over))
        keeper, ready, over = self._keeper, self._ready, self._over
        assert ready is not None
        assert over is not None
        self._running += 1
        try:
            await asyncio.shield(ready)
            yield
        finally:
            self._running -= 1
            if self._running == 0:
                self._keeper = None
                over.set()
                await asyncio.shield(keeper)

    async def _keep(self, ready: asyncio.Future[None], over: asyncio.Event) -> None:
        """Hold what episodes share, from `ready` on until `over`."""
        try:
            async with self.source.environment.serving():
                ready.set_result(None)
                await over.wait()
        except Exception as error:  # whatever servers of tools may raise
            if not ready.done():
                ready.set_exception(EpisodeError(f"{type(error).__name__}: {error}"))


@contextmanager
def _key(key: str) -> Iterator[str]:
    """A variable of the environment with a key: the package takes keys from there alone. It keeps those with
    API_KEY in their names from the programs that it starts."""
    name = f"GSPO_API_KEY_{next(KEYS)}"
    os.environ[name] = key
    try:
        yield name
    finally:
        os.environ.pop(name, None)


def reward_of(episode: vf.Episode, seat: str) -> RewardResult:
    """The reward of the policy's run in an episode, as the environment has weighed it; components are the
    scores by name, before weights, and the metrics. Raises EpisodeError where there is not exactly one run
    with all its scores."""
    traces = [trace for trace in episode.traces if trace.agent.name == seat]
    if not episode.ok:
        errors = [
            error for each in (*episode.traces, episode) for error in each.errors
        ]  # the first is the cause
        said = f"{errors[0].type}: {errors[0].message}" if errors else "the episode failed"
        raise EpisodeError(" ".join(said.split()))
    if len(traces) != 1:
        raise EpisodeError(f"{seat} ran {len(traces)} times in the episode; a conversation has one reward")
    [trace] = traces
    if not trace.agent.trainable:
        raise EpisodeError(f"the environment says that {seat} is not to be trained")
    unscored = [name for name, each in (*trace.rewards.items(), *trace.metrics.items()) if each is None]
    if unscored:
        raise EpisodeError(f"{', '.join(unscored)} gave no score ({trace.stop_condition})")
    scores = {name: float(each.score) for name, each in trace.rewards.items() if each is not None}
    if not scores:
        raise EpisodeError("the environment has no rewards")
    bad = [name for name, value in scores.items() if not isfinite(value)]
    if bad:
        raise EpisodeError(f"the score {bad[0]} is {scores[bad[0]]}, not a finite number")
    metrics = {name: float(value) for name, value in trace.metrics.items() if value is not None}
    apart = {f"{name}_metric" if name in scores else name: value for name, value in metrics.items()}
    return RewardResult(float(trace.reward), {**apart, **scores})

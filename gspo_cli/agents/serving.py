"""A policy behind the endpoint outside of training: every request by itself, as many at once as there are.

Unlike in training the sampling parameters of a request are honored, nothing is recorded, and a history is
encoded as it is sent."""

from __future__ import annotations

import queue
import secrets
from dataclasses import dataclass
from itertools import count

from gspo_cli.agents.endpoint import EndpointServer, Gone, Waiting
from gspo_cli.agents.exchange import Exchange
from gspo_cli.agents.requests import RequestError
from gspo_cli.agents.serving_requests import asked_sampling
from gspo_cli.errors import UserError
from gspo_cli.policy.chat import ChatFormat
from gspo_cli.policy.turns import TurnFormat
from gspo_cli.randomness import derived_seed
from gspo_cli.rollout.engine import RolloutEngine, Sampling

STOPPING = RequestError("server", "is stopping", 503)
ALL = 0  # the one conversation of the endpoint


@dataclass(frozen=True)
class Defaults:
    """What holds where a request does not say: the temperature, and the most tokens of an answer."""

    temperature: float
    max_tokens: int


@dataclass(frozen=True)
class _Asked:
    """A request in flight."""

    waiting: Waiting
    turns: TurnFormat
    prompt_tokens: int


class _Stop:
    """Ends the service."""


class PolicyService:
    """Answers what `endpoint` receives with the policy of `engine`, which has to mix samplings."""

    def __init__(
        self, engine: RolloutEngine, chat: ChatFormat, endpoint: EndpointServer, defaults: Defaults
    ) -> None:
        self.engine, self.chat, self.endpoint, self.defaults = engine, chat, endpoint, defaults
        self._exchange = Exchange(chat, endpoint.model)
        self._numbers = count()
        self._flight: dict[int, _Asked] = {}  # by the engine's number of a request
        self._stopped = False

    def open(self, key: str | None = None) -> str:
        """Let requests in that carry the returned key; None makes a random one."""
        return self.endpoint.open(ALL, key, joins=False)

    def run(self) -> None:
        """Answer until `stop`, or until an exception ends it; requests that wait are told so. The model runs
        on this thread."""
        try:
            with self.engine.session():
                while not self._stopped:
                    self._listen()
                    for number, completion in self.engine.step().items():
                        asked, name = self._flight.pop(number), secrets.token_hex(12)
                        request, tokens = asked.waiting.request, asked.prompt_tokens
                        answer = self._exchange.answer(name, request, tokens, asked.turns, completion)
                        asked.waiting.answer(answer)
        finally:
            self._flight.clear()
            self.endpoint.close(ALL, STOPPING)

    def stop(self) -> None:
        """End `run`, from any thread."""
        self.endpoint.inbox.put(_Stop())

    def _listen(self) -> None:
        """Take what has come in, and wait for it where nothing is in flight."""
        while not self._stopped:
            try:
                event = self.endpoint.inbox.get(block=not self._flight)
            except queue.Empty:
                return
            if isinstance(event, _Stop):
                self._stopped = True
            elif isinstance(event, Gone):
                self._forget(event.waiting)
            else:
                try:
                    self._ask(event.waiting)
                except RequestError as error:
                    event.waiting.answer(error)

    def _ask(self, waiting: Waiting) -> None:
        """Put a request in flight. Raises RequestError where it cannot be answered."""
        request = waiting.request
        turns, asked = self._exchange.format_of(request.tools), asked_sampling(request)
        try:
            prompt_ids = self._exchange.prompt_ids(request)
        except Exception as error:  # whatever a request is, it ends no service
            why = str(error) if isinstance(error, UserError) else f"cannot be read ({type(error).__name__})"
            raise RequestError("messages", why) from error
        room = self.engine.max_positions - len(prompt_ids)
        if room < 1:
            raise RequestError(
                "messages",
                f"are {len(prompt_ids)} tokens, which leaves no room for an answer: the model has "
                f"{self.engine.max_positions} positions",
            )
        temperature = self.defaults.temperature if asked.temperature is None else asked.temperature
        most = min(room, request.max_tokens or self.defaults.max_tokens)
        sampling = Sampling(temperature, asked.top_p, asked.top_k, most, self.chat.stop_ids)
        seed = secrets.randbits(63) if asked.seed is None else derived_seed(asked.seed % 2**64, "serve")
        number = next(self._numbers)
        made = self._exchange.engine_request(request, prompt_ids, seed, number)
        self.engine.submit(made, sampling, keep_cache=False)
        self._flight[number] = _Asked(waiting, turns, len(prompt_ids))

    def _forget(self, waiting: Waiting) -> None:
        """Nobody waits for a request: its row goes at the next step."""
        for number in [number for number, asked in self._flight.items() if asked.waiting is waiting]:
            del self._flight[number]
            self.engine.cancel(number)

"""An agent: a model with a system prompt, which can be trained and talked to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from gspo_cli.api.awaiting import bordered
from gspo_cli.api.config import EMBEDDED
from gspo_cli.config.auto_hardware import visible_gpus
from gspo_cli.config.checks import require
from gspo_cli.config.choices import Device
from gspo_cli.config.model_schema import ModelConfig
from gspo_cli.config.schema import HardwareConfig
from gspo_cli.errors import UserError
from gspo_cli.policy.loading import load_policy
from gspo_cli.policy.policy import Policy
from gspo_cli.randomness import derived_seed
from gspo_cli.rollout.conversations import ROLES
from gspo_cli.rollout.engine import Request, Sampling, generate
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.rollout.transformers_engine import TransformersEngine
from gspo_cli.tasks.base import SystemPrompt
from gspo_cli.tasks.tools.written import without_reasoning
from gspo_cli.types import Message


@dataclass
class AgentConfig:
    """`model_name` is what `model.name` takes (a hub id, the folder of a model, an adapter or a run, a GGUF
    file), or tiny or tiny_moe, which are built for the task they are trained on. A non-empty `system_prompt`
    replaces the task's. `device` is cpu, cuda, or auto: a GPU where one is visible. The other fields control
    how the agent answers outside training; temperature 0 is greedy."""

    model_name: str | Path = "tiny"
    system_prompt: str = ""
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    device: str = "auto"

    def __post_init__(self) -> None:
        devices = [*(device.value for device in Device), "auto"]
        require(self.device in devices, f"AgentConfig.device={self.device}: give {', '.join(devices)}")
        require(self.max_new_tokens > 0, f"AgentConfig.max_new_tokens={self.max_new_tokens}: give 1 or more")
        require(self.temperature >= 0, f"AgentConfig.temperature={self.temperature}: give 0 or more")
        require(0 < self.top_p <= 1, f"AgentConfig.top_p={self.top_p}: give more than 0, and at most 1")


class MultiTurnAgent:
    """Talks in turns with the model's own chat template, or the plain one where it has none. `summary` and
    `run_folder` are those of the run that trained it. Other tasks of the event loop run while it loads or
    answers; it gives one answer at a time."""

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        self.system = SystemPrompt(config.system_prompt)
        self.policy: Policy | None = None
        self.summary: Mapping[str, Any] = {}
        self.run_folder: Path | None = None
        self._busy = Lock()

    @bordered
    async def initialize(self) -> None:
        """Load the model. A model that is built for its task exists only after training. Raises UserError if
        loading fails."""
        if self.policy is None and self.config.model_name not in EMBEDDED:
            self.policy = await asyncio.to_thread(self._load)

    @bordered
    async def generate_response(
        self, messages: Sequence[Message | Mapping[str, str]] | str, seed: int = 0
    ) -> str:
        """The agent's next turn in a conversation, or its answer to one user message.

        The same seed gives the same text. Raises UserError before the model is loaded, and on an invalid
        conversation."""
        if self.policy is None:
            raise UserError(
                f"agent: {self.config.model_name} is not loaded; call `await agent.initialize()`, or train "
                "it first if it is a tiny model"
            )
        spoken = conversation([Message("user", messages)] if isinstance(messages, str) else messages)
        return await asyncio.to_thread(self._answer, self.policy, spoken, seed)

    def _load(self) -> Policy:
        model = ModelConfig(label="agent", name=str(self.config.model_name), use_lora=False)
        found = "cuda" if visible_gpus() else "cpu"
        device = found if self.config.device == "auto" else self.config.device
        return load_policy(str(self.config.model_name), model, HardwareConfig(device=Device(device)))

    def _answer(self, policy: Policy, spoken: tuple[Message, ...], seed: int) -> str:
        config, chat = self.config, policy.chat
        prompts = Prompts(chat, self.system)
        ids = [token for piece, _ in prompts.pieces(prompts.messages(spoken)) for token in piece]
        room = policy.max_positions - len(ids)
        if room < 1:
            raise UserError(
                f"agent: the conversation of {len(ids)} tokens fills the model's context; start a new one"
            )
        sampling = Sampling(
            config.temperature, config.top_p, 0, min(config.max_new_tokens, room), chat.stop_ids
        )
        request = Request(ids, derived_seed(seed, "agent", len(spoken)), 0)
        with self._busy:
            [completion] = generate(TransformersEngine(policy, 1), [request], sampling)
        turn = prompts.turns.read(completion.token_ids)
        return without_reasoning(turn)

    def save(self, folder: str | Path) -> None:
        """Write weights (or the adapter) and tokenizer, loadable with `from_pretrained`."""
        if self.policy is None:
            raise UserError(f"agent: {self.config.model_name} is not loaded; there is nothing to save")
        self.policy.save(Path(folder))


def conversation(messages: Sequence[Message | Mapping[str, str]]) -> tuple[Message, ...]:
    """`messages`, validated. Raises UserError if there are none, if the first is from the assistant, or if
    one lacks its role or content."""
    spoken = []
    for number, message in enumerate(messages, start=1):
        given = vars(message) if isinstance(message, Message) else message
        given = given if isinstance(given, Mapping) else {}
        role, content = given.get("role"), given.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise UserError(
                f"agent: message {number} is not valid; give it a role ({', '.join(ROLES)}) and content"
            )
        spoken.append(Message(role, content))
    require(bool(spoken), "agent: there is no message to answer; give at least one user message")
    require(
        spoken[0].role != "assistant",
        "agent: the first message is from the assistant; start with a user message",
    )
    return tuple(spoken)

"""gspo-cli: Group Sequence Policy Optimization for language-model agents, as commands and as a Python API.

The names below are the API; each is imported on first use, so that commands start quickly."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "AgentConfig": "gspo_cli.api.agent",
    "MultiTurnAgent": "gspo_cli.api.agent",
    "CONVERSATION_CONFIGS": "gspo_cli.api.environment",
    "ConversationEnvironment": "gspo_cli.api.environment",
    "GSPOConfig": "gspo_cli.api.config",
    "get_config_for_task": "gspo_cli.api.config",
    "train_with_gspo": "gspo_cli.api.training",
    "train_with_gspo_token": "gspo_cli.api.training",
    "train_agent": "gspo_cli.api.agents",
    "create_advanced_rl_orchestrator": "gspo_cli.api.orchestrator",
    "Endpoint": "gspo_cli.agents.running",
    "Problem": "gspo_cli.types",
    "RewardFunction": "gspo_cli.rewards.base",
    "RewardResult": "gspo_cli.types",
    "UserError": "gspo_cli.errors",
    "create_customer_service_reward": "gspo_cli.rewards.conversation",
    "create_domain_reward": "gspo_cli.rewards.conversation",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gspo_cli' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

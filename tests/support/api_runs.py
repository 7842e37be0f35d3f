"""Runs of the Python API that take a second, for tests."""

from __future__ import annotations

from gspo_cli import AgentConfig, ConversationEnvironment, GSPOConfig, MultiTurnAgent, get_config_for_task
from tests.support.whole_runs import SMALL

KEPT = ("model.shape.", "model.cold_start.", "evaluation.", "checkpoint.", "hardware.")
OVERRIDES = [text for text in SMALL if text.startswith(KEPT)]
QUICK = {
    "num_outer_iterations": 2,
    "num_generations": 4,
    "generations_per_iteration": 16,
    "max_completion_length": 8,
}
CARDS = [
    {
        "id": f"card-{n}",
        "opening": f"my card {n} is gone.",
        "goals": ["blocked"],
        "beats": [{"when": {"any": ["block"]}, "say": "thank you.", "reach": "blocked", "end": True}],
        "example": ["i block it now."],
    }
    for n in range(6)
]


def tiny_agent() -> MultiTurnAgent:
    return MultiTurnAgent(AgentConfig(model_name="tiny"))


def arithmetic() -> ConversationEnvironment:
    return ConversationEnvironment("arithmetic", digits=1, heldout=20)


def quick_config(folder, *more, **changes) -> GSPOConfig:
    """The settings of a run of two iterations, with further overrides `more`."""
    base = get_config_for_task("arithmetic", model_name="tiny")
    settings = {"overrides": [*OVERRIDES, *more], "output_dir": folder, **QUICK}
    return GSPOConfig.from_training_config(base, **settings | changes)

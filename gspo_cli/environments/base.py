"""Former location of `gspo_cli.tasks.base`, for user modules that import it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gspo_cli.tasks import base
from gspo_cli.tasks.base import NO_SYSTEM_PROMPT, Environment, SingleTurn, SystemPrompt, ToolEnvironment

World = ToolEnvironment  # its former name

__all__ = ["NO_SYSTEM_PROMPT", "Environment", "SingleTurn", "Step", "SystemPrompt", "World"]


class FormerStep(base.Step):
    """`gspo_cli.tasks.base.Step`, whose `progress` was called `standing`."""

    def __init__(self, *arguments: Any, standing: Mapping[str, float] | None = None, **named: Any) -> None:
        super().__init__(*arguments, **{**named, **({} if standing is None else {"progress": standing})})


Step = FormerStep

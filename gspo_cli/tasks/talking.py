"""Former location of `gspo_cli.tasks.scripted`, for user modules that import it."""

from gspo_cli.tasks.scripted import ScriptedTask as TalkingTask

__all__ = ["TalkingTask"]

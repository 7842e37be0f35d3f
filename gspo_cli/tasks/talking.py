"""The former place of `gspo_cli.tasks.scripted`, for modules of users that import it."""

from gspo_cli.tasks.scripted import ScriptedTask as TalkingTask

__all__ = ["TalkingTask"]

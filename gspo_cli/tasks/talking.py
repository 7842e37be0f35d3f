"""Former location of `gspo_cli.tasks.scripted`, for user modules that import it."""

from gspo_cli.tasks.scripted import Agent, Transcript, converse
from gspo_cli.tasks.scripted import ScriptedTask as TalkingTask

Talk = Transcript  # its former name

__all__ = ["Agent", "Talk", "TalkingTask", "converse"]

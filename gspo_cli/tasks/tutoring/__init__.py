"""Tutoring of a pupil whose sum went wrong, over the scenarios' scripted user."""

from gspo_cli.tasks.tutoring.task import Tutoring

__all__ = ["Tutoring"]

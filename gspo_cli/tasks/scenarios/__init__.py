"""Custom scenarios: goals, facts and violations in a JSON file, with a scripted user."""

from gspo_cli.tasks.scenarios.task import Scenarios

__all__ = ["Scenarios"]

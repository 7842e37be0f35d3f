"""tau2-bench's retail and telecom tasks, in solo style."""

from gspo_cli.tasks.tau2.task import Tau2

__all__ = ["Tau2"]

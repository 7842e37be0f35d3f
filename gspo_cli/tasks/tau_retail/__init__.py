"""tau-bench's retail tasks: customers scripted from the published instructions, tickets, or an LLM."""

from gspo_cli.tasks.tau_retail.task import TauRetail

__all__ = ["TauRetail"]

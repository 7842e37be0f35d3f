"""Sales of phones: a customer with a need, a budget and a doubt, over the scenarios' scripted user."""

from gspo_cli.tasks.sales.task import Sales

__all__ = ["Sales"]

"""Customer service in a small shop: scripted customers, tools over a real SQLite database, a policy."""

from gspo_cli.tasks.customer_service.task import CustomerService

__all__ = ["CustomerService"]

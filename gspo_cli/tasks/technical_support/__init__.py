"""Technical support for phones: generated faults, a device that is checked, tools or a scripted user."""

from gspo_cli.tasks.technical_support.task import TechnicalSupport

__all__ = ["TechnicalSupport"]

"""Budgets: what may be spent, by whom, in which period. Definitions only; what was spent is in ``ledger.spend``."""

from spendmeter.budgets.model import Budget, Budgets, Notifier, Subject, Threshold
from spendmeter.budgets.periods import Period, Window

__all__ = ["Budget", "Budgets", "Notifier", "Period", "Subject", "Threshold", "Window"]

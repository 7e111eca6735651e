"""The guard: whether a run may start, what it sets aside, and when it must end."""

from spendmeter.guard.admission import Admission, Check, admit, check
from spendmeter.guard.expecting import expected
from spendmeter.guard.ticket import Ticket

__all__ = ["Admission", "Check", "Ticket", "admit", "check", "expected"]

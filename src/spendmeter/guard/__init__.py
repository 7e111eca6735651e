"""The guard: whether a run may start, what it sets aside, and when it must end."""

from spendmeter.guard.admission import Admission, Check, admit, check
from spendmeter.guard.expecting import expected
from spendmeter.guard.lease import renew, watch
from spendmeter.guard.ticket import Standing, Ticket

__all__ = ["Admission", "Check", "Standing", "Ticket", "admit", "check", "expected", "renew", "watch"]

"""Whose usage it is where the user did not say: rules that map what the ledger knows of a run to agent, task and attributes."""

from spendmeter.attribution.file import load
from spendmeter.attribution.model import TAGS, Rules, Subject, read

__all__ = ["TAGS", "Rules", "Subject", "load", "read"]

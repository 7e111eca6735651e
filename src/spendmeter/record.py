"""Temporary: use spendmeter.records."""

from spendmeter.records import *  # noqa: F403

"""Dated list prices: what a call cost on the day it was made, by the override file, genai-prices and published rules.

``price`` answers None where a figure cannot be known; it never guesses and never says $0 for a model it does not know.
See docs/reference/prices.md.
"""

from spendmeter.prices.rates import Band, Rates
from spendmeter.prices.table import PriceTable

__all__ = ["Band", "PriceTable", "Rates"]

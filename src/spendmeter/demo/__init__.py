"""A small captured sample of Claude Code, so that a first start has something to show. The files are as the CLI made them."""

from spendmeter.demo.bundle import RUNS, SAMPLE, load

__all__ = ["RUNS", "SAMPLE", "load"]

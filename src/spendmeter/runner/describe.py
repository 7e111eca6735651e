"""An error in one line."""

from __future__ import annotations


def describe(error: BaseException) -> str:
    """*error* in one line; the text of an error that is not ours may hold content, so then only class and place are named."""
    from spendmeter.errors import SpendmeterError

    name = type(error).__name__
    if isinstance(error, SpendmeterError | ImportError):
        return f"{name}: {' '.join(str(error).split())}"
    if isinstance(error, OSError):
        return f"{name}: {error.strerror}{f' ({error.filename})' if error.filename else ''}"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{name} in {trace.tb_frame.f_globals.get('__name__')}, line {trace.tb_lineno}" if trace else name

"""HTTP requests of our own: how they leave, and what is said of one that failed."""

from __future__ import annotations

import math
from ssl import SSLCertVerificationError
from urllib.error import URLError
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, ProxyHandler


def opener() -> OpenerDirector:
    """Speaks HTTP, through a proxy where the environment names one, and neither follows a redirect nor raises for a status."""
    made = OpenerDirector()
    for handler in (ProxyHandler(), HTTPHandler(), HTTPSHandler()):
        made.add_handler(handler)
    return made


def why(error: Exception, limit_s: float) -> str:
    """*error* in our words: its own may hold the address."""
    cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
    if isinstance(cause, TimeoutError):
        return no_answer(limit_s)
    if isinstance(cause, SSLCertVerificationError):
        return "its certificate is not trusted"
    return (cause.strerror if isinstance(cause, OSError) else None) or type(cause).__name__


def no_answer(limit_s: float) -> str:
    """What is said of whoever took too long."""
    return f"no answer within {math.ceil(limit_s)} s"

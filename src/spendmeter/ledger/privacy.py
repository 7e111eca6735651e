"""E-mail addresses and paths in the names of agents, tasks and the like: what stands for them in the labels of metrics.

Only labels are cleaned, which go to where anyone may look: the ledger, its reports and its budgets know agents and tasks by the names
that they were given, so nothing is split or added up wrongly there. A path is one only by where it begins, so that a task such as
feat/ABC-1 or /review stays what it is.
"""

from __future__ import annotations

import hashlib
import re

EMAIL, PATH = "email", "path"  # what is left of one that is dropped

_EMAIL = re.compile(r"[\w.%+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}")
_ROOTS = "home|Users|root|tmp|var|opt|mnt|srv|usr|etc|private|workspaces?|builds?"
_PATH = re.compile(
    rf"(?<![\w.~-])(?:~?/(?:{_ROOTS})/[^\s\"'<>|]+|~/[^\s\"'<>|]+)"  # /home/..., ~/...
    r"|(?<![\w.~-])(?:[A-Za-z]:[\\/]|\\\\)[^\s\"'<>|]+"  # C:\..., \\server\...
)
_PEOPLE = re.compile(r"(?:/(?:home|Users)|[A-Za-z]:[\\/]Users)[\\/][^\\/]+[\\/]*$")  # a home itself, which ends in somebody's name


def cleaned(text: str, emails: str, paths: str) -> str:
    """*text* with what looks like an e-mail address or an absolute path treated as *emails* and *paths* say."""
    if paths != "keep" and ("/" in text or "\\" in text):
        text = _PATH.sub(lambda m: _basename(m[0]) if paths == "basename" else PATH, text)
    if emails != "keep" and "@" in text:
        text = _EMAIL.sub(_hashed if emails == "hash" else lambda _: EMAIL, text)
    return text


def _basename(path: str) -> str:
    if _PEOPLE.fullmatch(path):
        return PATH
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1] or PATH


def _hashed(found: re.Match[str]) -> str:
    """The same for the same address everywhere: a pseudonym, which whoever guesses the address can confirm."""
    return f"{EMAIL}-{hashlib.sha256(found[0].lower().encode()).hexdigest()[:12]}"

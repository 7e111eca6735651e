"""What sources saw, in words and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spendmeter.ledger.sources import COMPLETE, UNSEEN, UNTOLD, OfCli, Session, View
from spendmeter.records import Usage, iso, usd_text

NAMES = {"stdout": "printed", "file": "files", "otlp": "telemetry"}  # of sources, for people
LIMITS = {  # what a source is known to leave out, whatever its state (docs/reference/clis.md)
    ("claude", "stdout"): "a run that is killed prints no result; text output tells nothing",
    (
        "claude",
        "file",
    ): "a call that a kill cut short is printed alone; a compaction before a kill, and --no-session-persistence, leave nothing",
    ("claude", "otlp"): "it sends nothing on SIGKILL, and no reasoning",
    ("codex", "stdout"): "subagents are not printed, nor is anything by a run that fails or is killed",
    ("codex", "otlp"): "a subagent's exports may name its own thread",
    ("gemini", "stdout"): "stream-json leaves out thoughts and the tools' input; a run that is killed prints nothing",
    ("gemini", "file"): "the router's calls are in no chat",
    ("qwen", "stdout"): "text output and a run that reaches its turn limit print nothing",
    ("opencode", "stdout"): "subagents are not printed",
    ("copilot", "stdout"): "no tokens are printed; --usage-output-file has them",
}


def percent(share: float) -> str:
    """75%, 99.7%; never 100% for less, nor 0% for more than nothing."""
    points = round(share * 100, 1)
    if share not in (0, 1) and points in (0, 100):
        return "<0.1%" if share < 1 / 2 else ">99.9%"
    return f"{points:.0f}%" if points in (0, 100) or 1 <= points <= 99 else f"{points:.1f}%"


def words(view: View) -> str:
    """The verdict as a person would say it."""
    if view.verdict == UNSEEN:
        return "not seen"
    if view.verdict == UNTOLD:
        return "cannot tell tokens"
    lost: dict[str, list[str]] = {}
    for name, share in view.missing.items():
        lost.setdefault(percent(share), []).append(name)
    told = "; ".join(f"{share} of {', '.join(names)}" for share, names in lost.items())
    said = f"saw less: {told} missing" if lost else COMPLETE
    return f"{said}; cannot tell {', '.join(view.untold)}" if view.untold else said


def cli_as_dict(of: OfCli, files: tuple[int, int] | None) -> dict[str, Any]:
    """One CLI for ``--json``; *files*: how many of its session files were read here, and how many of these are gone."""
    sources = {}
    for source, s in of.sums.items():
        told = {"sessions_seen": s.sessions, "sessions_complete": s.complete, "sessions_without_tokens": s.untold}
        sources[source] = told | {"share": _rounded(of.share(source)), "share_where_seen": _rounded(s.view.share)} | _view(s.view)
    read = None if files is None else {"read": files[0], "gone": files[1]}
    head = {"cli": of.cli, "sessions": of.sessions, "closed": of.closed, "files": read}
    return head | {"total": _amounts(of.calls, of.total), "sources": sources}


def session_as_dict(one: Session) -> dict[str, Any]:
    """One session for ``--json``; without sources where its facts are gone."""
    sources = {source: {"share": _rounded(view.share)} | _view(view) for source, view in one.views.items()}
    head = {"cli": one.cli, "session": one.session, "last_at": None if one.last_ms is None else iso(one.last_ms), "closed": one.closed}
    return head | {"total": _amounts(one.calls, one.total), "sources": None if one.closed else sources}


def _view(view: View) -> dict[str, Any]:
    told = _amounts(None, Usage()) if view.seen is None else _amounts(*view.seen)
    missing: Mapping[str, float] = {name: round(share, 4) for name, share in view.missing.items()}
    return told | {"verdict": view.verdict, "missing": missing, "cannot_tell": view.untold, "words": words(view)}


def _amounts(calls: int | None, used: Usage) -> dict[str, Any]:
    names = ("tokens_in", "cache_read", "cache_write", "tokens_out", "reasoning")
    return {"calls": calls} | {name: getattr(used, name) for name in names} | {"cost_usd": usd_text(used.cost_nusd)}


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)

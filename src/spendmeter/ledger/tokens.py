"""Access tokens: who may ask the daemon for what. The ledger keeps a digest of each, never the token itself.

A token is 256 random bits, so nobody can guess one or try them all: a plain SHA-256 hides it as well as a slow hash would, which is for
passwords that people think up. It is found by its digest, through the primary key. What such a search's duration tells is about the
digest of what was offered, and nobody can make tokens whose digests come closer to a stored one; so no comparison here needs constant
time.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, or_, select, update

from spendmeter.errors import LedgerError
from spendmeter.ledger import schema as t

if TYPE_CHECKING:
    from spendmeter.ledger import Ledger

PREFIX = "smt_"  # by which people and secret scanners know one
SCOPES = ("read", "write", "metrics", "admin")
USED_MS = 60_000  # the time of the last use is no finer than this
NAME_MAX = 64
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_MAX - 1}}}")
_SECRET = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of one token. Times are ms UTC; ``used_ms`` is up to a minute behind, None before its first use."""

    name: str
    scopes: tuple[str, ...]
    created_ms: int
    expires_ms: int | None = None
    used_ms: int | None = None

    def allows(self, scope: str) -> bool:
        """Whether it may do what *scope* is for; admin may do everything."""
        return scope in self.scopes or "admin" in self.scopes

    def has_expired(self, at_ms: int) -> bool:
        """Whether its time is over at *at_ms*."""
        return self.expires_ms is not None and self.expires_ms <= at_ms

    def as_dict(self) -> dict[str, Any]:
        """For JSON; holds no secret."""
        return {
            "name": self.name, "scopes": list(self.scopes), "created_ms": self.created_ms, "expires_ms": self.expires_ms,
            "used_ms": self.used_ms,
        }  # fmt: skip


def digest(secret: str) -> str | None:
    """What stands for *secret* in the ledger; None for text that is no token."""
    return hashlib.sha256(secret.encode()).hexdigest() if _SECRET.fullmatch(secret) else None


def create(ledger: Ledger, name: str, scopes: Collection[str], at_ms: int, expires_ms: int | None = None) -> tuple[str, Token]:
    """Makes a token and keeps its digest; (the secret, what is known of it). Nobody can read the secret again.

    Raises:
        LedgerError: the name is taken or not well-formed, or a scope is unknown.
    """
    made = Token(_checked_name(name), _checked_scopes(scopes), at_ms, expires_ms)
    secret = PREFIX + secrets.token_urlsafe(32)
    with ledger.write() as conn:
        if conn.execute(select(t.access_tokens.c.name).where(t.access_tokens.c.name == name)).first():
            raise LedgerError(f'token "{name}" is there already; choose another name, or revoke it first (spendmeter token revoke {name})')
        row = made.as_dict() | {"digest": digest(secret), "scopes": ",".join(made.scopes)}
        conn.execute(insert(t.access_tokens).values(row))
    return secret, made


def find(ledger: Ledger, digested: str, at_ms: int) -> Token | None:
    """The token of this digest that is good at *at_ms*: unknown, revoked and expired ones are None alike."""
    with ledger.read() as conn:
        row = conn.execute(select(t.access_tokens).where(t.access_tokens.c.digest == digested)).first()
    found = _token(row) if row else None
    return None if found is None or found.has_expired(at_ms) else found


def note_use(ledger: Ledger, name: str, at_ms: int, busy_ms: int) -> None:
    """Keeps *at_ms* as the time of the last use, if what stands there is a minute old.

    Args:
        busy_ms: how long to wait for another writer.

    Raises:
        LedgerError: another writer was faster, or nothing can be written.
    """
    c = t.access_tokens.c
    with ledger.write(busy_ms) as conn:
        conn.execute(
            update(t.access_tokens).where(c.name == name, or_(c.used_ms.is_(None), c.used_ms <= at_ms - USED_MS)).values(used_ms=at_ms)
        )


def listed(ledger: Ledger) -> list[Token]:
    """All tokens by name, expired ones too."""
    with ledger.read() as conn:
        return [_token(row) for row in conn.execute(select(t.access_tokens).order_by(t.access_tokens.c.name))]


def revoke(ledger: Ledger, name: str) -> None:
    """Forgets the token *name*.

    Raises:
        LedgerError: there is none.
    """
    with ledger.write() as conn:
        if not conn.execute(delete(t.access_tokens).where(t.access_tokens.c.name == name)).rowcount:
            raise LedgerError(f'there is no token "{name}"; spendmeter token list names those that there are')


def _token(row: Any) -> Token:
    return Token(row.name, tuple(row.scopes.split(",")), row.created_ms, row.expires_ms, row.used_ms)


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise LedgerError(
            f'token name "{name[:NAME_MAX]}" is not 1 to {NAME_MAX} letters, digits, dots, dashes; write one such as prometheus'
        )
    return name


def _checked_scopes(scopes: Collection[str]) -> tuple[str, ...]:
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise LedgerError(f'scope "{", ".join(unknown)}" is not one of {", ".join(SCOPES)}')
    return tuple(s for s in SCOPES if s in scopes)

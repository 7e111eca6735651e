"""Tokens: what is kept of them, how long they are good, and what a daemon needs to start."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import select

from spendmeter.cli import main
from spendmeter.config import Settings
from spendmeter.errors import ConfigError, LedgerError
from spendmeter.ledger import Ledger, now_ms, periods, tokens
from spendmeter.ledger import schema as t
from spendmeter.server import auth, tls
from spendmeter.server.auth import Access, Keeper
from spendmeter.server.book import Book
from tests.doors import bearer, serving

NOT_BEFORE = 1_000_000


def test_a_token_is_kept_as_its_digest(both: Ledger) -> None:
    """256 bits that are not in the database; found by the digest until it is revoked or over; its use noted once a minute."""
    at = now_ms()
    secret, made = tokens.create(both, "ci", ["write", "read"], at, at + 5000)
    assert re.fullmatch(r"smt_[\w-]{43}", secret)
    assert secret != tokens.create(both, "other", ["read"], at)[0]
    digest = tokens.digest(secret)
    assert digest
    assert made == tokens.find(both, digest, at) == tokens.Token("ci", ("read", "write"), at, at + 5000)
    with both.read() as conn:
        assert secret.removeprefix("smt_") not in str(conn.execute(select(t.access_tokens)).all())
    assert tokens.find(both, digest, at + 5000) is None
    for later, noted in ((10, at + 10), (11, at + 10), (60_009, at + 10), (60_010, at + 60_010)):
        tokens.note_use(both, "ci", at + later, 1000)
        assert [x.used_ms for x in tokens.listed(both)] == [noted, None]
    with pytest.raises(LedgerError, match="there already"):
        tokens.create(both, "ci", ["read"], at)
    tokens.revoke(both, "ci")
    assert tokens.find(both, digest, at) is None
    with pytest.raises(LedgerError, match='no token "ci"'):
        tokens.revoke(both, "ci")


@pytest.mark.parametrize(
    ("name", "scopes", "why"),
    [("", ["read"], "token name"), ("a b", ["read"], "token name"), ("x" * 65, ["read"], "token name"), ("a\n", ["read"], "token name"),
     ("-a", ["read"], "token name"), ("a", [], "scope"), ("a", ["read", "root"], 'scope "root"')],
)  # fmt: skip
def test_a_token_that_makes_no_sense_is_refused(ledger: Ledger, name: str, scopes: list[str], why: str) -> None:
    """In words, and nothing is kept."""
    with pytest.raises(LedgerError, match=why):
        tokens.create(ledger, name, scopes, 0)
    assert tokens.listed(ledger) == []


def test_a_revoked_token_is_good_for_two_seconds_at_most(book: Book, known: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In a daemon that has just seen it; an expired one is over at once."""
    clock = [now_ms()]
    monkeypatch.setattr(auth, "now_ms", lambda: clock[0])
    short = tokens.create(book.ledger(), "short", ["read"], clock[0], clock[0] + 1000)[0]
    for client in serving(book):
        assert [client.get("/api/v1/ledger", headers=bearer(x)).status_code for x in (known["read"], short)] == [200, 200]
        tokens.revoke(book.ledger(), "read")
        clock[0] += 1000
        assert client.get("/api/v1/ledger", headers=bearer(short)).status_code == 401
        clock[0] += 1000
        assert client.get("/api/v1/ledger", headers=bearer(known["read"])).status_code == 401


@pytest.mark.alone
def test_use_is_noted_and_waits_for_no_one(book: Book, known: dict[str, str]) -> None:
    """A writer that holds the ledger delays no request."""
    for client in serving(book):
        with book.ledger().write():
            began = time.monotonic()
            assert client.get("/metrics", headers=bearer(known["metrics"])).status_code == 200
            assert time.monotonic() - began < 1.5
        assert {x.name for x in tokens.listed(book.ledger()) if x.used_ms} == set()
        assert client.get("/api/v1/ledger", headers=bearer(known["read"])).status_code == 200
        assert {x.name for x in tokens.listed(book.ledger()) if x.used_ms} == {"read"}


def spendmeter(url: str, *args: str) -> Any:
    return CliRunner().invoke(main, ["--ledger", url, *args])


def test_the_commands_make_list_and_revoke(settings: Settings) -> None:
    """The secret is printed once and alone; listing never shows one."""
    made = spendmeter(settings.ledger, "token", "create", "prometheus", "--scope", "metrics, read", "--expires", "90d")
    assert (made.exit_code, re.fullmatch(r"smt_\S{43}\n", made.stdout) is not None) == (0, True)
    assert "the only time" in made.stderr
    told = json.loads(spendmeter(settings.ledger, "token", "create", "ci", "--scope", "write", "--json").stdout)
    assert (told["name"], told["scopes"], told["expires_ms"], told["token"][:4]) == ("ci", ["write"], None, "smt_")
    listed = spendmeter(settings.ledger, "token", "list")
    rows = [line.split() for line in listed.stdout.splitlines()]
    assert [r[:2] for r in rows] == [["name", "scopes"], ["ci", "write"], ["prometheus", "read,metrics"]]
    document = json.loads(spendmeter(settings.ledger, "token", "list", "--json").stdout)["tokens"]
    assert document[1]["expires_ms"] - document[1]["created_ms"] == 90 * 86_400_000
    assert "smt_" not in listed.stdout + json.dumps(document)
    assert spendmeter(settings.ledger, "token", "revoke", "ci").exit_code == 0
    assert spendmeter(settings.ledger, "token", "revoke", "ci").exit_code == 1
    assert spendmeter(settings.ledger, "token", "create", "x", "--scope", "read", "--expires", "2001-01-01").exit_code == 2


@pytest.mark.parametrize(("text", "ms"), [("90d", 7_776_000_000), ("1970-01-02", 86_400_000 - NOT_BEFORE), ("12h", 43_200_000)])
def test_a_time_to_come_is_a_length_or_a_date(text: str, ms: int) -> None:
    """From now on."""
    assert periods.until_ms(text, NOT_BEFORE) == NOT_BEFORE + ms


@pytest.mark.parametrize("text", ["0d", "1970-01-01", "soon", "999999w", "today"])
def test_a_time_that_has_been_or_never_comes_is_refused(text: str) -> None:
    """In words."""
    with pytest.raises(LedgerError, match=r"not between now|not understood"):
        periods.until_ms(text, NOT_BEFORE)


@pytest.mark.parametrize(
    ("host", "access", "needs", "beyond"),
    [
        ("127.0.0.1", Access(), False, False), ("::1", Access(), False, False), ("localhost", Access(insecure=True), False, False),
        ("127.0.0.1", Access(require_token=True), True, True), ("0.0.0.0", Access(), True, True), ("::", Access(), True, True),
        ("10.0.0.1", Access(insecure=True), False, True), ("meter.lan", Access(), True, True),
        ("127.0.0.1", Access(proxies=("127.0.0.1",)), True, True),
        ("127.0.0.1", Access(proxies=("127.0.0.1",), insecure=True), False, True),
    ],
)  # fmt: skip
def test_beyond_this_machine_a_token_is_needed(host: str, access: Access, needs: bool, beyond: bool) -> None:
    """Behind a proxy too; unless it was opened on purpose."""
    assert (access.needs_token(host), access.beyond(host)) == (needs, beyond)


def test_without_a_token_it_does_not_start(book: Book) -> None:
    """An expired one does not count; the message says what to do."""
    tokens.create(book.ledger(), "old", ["admin"], 0, 1)
    with pytest.raises(ConfigError, match=r"spendmeter token create .* --insecure-no-token"):
        Keeper(book).check()
    tokens.create(book.ledger(), "new", ["metrics"], 0)
    Keeper(book).check()


@pytest.mark.parametrize(
    ("args", "code", "why"),
    [
        (["--host", "0.0.0.0"], 1, "spendmeter token create"),
        (["--require-token"], 1, "spendmeter token create"),
        (["--require-token", "--insecure-no-token"], 2, "contradict"),
        (["--tls-cert", "x.pem"], 2, "belong together"),
        (["--proxy", "proxy.lan"], 2, "is not an address or a network"),
        (["--tls-cert", "x.pem", "--tls-key", "y.pem"], 1, "--tls-cert x.pem: cannot be read (No such file or directory)"),
    ],
)
def test_what_makes_no_sense_at_the_start_is_refused(settings: Settings, args: list[str], code: int, why: str) -> None:
    """Before anything is listened on."""
    done = subprocess.run(
        [sys.executable, "-m", "spendmeter", "--ledger", settings.ledger, "serve", "--port", "0", *args],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, why in done.stderr) == (code, True), done.stderr


def openssl(folder: Path, name: str, *more: str) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and localhost that signs itself, and its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-keyout", str(key), "-out", str(cert), "-days", "2",
               "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]  # fmt: skip
    subprocess.run([*command, *(more or ["-nodes"])], check=True, capture_output=True)
    return cert, key


def test_tls_files_are_checked_at_the_start(tmp_path: Path) -> None:
    """TLS 1.2 at least; what is of no use is told with its flag and a remedy, and no passphrase is asked for on the terminal."""
    cert, key = openssl(tmp_path, "a")
    other = openssl(tmp_path, "b")[1]
    locked = openssl(tmp_path, "c", "-passout", "pass:hunter2")
    made = tls.context(cert, key)
    assert made.minimum_version == ssl.TLSVersion.TLSv1_2
    text = tmp_path / "text"
    text.write_text("hello")
    wrong: list[tuple[tuple[Path, Path], str]] = [
        ((cert, tmp_path / "none"), "--tls-key .*cannot be read .No such file"), ((tmp_path, key), "--tls-cert .*cannot be read .Is a dir"),
        ((cert, other), "not that of the certificate"), ((text, key), "in PEM"), ((cert, text), "in PEM"), ((key, cert), "in PEM"),
        (locked, "the key is encrypted"),
    ]  # fmt: skip
    for files, why in wrong:
        with pytest.raises(ConfigError, match=why):
            tls.context(*files)

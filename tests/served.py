"""The daemon's application on this machine, where nobody is asked for a token: over an empty ledger, and over the sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

import pytest
from starlette.testclient import TestClient

from spendmeter.config import Settings
from spendmeter.demo import load
from spendmeter.server import app
from spendmeter.server.auth import Keeper
from spendmeter.server.book import Book
from spendmeter.server.workers import Workers

HOME = "http://127.0.0.1:9464"


@pytest.fixture
def book(settings: Settings) -> Iterator[Book]:
    with closing(Book(settings)) as made:
        yield made


def serve(book: Book, hosts: Sequence[str] | None = (), *, keeper: Keeper | None = None) -> TestClient:
    """The application over *book*, to be entered."""
    return TestClient(app.create_app(book, Workers(book), hosts, keeper), base_url=HOME)


@pytest.fixture
def served(book: Book) -> Iterator[TestClient]:
    with serve(book) as client:
        yield client


@pytest.fixture
def full(book: Book, served: TestClient) -> TestClient:
    load(book.ledger())
    return served

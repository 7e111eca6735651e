"""Schemathesis makes requests of the OpenAPI document, good ones and bad ones: none is a defect, every answer is as the document says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from spendmeter.config import Settings
from spendmeter.demo import load
from spendmeter.ledger.verify import verify
from spendmeter.server import app
from spendmeter.server.book import Book
from spendmeter.server.workers import Workers

pytestmark = pytest.mark.e2e
EXAMPLES = 60
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Book]:
    """A ledger with the sample in it."""
    url = f"sqlite:///{tmp_path_factory.mktemp('openapi') / 'ledger.db'}"
    with closing(Book(Settings(url, zero_first_s=0, settle_s=0))) as made:
        load(made.ledger())
        yield made


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_as_the_document_says(book: Book, mode: GenerationMode) -> None:
    """Whatever is sent: no 500, no status, media type or field that is not in the document; what the schema refuses is refused.

    The ledger is right afterwards.
    """
    document = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app.create_app(book, Workers(book), None))
    seen: Counter[tuple[str, int]] = Counter()
    for operation in (found.ok() for found in document.get_all_operations()):
        if mode.is_negative and not (operation.query or operation.body):
            continue  # nothing that could be wrong

        @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
        @given(operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case) -> None:
            seen[case.operation.label, case.call_and_validate(checks=CHECKS).status_code] += 1

        ask()
    assert seen["POST /api/v1/token-events", 201 if mode.is_positive else 422] > 5
    assert seen["GET /api/v1/token-events/summary", 200 if mode.is_positive else 422] > 5
    assert verify(book.ledger()) == []

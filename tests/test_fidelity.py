"""Every captured run of every CLI but Claude Code (tests/test_ledger.py has that), through the command and the ledger, in one process."""

from __future__ import annotations

import re

import pytest

from spendmeter import ingest
from spendmeter.ledger import Ledger
from spendmeter.ledger.verify import verify
from spendmeter.records import Tags
from tests.made import Shared
from tests.runs import CLIS, FILES_TELL_LESS, STDOUT_TELLS_LESS, STDOUT_TELLS_MORE, Chain, chains
from tests.test_ledger import sums

CHAINS = [c for cli in CLIS if cli != "claude" for c in chains(cli)]
VARIANTS = ("both", "files", "stdout", "reversed", "twice")
TAGS = Tags("a", "t")


@pytest.fixture
def ledger(shared: Shared) -> Ledger:
    return shared()


def take(ledger: Ledger, chain: Chain, variant: str) -> None:
    """Reads the chain run by run, as the judge does."""
    for folder in chain.folders:
        steps = []
        if variant != "files" and (folder / "stdout").stat().st_size:
            steps.append(lambda f=folder: ingest.ingest_paths(ledger, [str(f / "stdout")], tags=TAGS))
        if variant != "stdout":
            steps.append(lambda f=folder: ingest.sync(ledger, home=f / "home"))
            if (folder / "work").is_dir():
                steps.append(lambda f=folder: ingest.ingest_paths(ledger, [str(f / "work")], tags=TAGS))
        for step in steps[::-1] if variant == "reversed" else steps * (2 if variant == "twice" else 1):
            step()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("chain", CHAINS, ids=[c.name for c in CHAINS])
def test_the_ledger_holds_what_was_billed(chain: Chain, variant: str, ledger: Ledger) -> None:
    """Stdout and files, together or alone, in any order and twice, give the truth, and verify is clean."""
    take(ledger, chain, variant)
    assert verify(ledger) == []
    if variant == "stdout" and chain.name in STDOUT_TELLS_MORE:
        return
    lacks = variant == "stdout" and re.search(STDOUT_TELLS_LESS[chain.cli], chain.name.partition("/")[2])
    chain.check(sums(ledger), exact=not lacks and not (variant == "files" and chain.name in FILES_TELL_LESS))

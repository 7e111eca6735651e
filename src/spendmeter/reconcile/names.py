"""Which cell usage belongs to: calls, readings and increments of one session under one name of a model.

A cell is named by the model that was asked for. Sources differ in what they tell: readings the name that was asked for, transcripts
that and the one that answered, printed and exported calls often the one that answered alone.
"""

from __future__ import annotations

from collections import defaultdict

from spendmeter.reconcile.facts import CallFact, SessionFacts
from spendmeter.reconcile.renamed import renamed

POOL, UNKNOWN = "~pool", "unknown"


def plain(model: str) -> str:
    """The model's name without Claude's mark for long context."""
    return model.removesuffix("[1m]")


class Names:
    """The cells of one session. Names that cannot be told apart are pooled in one cell, for else usage would be counted twice."""

    def __init__(self, facts: SessionFacts) -> None:
        self._renamed = renamed(facts)
        pairs = {(c.asked, c.answered) for c in facts.calls.values()}
        self.told = {plain(m) for m in [v.model for v in facts.levels.values()] + [p.model for p in facts.parts.values()] if m}
        asked, answered = ({plain(name) for name in names if name} for names in ({a for a, _ in pairs}, {b for _, b in pairs}))
        self._asked_for: dict[str, set[str]] = defaultdict(set)  # the name that answered -> those asked for, where a call tells both
        for ask, answer in pairs:
            if ask and answer:
                self._asked_for[plain(answer)].add(plain(ask))
        self._loose = self.told - asked - answered
        halves = [self._options(name) for name in {plain(answer) for ask, answer in pairs if answer and not ask}]
        self._pooled = {name for names in halves if len(names) > 1 for name in names}
        if any(self._of(*pair) == POOL for pair in pairs):
            self._pooled |= self._loose
        self._cells = {pair: self._of(*pair) for pair in pairs}

    def _options(self, answered: str) -> set[str]:
        """What may have been asked for where *answered* answered; empty where nothing tells."""
        return self._asked_for.get(answered, set()) | ({answered} & self.told)

    def of(self, call: CallFact) -> str:
        """The cell of a call: the asked-for model; an answered name that no reading has may be any reading's."""
        found = self._cells.get((call.asked, call.answered))
        return self._of(call.asked, call.answered) if found is None else found

    def _of(self, asked: str | None, answered: str | None) -> str:
        if asked:
            return self.named(asked)
        name = plain(answered) if answered else UNKNOWN
        if options := self._options(name):
            return self.named(min(options))
        return POOL if self._loose else name

    def named(self, model: str) -> str:
        """The cell of a reading's model name."""
        name = self._renamed.get(model) or plain(model)
        return POOL if name in self._pooled else name

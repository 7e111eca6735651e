"""The dashboards that are shipped, read as Grafana reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "grafana"
_VARIABLE = re.compile(r"\$\{?(\w+)(?::\w+)?\}?")
_LISTED = re.compile(r"label_values\((.*), (\w+)\)", re.DOTALL)


@dataclass(frozen=True)
class Query:
    """One query of a panel or an annotation, as it stands in the dashboard."""

    board: str
    panel: str
    ref: str
    expr: str
    ranged: bool

    def __str__(self) -> str:
        return f"{self.board.removeprefix('spendmeter-')} / {self.panel} / {self.ref}"


@dataclass(frozen=True)
class Dashboard:
    """One of the files."""

    path: Path
    body: Mapping[str, Any]

    @property
    def uid(self) -> str:
        return str(self.body["uid"])

    @property
    def variables(self) -> dict[str, dict[str, Any]]:
        """By name."""
        return {v["name"]: v for v in self.body["templating"]["list"]}

    def all_panels(self) -> list[dict[str, Any]]:
        """Rows and panels, those in closed rows too."""
        return [p for top in self.body["panels"] for p in (top, *top.get("panels", []))]

    def panels(self) -> list[dict[str, Any]]:
        """All but the rows."""
        return [p for p in self.all_panels() if p["type"] != "row"]

    def queries(self) -> Iterator[Query]:
        """What panels and annotations ask of Prometheus."""
        for panel in self.panels():
            for target in panel.get("targets", []):
                if target["datasource"]["type"] == "prometheus":
                    yield Query(self.uid, panel["title"], target["refId"], target["expr"], bool(target.get("range")))
        for note in self.body["annotations"]["list"]:
            yield Query(self.uid, note["name"], "annotation", note["expr"], True)

    def filled(self, expr: str, chosen: Mapping[str, str], *, range_s: int = 3600, step_s: int = 60) -> str:
        """*expr* with every variable's value: what is *chosen*, else all of them, else the text that stands there."""
        values = {"__range": f"{range_s}s", "__interval": f"{step_s}s", "__rate_interval": f"{4 * step_s}s"}
        values |= {name: chosen.get(name) or v.get("allValue") or v["query"] for name, v in self.variables.items()}
        return _VARIABLE.sub(lambda found: str(values[found[1]]), expr)

    def lists(self, variable: str) -> tuple[str, str]:
        """(selector, label) of what a variable offers."""
        found = _LISTED.fullmatch(self.variables[variable]["query"]["query"])
        assert found, variable
        return found[1], found[2]


def dashboards() -> dict[str, Dashboard]:
    """All that are shipped, by uid."""
    found = [Dashboard(path, json.loads(path.read_text())) for path in sorted((FOLDER / "dashboards").glob("*.json"))]
    assert found
    return {d.uid: d for d in found}

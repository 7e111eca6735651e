"""What all dashboards share: variables, links that keep them, annotations, rows on the grid."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from spendmeter import metrics as m
from spendmeter.grafana_src import uid
from spendmeter.grafana_src.parts import PROMETHEUS, PROMETHEUS_VARIABLE, Panel
from spendmeter.grafana_src.promql import PLANS, TARGET, alerts
from spendmeter.grafana_src.sdk import Builder, JSONEncoder, dashboard, model
from spendmeter.rules.promql import highest

TAG = m.PREFIX
ALL = ".+"
_TARGETS = ", ".join(f'{x}=~"${x}"' for x in TARGET)
_LISTED: dict[str, tuple[m.Metric | tuple[m.Metric, ...], str, str]] = {  # variable -> (metrics with that label, matchers, what it is)
    "job": (m.BUILD_INFO, "", "The scrape job, or the service name that came with OTLP."),
    "instance": (m.BUILD_INFO, 'job=~"$job"', "One daemon, and so one ledger."),
    "agent": (m.RUNS, _TARGETS, "The role that did the work."),
    "cli": (m.RUNS, _TARGETS, "The coding-agent CLI."),
    "model": (m.TOKENS_OUT, _TARGETS, "The model that answered. Runs and tasks are not told apart by model."),
    "task": (m.TASK_TOKENS_OUT, _TARGETS, "The unit of work. Only series by task are told apart by it."),
    "budget": (m.BUDGET_OVER, _TARGETS, "Name of the budget."),
    "plan": (tuple(x for pair in PLANS for x in pair), _TARGETS, "Name of the plan; a task's runs name theirs by --attr plan=NAME."),
}


@dataclass(frozen=True, slots=True)
class Section:
    """A row and its panels."""

    title: str
    panels: Sequence[Panel]
    collapsed: bool = False


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard. ``single``: variables of which one value is picked, not many or all. ``extra``: variables beside those of labels."""

    name: str
    title: str
    description: str
    since: str  # default time range, as in now-24h
    variables: Sequence[str]
    sections: Sequence[Section]
    single: Sequence[str] = ()
    extra: Sequence[Builder[model.VariableModel]] = field(default_factory=tuple)

    @property
    def uid(self) -> str:
        """Its address in Grafana."""
        return uid(self.name)

    def build(self) -> model.Dashboard:
        """The dashboard in Grafana's classic schema, panels numbered in their order."""
        made = (
            dashboard.Dashboard(f"Spendmeter / {self.title}").uid(self.uid).description(self.description).tags([TAG]).readonly()
            .timezone("browser").time(self.since, "now").refresh("1m").tooltip(model.DashboardCursorSync.CROSSHAIR)
            .variables([_prometheus(), *self.extra, *(_listed(x, one=x in self.single) for x in self.variables)])
            .links([_siblings()]).annotations(_annotations())
        )  # fmt: skip
        for section in self.sections:
            _place(made, section)
        return _numbered(made.build())

    def text(self) -> str:
        """Its JSON."""
        body = json.loads(json.dumps(self.build(), cls=JSONEncoder))
        for shown in (*body["links"], *body["annotations"]["list"]):
            del shown["placement"]  # the SDK puts all of them away into a menu
        return json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def link(title: str, name: str, **chosen: str) -> dashboard.DashboardLink:
    """A link of a cell or a series to the dashboard *name*. *chosen*: variable -> Grafana's expression for its value.

    The data source, the daemon and the time go along; Grafana writes them itself.
    """
    own = [f"var-{variable}=${{{value}:percentencode}}" for variable, value in chosen.items()]
    kept = [f"${{{x}:queryparam}}" for x in (PROMETHEUS_VARIABLE, *TARGET)]
    return dashboard.DashboardLink(title).url(f"/d/{uid(name)}?{'&'.join([*own, *kept, '${__url_time_range}'])}")


def links(**names: str) -> Mapping[str, dashboard.DashboardLink]:
    """For a table: label -> the link of its cells to the dashboard of that name."""
    return {label: link(f"Open this {label}", name, **{label: "__value.raw"}) for label, name in names.items()}


def _prometheus() -> dashboard.DatasourceVariable:
    return dashboard.DatasourceVariable(PROMETHEUS_VARIABLE).label("Prometheus data source").type("prometheus")


def _listed(name: str, *, one: bool) -> dashboard.QueryVariable:
    metric, matchers, description = _LISTED[name]
    query = f"label_values({_selector(metric, matchers)}, {name})"
    label = "CLI" if name == "cli" else name.capitalize()
    made = (
        dashboard.QueryVariable(name).label(label).description(description).datasource(PROMETHEUS)
        .query({"query": query, "refId": f"{name}s", "qryType": 1}).definition(query)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(model.VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC)
    )  # fmt: skip
    if one:
        return made.multi(False).include_all(False)
    everything = model.VariableOption(text="All", value="$__all", selected=True)
    return made.multi(True).include_all(True).all_value(ALL).current(everything)


def _selector(metrics: m.Metric | tuple[m.Metric, ...], matchers: str) -> str:
    if isinstance(metrics, m.Metric):
        return f"{metrics.sample}{{{matchers}}}" if matchers else metrics.sample
    return f'{{__name__=~"{"|".join(x.sample for x in metrics)}", {matchers}}}'


def _siblings() -> dashboard.DashboardLink:
    made = dashboard.DashboardLink("Spendmeter").type(model.DashboardLinkType.DASHBOARDS).tags([TAG])
    return made.as_dropdown(False).include_vars(True).keep_time(True).icon("external link")


def _annotations() -> list[Builder[model.AnnotationQuery]]:
    over = f"{highest('budget', f'{m.BUDGET_OVER.sample}{{{_TARGETS}}}')} > 0"
    return [
        _annotation("Budget used up", over, "red", "Budget {{budget}} is used up", "budget"),
        _annotation("Alert", alerts("firing"), "orange", "{{alertname}} {{budget}}", "alertname,severity"),
    ]


def _annotation(name: str, expr: str, color: str, text: str, tags: str) -> dashboard.AnnotationQuery:
    made = dashboard.AnnotationQuery().name(name).datasource(PROMETHEUS).enable(True).hide(False).icon_color(color).expr(expr)
    return made.step("60s").title_format(text).text_format("").tag_keys(tags).use_value_for_time(False)


def _place(made: dashboard.Dashboard, section: Section) -> None:
    row = dashboard.Row(section.title)
    if section.collapsed:
        for panel in section.panels:
            row.with_panel(panel)
        made.with_row(row.collapsed(True))
        return
    made.with_row(row)
    for panel in section.panels:
        made.with_panel(panel)


def _numbered(made: model.Dashboard) -> model.Dashboard:
    number = 0
    for top in made.panels or []:
        for panel in (top, *(top.panels if isinstance(top, model.RowPanel) else ())):
            number += 1
            panel.id_val = number
    return made

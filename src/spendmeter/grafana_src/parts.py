"""The panels that the dashboards are made of. Each has a title, a description, a unit and a place of *w* times *h*."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from spendmeter.grafana_src.sdk import (
    Builder,
    PromQueryFormat,
    TextMode,
    bargauge,
    common,
    dashboard,
    heatmap,
    model,
    prometheus,
    stat,
    statetimeline,
    table,
    textpanel,
    timeseries,
    values,
)

Panel: TypeAlias = Builder[model.Panel]

USD, TOKENS, COUNT, SHARE, SECONDS, BYTES, TIMES = "currencyUSD", "short", "short", "percentunit", "s", "bytes", "none"
AGO = "dateTimeFromNow"  # wants milliseconds
GREEN, YELLOW, ORANGE, RED, BLUE, TEXT = "green", "yellow", "orange", "red", "blue", "text"
PROMETHEUS_VARIABLE, TEMPO_VARIABLE = "prometheus_datasource", "tempo_datasource"
PROMETHEUS = values.DataSourceRef(type_val="prometheus", uid=f"${{{PROMETHEUS_VARIABLE}}}")
TEMPO = values.DataSourceRef(type_val="tempo", uid=f"${{{TEMPO_VARIABLE}}}")
LEAST_STEP = "1m"  # a step of a graph holds at least one scrape
NOTHING = "–"

Steps = Sequence[tuple[float | None, str]]  # from this value on this colour; the first from None
PLAIN: Steps = ((None, TEXT),)
USED: Steps = ((None, GREEN), (0.5, YELLOW), (0.8, ORANGE), (1, RED))  # as a budget's own thresholds, if it has none
FAILED: Steps = ((None, GREEN), (0.1, YELLOW), (0.3, RED))
ANY_IS_BAD: Steps = ((None, GREEN), (1, RED))
ANY_IS_ODD: Steps = ((None, GREEN), (1, YELLOW))


@dataclass(frozen=True, slots=True)
class Line:
    """One query of a graph. ``legend`` as Grafana writes it: ``{{agent}}``."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Column:
    """One query of a table, and how its values are shown."""

    name: str
    expr: str
    unit: str
    steps: Steps | None = None  # a bar in these colours instead of a number


def thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    """Absolute ones."""
    made = [model.Threshold(value=value, color=color) for value, color in steps]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(made)


def number(
    title: str, description: str, expr: str, unit: str, *, w: int = 4, h: int = 4, steps: Steps = PLAIN, since: str | None = None,
    link: Any = None, empty: str = NOTHING, legend: str = "",
) -> Panel:  # fmt: skip
    """One number. *since*: a time of its own, as Grafana writes it: ``1h``, ``now/d`` (today so far)."""
    panel = (
        stat.Panel().title(title).description(description).datasource(PROMETHEUS).span(w).height(h).unit(unit).no_value(empty)
        .thresholds(thresholds(steps)).graph_mode(values.BigValueGraphMode.NONE).reduce_options(_last())
        .color_mode(values.BigValueColorMode.VALUE if steps is PLAIN else values.BigValueColorMode.BACKGROUND)
        .with_target(_instant(expr, "A").legend_format(legend or title))
    )  # fmt: skip
    if legend:
        panel.text_mode(values.BigValueTextMode.NAME)
    if link:
        panel.data_links([link])
    return panel.time_from(since) if since else panel


def bars(title: str, description: str, series: Sequence[Line], unit: str, *, w: int = 12, h: int = 9, link: Any = None) -> Panel:
    """What came in from point to point, stacked; the legend adds it up. Runs show as exemplars."""
    panel = _graph(title, description, series, unit, w, h, ["sum"], exemplars=True)
    panel.draw_style(values.GraphDrawStyle.BARS).fill_opacity(80).line_width(0).min(0)
    panel.stacking(common.StackingConfig().mode(values.StackingMode.NORMAL).group("A"))
    return panel.data_links([link]) if link else panel


def lines(
    title: str, description: str, series: Sequence[Line], unit: str, *, w: int = 12, h: int = 9, steps: Steps | None = None,
    stacked: bool = False, step: str = LEAST_STEP, most: float | None = None,
) -> Panel:  # fmt: skip
    """Levels over time. *steps* are drawn as lines; *most*: where the axis ends."""
    panel = _graph(title, description, series, unit, w, h, ["lastNotNull", "max"], step=step).span_nulls(True).line_width(2).min(0)
    panel.fill_opacity(25 if stacked else 8).show_points(values.VisibilityMode.AUTO)
    if stacked:
        panel.stacking(common.StackingConfig().mode(values.StackingMode.NORMAL).group("A"))
    if most is not None:
        panel.max(most)
    if steps is not None:
        dashed = common.GraphThresholdsStyleConfig().mode(values.GraphThresholdsStyleMode.DASHED)
        panel.thresholds(thresholds(steps)).thresholds_style(dashed)
    return panel


def meter(
    title: str, description: str, series: Sequence[Line], unit: str, *, steps: Steps, w: int = 12, h: int = 8, most: float = 1
) -> Panel:
    """A bar for each series, from 0 to *most*."""
    panel = (
        bargauge.Panel().title(title).description(description).datasource(PROMETHEUS).span(w).height(h).unit(unit).min(0).max(most)
        .thresholds(thresholds(steps)).orientation(values.VizOrientation.HORIZONTAL).display_mode(values.BarGaugeDisplayMode.BASIC)
        .value_mode(values.BarGaugeValueMode.COLOR).show_unfilled(True).reduce_options(_last()).no_value(NOTHING)
    )  # fmt: skip
    for i, line in enumerate(series):
        panel.with_target(_instant(line.expr, chr(ord("A") + i)).legend_format(line.legend))
    return panel


def rows(
    title: str, description: str, labels: Sequence[str], columns: Sequence[Column], *, w: int = 12, h: int = 9, top: int | None = None,
    links: Mapping[str, Any] | None = None,
) -> Panel:  # fmt: skip
    """A table: a row for each value of *labels*, the largest of the first column on top, at most *top* of them.

    *links*: label -> where its cells lead to.
    """
    panel = table.Panel().title(title).description(description).datasource(PROMETHEUS).span(w).height(h).unit(columns[0].unit)
    panel.no_value(NOTHING).cell_height(values.TableCellHeight.SM).show_header(True)
    panel.sort_by([common.TableSortByFieldState().display_name(columns[0].name).desc(True)])
    names = {"Value": columns[0].name}  # as Grafana calls it where no other query has an answer
    for i, column in enumerate(columns):
        ref = chr(ord("A") + i)
        panel.with_target(_instant(column.expr, ref).format(PromQueryFormat.TABLE))
        names[f"Value #{ref}"] = column.name
        panel.override_by_name(column.name, _cell(column))
    for label, link in (links or {}).items():
        panel.override_by_name(label, [model.DynamicConfigValue("links", [link.build()])])
    for change in _joined(list(labels), names, top):
        panel.with_transformation(change)
    return panel


def spread(title: str, description: str, expr: str, *, w: int = 8, h: int = 9) -> Panel:
    """A heatmap of a histogram's buckets."""
    target = prometheus.Dataquery().expr(expr).ref_id("A").range().format(PromQueryFormat.HEATMAP).legend_format("{{le}}")
    return (
        heatmap.Panel().title(title).description(description).datasource(PROMETHEUS).span(w).height(h).unit(COUNT).interval(LEAST_STEP)
        .calculate(False).hide_legend().with_target(target.datasource(PROMETHEUS))
    )  # fmt: skip


def states(title: str, description: str, line: Line, names: Mapping[str, tuple[str, str]], *, w: int = 24, h: int = 8) -> Panel:
    """What was so when. *names*: value -> (text, colour)."""
    options = {value: model.ValueMappingResult(text=text, color=color, index=i) for i, (value, (text, color)) in enumerate(names.items())}
    panel = statetimeline.Panel().title(title).description(description).datasource(PROMETHEUS).span(w).height(h).unit(COUNT)
    panel.mappings([model.ValueMap(options=options)]).merge_values(True).show_value(values.VisibilityMode.AUTO).no_value("none")
    return panel.interval(LEAST_STEP).with_target(_ranged(line, "A"))


def note(title: str, description: str, markdown: str, *, w: int = 12, h: int = 6) -> Panel:
    """Words."""
    return textpanel.Panel().title(title).description(description).span(w).height(h).mode(TextMode.MARKDOWN).content(markdown)


def _graph(
    title: str, description: str, series: Sequence[Line], unit: str, w: int, h: int, calcs: list[str], *, step: str = LEAST_STEP,
    exemplars: bool = False,
) -> timeseries.Panel:  # fmt: skip
    legend = common.VizLegendOptions().display_mode(values.LegendDisplayMode.TABLE).placement(values.LegendPlacement.BOTTOM)
    panel = timeseries.Panel().title(title).description(description).datasource(PROMETHEUS).span(w).height(h).unit(unit).interval(step)
    panel.legend(legend.show_legend(True).calcs(calcs).sort_by({"sum": "Total", "lastNotNull": "Last *"}[calcs[0]]).sort_desc(True))
    panel.tooltip(common.VizTooltipOptions().mode(values.TooltipDisplayMode.MULTI).sort(values.SortOrder.DESCENDING))
    for i, line in enumerate(series):
        panel.with_target(_ranged(line, chr(ord("A") + i)).exemplar(exemplars))
    return panel


def _ranged(line: Line, ref: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(line.expr).ref_id(ref).range().legend_format(line.legend).datasource(PROMETHEUS)


def _instant(expr: str, ref: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expr).ref_id(ref).instant().datasource(PROMETHEUS)


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields("")


def _cell(column: Column) -> list[model.DynamicConfigValue]:
    out = [model.DynamicConfigValue("unit", column.unit)]
    if column.steps is not None:
        bar = values.TableBarGaugeCellOptions(mode=values.BarGaugeDisplayMode.BASIC)
        out += [
            model.DynamicConfigValue("custom.cellOptions", bar), model.DynamicConfigValue("min", 0), model.DynamicConfigValue("max", 1),
            model.DynamicConfigValue("thresholds", thresholds(column.steps).build()),
        ]  # fmt: skip
    return out


def _joined(labels: list[str], names: Mapping[str, str], top: int | None) -> list[model.DataTransformerConfig]:
    """One row for each label set, columns in order."""
    order = {name: i for i, name in enumerate([*labels, *names])}
    out: list[tuple[str, Any]] = [
        ("merge", {}), ("organize", {"excludeByName": {"Time": True}, "indexByName": order, "renameByName": dict(names)}),
    ]  # fmt: skip
    if top is not None:
        first = next(iter(names.values()))
        out += [("sortBy", {"sort": [{"field": first, "desc": True}]}), ("limit", {"limitField": top})]
    return [model.DataTransformerConfig(name, options=options) for name, options in out]

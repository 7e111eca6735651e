"""The parts of grafana-foundation-sdk that the dashboards are built from."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    # The SDK would rather have schema v2, which only the newest Grafana reads. The classic one is read by all of them.
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_foundation_sdk.builders import (
        bargauge,
        common,
        dashboard,
        heatmap,
        prometheus,
        stat,
        statetimeline,
        table,
        tempo,
        timeseries,
    )
    from grafana_foundation_sdk.builders import text as textpanel
    from grafana_foundation_sdk.cog.builder import Builder
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models import common as values
    from grafana_foundation_sdk.models import dashboard as model
    from grafana_foundation_sdk.models import tempo as tempo_values
    from grafana_foundation_sdk.models.prometheus import PromQueryFormat
    from grafana_foundation_sdk.models.text import TextMode

__all__ = [
    "Builder", "JSONEncoder", "PromQueryFormat", "TextMode", "bargauge", "common", "dashboard", "heatmap", "model", "prometheus",
    "stat", "statetimeline", "table", "tempo", "tempo_values", "textpanel", "timeseries", "values",
]  # fmt: skip

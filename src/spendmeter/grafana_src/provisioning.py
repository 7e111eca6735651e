"""What Grafana is to load: data sources, where the dashboards are, and alerts."""

from __future__ import annotations

from typing import Any

from spendmeter.grafana_src import PROMETHEUS_UID, TEMPO_UID
from spendmeter.grafana_src.alerting import FOLDER

SCRAPED_EVERY = "15s"


def datasources(prometheus_url: str, tempo_url: str) -> dict[str, Any]:
    """``provisioning/datasources``: Prometheus, whose exemplars lead to the traces in Tempo."""
    trace = {"name": "trace_id", "datasourceUid": TEMPO_UID, "urlDisplayLabel": "Trace of the run"}
    asked = {
        "httpMethod": "POST", "prometheusType": "Prometheus", "timeInterval": SCRAPED_EVERY, "exemplarTraceIdDestinations": [trace],
    }  # fmt: skip
    prometheus = {
        "name": "Spendmeter Prometheus", "uid": PROMETHEUS_UID, "type": "prometheus", "access": "proxy", "url": prometheus_url,
        "jsonData": asked,
    }  # fmt: skip
    tempo = {"name": "Spendmeter Tempo", "uid": TEMPO_UID, "type": "tempo", "access": "proxy", "url": tempo_url}
    return {"apiVersion": 1, "datasources": [prometheus, tempo]}


def provider(folder: str) -> dict[str, Any]:
    """``provisioning/dashboards``: every file in *folder*, as Grafana sees it."""
    return {
        "apiVersion": 1,
        "providers": [
            {
                "name": FOLDER.lower(), "folder": FOLDER, "folderUid": FOLDER.lower(), "type": "file", "updateIntervalSeconds": 30,
                "allowUiUpdates": False, "options": {"path": folder},
            }
        ],
    }  # fmt: skip

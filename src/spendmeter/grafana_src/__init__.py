"""Grafana as code: the dashboards, what Grafana is to load with them, and the alerts in Grafana's own form.

The modules that build dashboards need ``spendmeter[grafana]``. ``shipped``, ``provisioning`` and ``alerting`` do not: the command
writes the dashboards as they were built for the release.
"""

from spendmeter import metrics as m

PROMETHEUS_UID, TEMPO_UID = f"{m.PREFIX}-prometheus", f"{m.PREFIX}-tempo"  # of the data sources that are provisioned

PROMETHEUS_URL, TEMPO_URL = "http://127.0.0.1:9090", "http://127.0.0.1:3200"  # where they are on one host, or in compose.yaml
FIRST_PANEL = 2  # its number on every dashboard, below the first row


def uid(name: str) -> str:
    """The uid of the dashboard *name*, for good."""
    return f"{m.PREFIX}-{name}"

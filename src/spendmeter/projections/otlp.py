"""What the three OTLP signals share: configuration by the standard OTEL_* variables, resource, and sending with a verdict."""

from __future__ import annotations

import importlib
import logging
import os
import re
import threading
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from spendmeter.errors import ConfigError
from spendmeter.ledger.gauges import version

Signal = Literal["metrics", "traces", "logs"]
SIGNALS: tuple[Signal, ...] = ("metrics", "traces", "logs")

GENAI_SCHEMA = "https://opentelemetry.io/schemas/gen-ai-dev/1.42.0-dev"  # model/manifest.yaml of semantic-conventions-genai, October 2026
SCOPE = InstrumentationScope("spendmeter", version(), "")
GENAI_SCOPE = InstrumentationScope("spendmeter", version(), GENAI_SCHEMA)

_CLASSES = {
    "metrics": ("metric_exporter", "OTLPMetricExporter"), "traces": ("trace_exporter", "OTLPSpanExporter"),
    "logs": ("_log_exporter", "OTLPLogExporter"),
}  # fmt: skip
_REFUSED = (400, 413, 422)  # the data is at fault; 401, 403, 404 and 5xx speak of the endpoint
_REFUSED_GRPC = ("INVALID_ARGUMENT",)
_REASON_MAX = 200
VAGUE = "no success within its timeout"  # all that the SDK says when it gives up before it has tried again


def configured(signal: Signal) -> bool:
    """Whether the environment asks for *signal*: an endpoint is named, or OTEL_<SIGNAL>_EXPORTER is otlp; none switches off."""
    env = os.environ
    asked = [x.strip().lower() for x in env.get(f"OTEL_{signal.upper()}_EXPORTER", "").split(",") if x.strip()]
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or (asked and "otlp" not in asked):
        return False
    return bool(asked or env.get("OTEL_EXPORTER_OTLP_ENDPOINT") or env.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT"))


def resource(ledger_id: str) -> Resource:
    """Who speaks: the ledger, under one identity for as long as it lives.

    OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win, but not over the instance id: two counters of one identity inflate.
    """
    base = Resource({"service.name": "spendmeter", "service.version": version()})
    return base.merge(OTELResourceDetector().detect()).merge(Resource({"service.instance.id": ledger_id}))


def make_exporter(signal: Signal) -> Any:
    """The SDK's exporter for *signal*, by OTEL_EXPORTER_OTLP_PROTOCOL or its own; http/protobuf where none is named.

    Raises:
        ConfigError: an OTEL_EXPORTER_OTLP_* variable has no meaning.
    """
    name = f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL"
    name = name if os.environ.get(name) else "OTEL_EXPORTER_OTLP_PROTOCOL"
    protocol = os.environ.get(name) or "http/protobuf"
    if protocol not in ("grpc", "http/protobuf"):
        raise ConfigError(f'{name} "{protocol}" is not one of grpc, http/protobuf')
    module, cls = _CLASSES[signal]
    try:
        found = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{'grpc' if protocol == 'grpc' else 'http'}.{module}")
        return getattr(found, cls)()
    except Exception as e:  # noqa: BLE001 - the SDK raises what it likes
        raise ConfigError(f"OTLP {signal}: {type(e).__name__}: {str(e)[:_REASON_MAX]}; check the OTEL_EXPORTER_OTLP_* variables") from None


class Verdict(Enum):
    """What became of one request."""

    SENT = "sent"
    LATER = "later"  # nobody there, too busy, not allowed: the same data may be taken another time
    REFUSED = "refused"  # this data will not be taken


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict and, for a failure, one line that says why."""

    verdict: Verdict
    reason: str = ""


def send(exporter: Any, data: Any) -> Outcome:
    """Exports *data* within the exporter's own timeout. What the SDK has to say of it becomes the outcome, not a log line."""
    ear = _Ear()
    names = {c.__module__ for c in type(exporter).__mro__ if c.__module__.startswith("opentelemetry.exporter")}
    loggers = [logging.getLogger(n) for n in sorted(names)]
    for logger in loggers:
        logger.filters.insert(0, ear)  # before the SDK's filter of repeated messages
    try:
        result = exporter.export(data)
    except Exception as e:  # noqa: BLE001 - a thread that exports must not die of it
        return Outcome(Verdict.LATER, f"{type(e).__name__}: {_line(e)}")
    finally:
        for logger in loggers:
            logger.filters.remove(ear)
    return Outcome(Verdict.SENT) if getattr(result, "name", "") == "SUCCESS" else ear.outcome()


class _Ear(logging.Filter):
    """Takes what this thread's export logs; the SDK's result only says FAILURE."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()
        self._heard: list[logging.LogRecord] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Keeps *record* from being printed if it is this export's."""
        if record.thread != self._thread:
            return True
        self._heard.append(record)
        return False

    def outcome(self) -> Outcome:
        """What the last record says."""
        if not self._heard:
            return Outcome(Verdict.LATER, "no reason given")
        last = self._heard[-1]
        args = last.args if isinstance(last.args, tuple) else ()
        text = last.getMessage()
        refused = text.startswith(("Failed to encode", "Dropping")) or "larger than max" in text
        refused = refused or any(a in _REFUSED or getattr(a, "name", "") in _REFUSED_GRPC for a in args if not isinstance(a, bool | str))
        return Outcome(Verdict.REFUSED if refused else Verdict.LATER, _line(self._why(text)))

    def _why(self, text: str) -> str:
        """*text*, or what it gave up on: the last error that was tried again."""
        if "max retries" not in text:
            return text
        tried = [r.args[0] for r in self._heard if r.levelno == logging.WARNING and isinstance(r.args, tuple) and r.args]
        return str(tried[-1]) if tried else VAGUE


def _line(text: object) -> str:
    """One line without what differs each time."""
    return re.sub(r"<[^<>]* object at 0x[0-9a-f]+>:? ?", "", " ".join(str(text).split()))[:_REASON_MAX]

"""A real OTLP receiver in this process, HTTP or gRPC, that can be slow, refuse, or dislike one run."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

KINDS: dict[str, tuple[Any, Any]] = {
    "metrics": (metrics_service_pb2.ExportMetricsServiceRequest, metrics_service_pb2.ExportMetricsServiceResponse),
    "traces": (trace_service_pb2.ExportTraceServiceRequest, trace_service_pb2.ExportTraceServiceResponse),
    "logs": (logs_service_pb2.ExportLogsServiceRequest, logs_service_pb2.ExportLogsServiceResponse),
}
GRPC_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT, 404: grpc.StatusCode.UNIMPLEMENTED, 429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}  # fmt: skip


class Receiver:
    """Keeps what it took. ``status`` answers everything, ``poison`` is text whose requests get a 400, ``delay_s`` slows it."""

    def __init__(self) -> None:
        self.status = 200
        self.poison = ""
        self.delay_s = 0.0
        self.requests = 0
        self.took: dict[str, list[Any]] = {kind: [] for kind in KINDS}
        self.metadata: list[dict[str, str]] = []
        self.lock = threading.Lock()

    def take(self, kind: str, message: Any, metadata: dict[str, str]) -> int:
        """The status that this request gets."""
        time.sleep(self.delay_s)
        with self.lock:
            self.requests += 1
            self.metadata.append(metadata)
            if self.status != 200:
                return self.status
            if self.poison and self.poison in str(message):
                return 400
            self.took[kind].append(message)
            return 200

    def spans(self) -> list[Any]:
        """Every span that was taken."""
        return [s for m in self.took["traces"] for r in m.resource_spans for sc in r.scope_spans for s in sc.spans]

    def logs(self) -> list[Any]:
        """Every log record that was taken."""
        return [x for m in self.took["logs"] for r in m.resource_logs for sc in r.scope_logs for x in sc.log_records]

    def metrics(self) -> list[Any]:
        """Every metric of every push."""
        return [x for m in self.took["metrics"] for r in m.resource_metrics for sc in r.scope_metrics for x in sc.metrics]


def attributes(of: Any) -> dict[str, Any]:
    """Attributes of a message as plain values."""
    return {a.key: _plain(a.value) for a in of.attributes}


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(v) for v in value.array_value.values]
    return {a.key: _plain(a.value) for a in value.kvlist_value.values} if kind == "kvlist_value" else getattr(value, kind)


def http(receiver: Receiver) -> Iterator[str]:
    """Serves *receiver* by OTLP/HTTP; yields the endpoint."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            kind = self.path.rpartition("/")[2]
            message = KINDS[kind][0]()
            message.ParseFromString(body)
            status = receiver.take(kind, message, {k.lower(): v for k, v in self.headers.items()})
            answer = KINDS[kind][1]().SerializeToString()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def grpc_(receiver: Receiver) -> Iterator[str]:
    """Serves *receiver* by OTLP/gRPC; yields the endpoint."""
    server = grpc.server(futures.ThreadPoolExecutor(4))

    def export(kind: str) -> Callable[[Any, Any, Any], Any]:
        def method(_self: Any, request: Any, context: Any) -> Any:
            status = receiver.take(kind, request, dict(context.invocation_metadata()))
            if status != 200:
                context.abort(GRPC_CODES[status], "refused")
            return KINDS[kind][1]()

        return method

    for kind, base, add in (
        ("metrics", metrics_service_pb2_grpc.MetricsServiceServicer, metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server),
        ("traces", trace_service_pb2_grpc.TraceServiceServicer, trace_service_pb2_grpc.add_TraceServiceServicer_to_server),
        ("logs", logs_service_pb2_grpc.LogsServiceServicer, logs_service_pb2_grpc.add_LogsServiceServicer_to_server),
    ):
        add(type("Servicer", (base,), {"Export": export(kind)})(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop(0.2).wait()

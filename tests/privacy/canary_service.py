"""The service as ``asyncbg serve`` runs it, everything at DEBUG, with OpenTelemetry's signals written to files."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import uvicorn
from opentelemetry import _logs, metrics, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import ConsoleLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from asyncbg.service.logging_config import logging_config
from asyncbg.settings import load_settings


def main() -> None:
    """Serve on a free port until SIGTERM."""
    with ExitStack() as stack:
        names = ("spans.json", "otel-logs.json", "otel-metrics.json")
        serve({name: stack.enter_context(Path(name).open("w", buffering=1)) for name in names})


def serve(out: Mapping[str, TextIO]) -> None:
    """Send every signal to its file, and serve."""
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=out["spans.json"])))
    trace.set_tracer_provider(tracers)
    loggers = LoggerProvider()
    loggers.add_log_record_processor(SimpleLogRecordProcessor(ConsoleLogRecordExporter(out=out["otel-logs.json"])))
    _logs.set_logger_provider(loggers)
    reader = PeriodicExportingMetricReader(
        ConsoleMetricExporter(out=out["otel-metrics.json"]), export_interval_millis=500
    )
    metrics.set_meter_provider(MeterProvider([reader]))
    config = logging_config(load_settings())
    config["handlers"]["file"] = {
        **config["handlers"]["default"],
        "class": "logging.FileHandler",
        "filename": "debug.log",
    }
    del config["handlers"]["file"]["stream"]
    config["root"] = {"handlers": ["default", "file"], "level": "DEBUG"}
    for logger in config["loggers"].values():
        logger |= {"level": "DEBUG", "propagate": True}
    app = "asyncbg.service.server:create_app"
    uvicorn.run(app, factory=True, port=0, log_config=config, log_level="debug", ws="none")


if __name__ == "__main__":
    main()

"""The figures that /metrics gives to Prometheus. None of them says anything about a picture or its sender."""

import os
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from sodeploy.runtime.serve.settings import SHARED_FOLDER

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_PICTURES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class Measures:
    """The figures of one process; of all workers together where they share a folder."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        if SHARED_FOLDER not in os.environ:
            ProcessCollector(registry=self._registry)
            PlatformCollector(registry=self._registry)
        kept: dict[str, Any] = {"registry": self._registry, "namespace": "sodeploy"}
        self.requests = Counter("requests", "requests by path and status", ["path", "status"], **kept)
        self.seconds = Histogram("request_seconds", "time to the answer", ["path"], buckets=_SECONDS, **kept)
        self.refused = Counter("refused", "pictures and requests that were refused, by code", ["code"], **kept)
        self.pictures = Counter("pictures", "pictures made, by model", ["model"], **kept)
        self.runs = Histogram("batch_pictures", "pictures in one run", ["model"], buckets=_PICTURES, **kept)
        self.network = Histogram("network_seconds", "time of one run", ["model"], buckets=_SECONDS, **kept)
        self.waiting = Gauge(
            "accepted_pictures", "pictures accepted and not answered yet", multiprocess_mode="livesum", **kept
        )

    def text(self) -> bytes:
        """Prometheus' text format."""
        if SHARED_FOLDER not in os.environ:
            return generate_latest(self._registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return generate_latest(together)

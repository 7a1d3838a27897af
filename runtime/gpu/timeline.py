"""A timeline of CPU threads and GPU streams, as a file that Perfetto and chrome://tracing open."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from sodeploy.artifacts import write_text


class Timeline:
    """Spans of time on named tracks; any thread may add to it."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._spans: list[tuple[str, str, float, float]] = []

    def now(self) -> float:
        """Seconds since the timeline began."""
        return time.perf_counter() - self._start

    def add(self, track: str, name: str, begin: float, seconds: float) -> None:
        """A span that began `begin` seconds after the timeline did."""
        self._spans.append((track, name, begin, seconds))

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """The block as a span on this thread's track."""
        begin = self.now()
        try:
            yield
        finally:
            self.add(threading.current_thread().name, name, begin, self.now() - begin)

    def clear(self) -> None:
        """Forget all spans; time goes on."""
        self._spans.clear()

    def seconds(self, name: str) -> list[float]:
        """How long each span called `name` took."""
        return [seconds for _, span, _, seconds in self._spans if span == name]

    def save(self, path: str | Path) -> None:
        """Write it as JSON in the Trace Event Format."""
        tracks = {track: number for number, track in enumerate(sorted({track for track, *_ in self._spans}))}
        events: list[dict[str, object]] = [
            {"ph": "M", "name": "thread_name", "pid": 0, "tid": number, "args": {"name": track}}
            for track, number in tracks.items()
        ]
        events += [
            {"ph": "X", "name": name, "pid": 0, "tid": tracks[track], "ts": begin * 1e6, "dur": seconds * 1e6}
            for track, name, begin, seconds in self._spans
        ]
        write_text(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))

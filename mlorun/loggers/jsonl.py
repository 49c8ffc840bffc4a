"""metrics.jsonl: one line per event, without wall-clock, so that equal runs write equal bytes."""

from __future__ import annotations

from io import FileIO
from typing import final

from mlorun.run.events import Event, Result, RunFacts
from mlorun.run.strict_json import encode


@final
class JsonlLogger:
    """{"step": 500, "kind": "train", "source": "classifier", "metrics": {"accuracy": 94.0, "loss": 0.21}}

    The keys come in this order, the metrics by name, each number as its shortest exact decimal; NaN and the
    infinities as the strings "NaN", "Infinity" and "-Infinity". Nothing is kept back: a killed run loses no line.
    """

    def __init__(self) -> None:
        self._file: FileIO | None = None

    def start(self, facts: RunFacts) -> None:
        """Open metrics.jsonl in the run folder; one that exists is continued."""
        self._file = FileIO(facts.folder / "metrics.jsonl", "a")

    def event(self, event: Event) -> None:
        """Append one line."""
        if self._file is not None:
            data = memoryview((line(event) + "\n").encode())
            while data:  # a file that is about to be full takes a part, and raises only for the rest
                data = data[self._file.write(data) :]

    def end(self, result: Result | None) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def line(event: Event) -> str:
    """An event as JSON on one line."""
    metrics = {name: float(event.metrics[name]) for name in sorted(event.metrics)}
    return encode({"step": event.step, "kind": event.kind, "source": event.source, "metrics": metrics})

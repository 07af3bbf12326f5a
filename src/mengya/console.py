"""What a person sees while a stage works: lines, progress bars, and the metrics file behind every curve.

Everything here goes to stderr, so that stdout stays for results; rich and tensorboard are imported when first used.
"""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mengya.files import write_jsonl

if TYPE_CHECKING:
    from rich.console import Console

_SECONDS_BETWEEN_LINES = 5.0
_TRANSIENT_WIDTH = 28


@cache
def _console() -> Console:
    from rich.console import Console

    # Of the processes that torchrun started one speaks: the others would say the same.
    quiet = os.environ.get("RANK", "0") != "0"
    return Console(stderr=True, highlight=False, markup=False, emoji=False, quiet=quiet)


def say(text: str) -> None:
    """One line on stderr, above a running progress bar; long lines are not broken when stderr is no terminal."""
    _console().print(text, soft_wrap=True)


def duration(seconds: float) -> str:
    """`0:41`, `12:05`, `3:07:09`."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number(value: float) -> str:
    """Digits that a reader needs: `9,812`, `3.21`, `0.0034`, `1.2e-06`; whole numbers stay whole."""
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if value == 0 or abs(value) >= 0.1:
        return f"{value:.3g}" if abs(value) >= 100 else f"{value:.2f}"
    return f"{value:.2g}"


def _phrase(name: str, value: float) -> str:
    if name.endswith("_per_second"):
        return f"{number(value)} {name.removesuffix('_per_second')}/s"
    return f"{name.replace('_', ' ')} {number(value)}"


class Progress:
    """A bar with metrics and time left on a terminal; a plain line every few seconds elsewhere.

    `with Progress("pretrain", total=steps, start=step) as bar: bar.update(step, loss=…, tokens_per_second=…)`.
    `start` is the step resumed from, so that the time left is reckoned from the steps of this process alone. Metrics
    keep their last value until given again. Plain lines: the first update, one every 5 s, and the last step.
    """

    def __init__(self, name: str, total: int, start: int = 0) -> None:
        self.name, self.total, self.start = name, total, start
        self._metrics: dict[str, float] = {}
        self._step, self._printed_step = start, -1
        self._began, self._next_line = 0.0, 0.0
        self._bar: Any = None

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        if _console().is_terminal:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=_TRANSIENT_WIDTH),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("[dim]{task.fields[text]}", markup=True),
                console=_console(),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.name, total=self.total, completed=self.start, text="")
        return self

    def update(self, step: int, **metrics: float) -> None:
        self._step = step
        self._metrics |= metrics
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=self._text())
        elif time.monotonic() >= self._next_line or step >= self.total:
            self._print_line()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._step > self.start and self._printed_step != self._step:
            self._print_line()

    def _text(self) -> str:
        parts = [_phrase(name, value) for name, value in self._metrics.items()]
        elapsed, done = time.monotonic() - self._began, self._step - self.start
        if self._step >= self.total:
            parts.append(f"{duration(elapsed)} in all")
        elif done > 0:
            parts.append(f"{duration(elapsed / done * (self.total - self._step))} left")
        return " · ".join(parts)

    def _print_line(self) -> None:
        self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
        self._printed_step = self._step
        text = self._text()
        say(f"{self.name} {self._step}/{self.total}" + (f" · {text}" if text else ""))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; none where the file is absent. A line torn by a kill (the last one) is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(json.JSONDecodeError):
            row = json.loads(line)
            if isinstance(row, dict) and "step" in row:
                rows.append(row)
    return rows


class MetricsLog:
    """The file `directory`/metrics.jsonl, one JSON object a line, and the same scalars as TensorBoard events beside it.

    `start_step` is the step of the checkpoint resumed from (0 for a fresh start): later lines of an earlier, killed
    process are cut away first, so no stretch of a curve is there twice. A value that is not finite becomes null, for
    JSON has no NaN. One that is not `active` writes nothing: of many ranks one keeps the log.
    """

    def __init__(self, directory: Path, *, start_step: int, active: bool = True) -> None:
        self._file: Any = None
        self._events: _EventFile | None = None
        if not active:
            return
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        write_jsonl(path, [row for row in read_metrics(path) if row["step"] <= start_step])
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open for the life of the object
        self._events = _EventFile.beside(directory, start_step)

    def write(self, step: int, **values: float | None) -> None:
        """Append one line and flush it; None values are left out."""
        if self._file is None:
            return
        numbers = {name: value for name, value in values.items() if value is not None}
        row = {"step": step} | {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._events is not None:
            self._events.write(step, numbers)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _EventFile:
    """One TensorBoard event file, by tensorboard's own writer (torch.utils.tensorboard would import torch)."""

    def __init__(self, directory: Path, start_step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventFileWriter(str(directory), flush_secs=20)
        # A START event tells TensorBoard to forget what earlier files hold from this step on.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.add_event(self._event(wall_time=time.time(), step=start_step + 1, session_log=start))

    @classmethod
    def beside(cls, directory: Path, start_step: int) -> _EventFile | None:
        """None where tensorboard is not installed: a training machine may do without, metrics.jsonl holds it all."""
        try:
            return cls(directory, start_step)
        except ModuleNotFoundError:
            return None

    def write(self, step: int, values: dict[str, float]) -> None:
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=scalars)))

    def close(self) -> None:
        self._writer.close()

"""The user's own reward function, in a process of its own: what it does wrong ends a call, never a run."""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mengya.corpus.records import Question
from mengya.errors import UserError

_START_SECONDS = 120.0
_MOST_LOST_IN_A_ROW = 5
"""Calls in a row that hung or ended the process, after which no more are made: a rollout has hundreds of answers."""


def function_file(spec: str) -> Path:
    """The file of FILE.py:NAME; UserError where it is not there."""
    file, _, name = spec.rpartition(":")
    if not name.isidentifier() or not Path(file).is_file():
        raise UserError(f"no such reward function: {spec}", where="rewards.function", mend="write FILE.py:NAME")
    return Path(file)


def _serve(connection: Connection, file: str, name: str) -> None:
    """Answer calls until the other end closes: ("ok", number) or ("failed", why)."""
    try:
        spec = importlib.util.spec_from_file_location("mengya_user_reward", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        function = getattr(module, name)
    except BaseException as error:  # whatever a user's module does, its own process says it and ends
        connection.send(("failed", f"{type(error).__name__}: {error}"))
        return
    connection.send(("ok", 0.0))
    while True:
        try:
            arguments = connection.recv()
        except EOFError:
            return
        try:
            value = float(function(*arguments))
            connection.send(("ok", value) if math.isfinite(value) else ("failed", f"it returned {value}"))
        except Exception as error:
            connection.send(("failed", f"{type(error).__name__}: {error}"))


class UserReward:
    """FILE.py:NAME called for one answer after another; a call that raises, takes too long, or gives no number, has failed.

    `failures` counts them, `last_failure` says what the last one was.
    """

    def __init__(self, spec: str, timeout_seconds: float) -> None:
        self.spec, self.timeout = spec, timeout_seconds
        self.file, self.name = str(function_file(spec)), spec.rpartition(":")[2]
        self.failures, self.last_failure = 0, ""
        self._lost_in_a_row = 0
        self._process: Any = None
        self._start()

    def _start(self) -> None:
        # Spawned, not forked: a fork of a process with running threads may hang.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.file, self.name), daemon=True)
        self._process.start()
        theirs.close()
        failed = self._wait(_START_SECONDS)
        if isinstance(failed, str):
            self.close()
            raise UserError(f"the reward function cannot be loaded: {failed}", where=self.spec, mend="mend it")

    def _wait(self, seconds: float) -> float | str:
        """The number, or why there is none."""
        if not self._connection.poll(seconds):
            return f"no answer within {seconds:g} s"
        try:
            kind, value = self._connection.recv()
        except (EOFError, ConnectionError):
            return "its process ended"
        return float(value) if kind == "ok" else str(value)

    def __call__(self, questions: Sequence[Question], texts: Sequence[str]) -> list[float]:
        """The reward of each answer, NaN where the call failed; UserError when it does nothing but hang or die."""
        return [self._call(question, text) for question, text in zip(questions, texts, strict=True)]

    def _call(self, question: Question, text: str) -> float:
        prompt = [{"role": message.role, "content": message.content} for message in question.messages]
        meta = {"kind": question.kind, "accept": [list(group) for group in question.accept], **question.meta}
        try:
            self._connection.send((prompt, text, meta))
            found = self._wait(self.timeout)
        except (BrokenPipeError, ConnectionError):
            found = "its process ended"
        if isinstance(found, float):
            self._lost_in_a_row = 0
            return found
        self.failures, self.last_failure = self.failures + 1, found
        lost = found.startswith("no answer") or found == "its process ended"
        self._lost_in_a_row = self._lost_in_a_row + 1 if lost else 0
        if lost:
            self.close()
            if self._lost_in_a_row == _MOST_LOST_IN_A_ROW:
                raise UserError(
                    f"the reward function failed {_MOST_LOST_IN_A_ROW} times in a row: {found}",
                    where=self.spec,
                    mend="mend it, or raise its timeout_seconds; the run goes on from its last checkpoint",
                )
            self._start()
        return math.nan

    def close(self) -> None:
        if self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
            self._process = None

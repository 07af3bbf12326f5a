"""The run says in one short line what makes a stage stale."""

import os
import time
from pathlib import Path

import pytest

from mengya.files import write_json
from mengya.run import Outcome, Run, Stage, _differences, _short
from mengya.settings import Recipe


def test_the_leaf_that_differs_is_named_even_inside_a_list():
    old = {"documents": [{"path": "a", "limit": None}, {"path": "b", "limit": 3}]}
    new = {"documents": [{"path": "a", "limit": None}, {"path": "b", "limit": 5}]}
    assert list(_differences(old, new, "corpus")) == [("corpus.documents.1.limit", 3, 5)]
    shorter = {"documents": old["documents"][:1]}
    assert [key for key, _, _ in _differences(old, shorter, "corpus")] == ["corpus.documents"]


def test_a_long_value_is_cut():
    assert _short(list(range(100))).startswith("[0, 1, 2")
    assert len(_short(list(range(100)))) <= 60


def test_the_seconds_of_an_interrupted_stage_are_added_up(tmp_path: Path):
    """Also when kill -9 left no word: until the last file that it wrote."""
    outcomes = [KeyboardInterrupt(), Outcome()]

    def execute(context):
        outcome = outcomes.pop(0)
        if isinstance(outcome, KeyboardInterrupt):
            write_json(context.directory / "progress.json", {})
            # As if the work had taken 100 seconds until its last sign of life.
            os.utime(context.directory / "progress.json", (time.time() + 100,) * 2)
            raise outcome
        return outcome

    run = Run(tmp_path)
    stage = Stage("tokenizer", ("tokenizer",), (), (), execute)
    with pytest.raises(KeyboardInterrupt):
        run.execute(Recipe(name="r"), stage)
    manifest = run.execute(Recipe(name="r"), stage)
    assert manifest["resumed"]
    assert 99 < manifest["seconds"] < 110
    assert manifest["metrics"]["tokenizer.seconds"] == manifest["seconds"]

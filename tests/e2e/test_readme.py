"""Every command that the READMEs show works: run here on the tiny run, or, the `make` targets, by .ci/run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys

import pytest

from road import REPOSITORY, TINY, mengya

READMES = ("README.md", "README.zh.md")
SMALLER = {
    # A user's own data are learnt in a minute; that the road is walked takes less.
    "recipes/own-data.yaml": (
        "pretrain.tokens=2048",
        "sft.epochs=1",
        "reward.epochs=1",
        "dpo.epochs=1",
        "ppo.steps=1",
        "ppo.batch_prompts=4",
        "evaluate.num_questions=8",
        "threads=1",
    )
}


def _blocks(readme, language):
    text = (REPOSITORY / readme).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def _commands(readme):
    """Every line of every sh block, comments left out."""
    lines = [line.split(" # ")[0].strip() for block in _blocks(readme, "sh") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def clone(tiny_run, tmp_path_factory):
    """A folder like a clone after `make quickstart`, with the tiny run in the quickstart's place."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("recipes", "examples"):
        if (REPOSITORY / name).exists():
            shutil.copytree(REPOSITORY / name, folder / name)
    tiny = TINY.read_text(encoding="utf-8").replace("name: tiny", "name: quickstart")
    (folder / "recipes" / "quickstart.yaml").write_text(tiny, encoding="utf-8")
    shutil.copytree(tiny_run, folder / "runs" / "quickstart")
    return folder


def test_every_command_of_the_readme_works(clone):
    commands = _commands("README.md")
    assert len(commands) > 5
    by_ci = [line for line in (REPOSITORY / ".ci" / "run").read_text().splitlines() if line.startswith("make ")]
    for command in commands:
        words = shlex.split(command)
        program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
        if program == "make":
            assert command in by_ci, f"`{command}` is neither run by .ci/run nor known here"
            continue
        assert program == "mengya", f"nobody runs `{command}`: teach this test to, or leave it out of the README"
        changes = [change for recipe, keys in SMALLER.items() if recipe in arguments for change in keys]
        done = mengya(*arguments, *(word for change in changes for word in ("--set", change)), cwd=clone)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        if "-p" in arguments:  # a model of a few steps may end its turn at once: then that is said
            assert done.stdout.strip() or "回答是空的" in done.stderr, f"`{command}` says nothing"
        elif arguments[0] in ("doctor", "plan", "inspect", "report"):
            assert done.stdout.strip(), f"`{command}` shows nothing"


def test_every_python_example_of_the_readme_works(clone):
    pytest.importorskip("transformers")
    for block in _blocks("README.md", "python"):
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=clone, capture_output=True, text=True, encoding="utf-8", timeout=120
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"


@pytest.mark.parametrize("language", ["sh", "python", "yaml", "json"])
def test_both_readmes_show_the_same(language):
    english, chinese = (_blocks(readme, language) for readme in READMES)
    if language in ("sh", "python"):
        assert english == chinese
    else:  # comments in them may be translated
        assert len(english) == len(chinese)

"""The runs behind docs/results/alignment.md: one a seed, and copies of its beginning in which one stage is made otherwise.

Everything is `mengya run` in a directory of its own, so whatever is finished and not stale is not made again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mengya.errors import UserError
from mengya.files import atomic_directory, read_json
from mengya.recipe import load_recipe
from mengya.run import Run
from mengya.settings import STAGE_NAMES

UNTIL_REWARD = STAGE_NAMES[: STAGE_NAMES.index("reward") + 1]
ALIGNED = ("dpo", "ppo", "grpo")
VARIANTS = {
    "grpo-arithmetic": (
        "grpo",
        (
            "grpo.kinds=[arithmetic]",
            "grpo.rewards=[{kind: truth}]",
            "grpo.replay={conversations: 1.0, documents: 0.02}",
            "grpo.steps=60",
            "grpo.epochs=2",
            "grpo.schedule=cosine",
            "grpo.learning_rate=5e-4",
            "grpo.matrix_learning_rate=0.005",
            "grpo.evaluate_every=12",
        ),
    )
}
"""{name: (stage, overrides)} of stages that are run once more, otherwise, each in a copy of the seed's run."""
_LEFT_BEHIND = shutil.ignore_patterns("checkpoints", "events.*", ".*")


@dataclass(frozen=True)
class Case:
    """PPO with one detail switched off: `name` is the run's directory, `words` the row of the table."""

    name: str
    words: str
    overrides: tuple[str, ...]


ABLATIONS = (
    Case("no-kl", "no KL penalty", ("ppo.kl_coefficient=0", "ppo.kl_target=null")),
    Case("fixed-kl", "KL coefficient fixed", ("ppo.kl_target=null",)),
    Case("kl-k2", "KL in the reward by k2", ("ppo.kl_estimator=k2",)),
    Case("kl-k3", "KL in the reward by k3", ("ppo.kl_estimator=k3",)),
    Case("no-value-warmup", "value model not warmed up", ("ppo.value_warmup_steps=0",)),
    Case("fresh-values", "value model not from the reward model", ("ppo.values_from=policy",)),
    Case("no-value-clip", "value loss not clipped", ("ppo.value_clip=null",)),
    Case("no-whitening", "advantages not whitened", ("ppo.whiten_advantages=false",)),
    Case("no-normalisation", "rewards not normalised", ("ppo.normalise_rewards=false",)),
    Case("no-reward-clip", "rewards not clipped", ("ppo.reward_clip=1e9",)),
    Case("cold-rollouts", "nearly greedy rollouts", ("ppo.temperature=0.1",)),
    Case("no-end-penalty", "no penalty for a missing end", ("ppo.missing_end_penalty=0",)),
    Case("no-repetition-penalty", "no penalty for repetition", ("ppo.repetition_penalty=0",)),
    Case("no-replay", "no text replayed", ("ppo.replay.documents=0", "ppo.replay.conversations=0")),
)


def chosen_ablations(names: str) -> list[Case]:
    """The cases named, `all` or `none`; UserError for a name that is none of them."""
    if names in ("all", "none"):
        return list(ABLATIONS) if names == "all" else []
    known = {case.name: case for case in ABLATIONS}
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise UserError(f"no ablation {name!r}", where="--ablations", mend=f"known: {', '.join(known)}")
    return [known[name] for name in wanted]


def why_not(recipe: Path, overrides: Sequence[str], case: Case) -> str | None:
    """Why the package cannot run this case (it does not know a setting, or not that value); None where it can."""
    load_recipe(recipe, list(overrides))  # a mistake in the recipe itself is the user's to mend, not a reason to skip
    try:
        load_recipe(recipe, [*overrides, *case.overrides])
    except UserError as error:
        return error.what
    return None


@dataclass(frozen=True)
class Ended:
    """How a `mengya run` ended; `message` is its last line, which says what was wrong where `code` is not 0."""

    code: int
    message: str


def mengya_run(recipe: Path, directory: Path, stages: Sequence[str], overrides: Sequence[str]) -> Ended:
    """`mengya run` of `stages` in a process of its own, its lines passed on to stderr."""
    command = [sys.executable, "-m", "mengya", "run", str(recipe), "--out", str(directory)]
    command += ["--stages", ",".join(stages)]
    for override in overrides:
        command += ["--set", override]
    last = ""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            print(f"{directory.name}: {line}", end="", file=sys.stderr, flush=True)
            last = line.strip() or last
    if process.returncode == 130:
        raise SystemExit(130)
    return Ended(process.returncode, last.removeprefix("mengya: "))


def begin_from(base: Path, directory: Path, stages: Sequence[str] = UNTIL_REWARD) -> None:
    """Put those of `stages` that `base` has finished into `directory`, where they are not there already, byte for byte."""
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "recipe.yaml").exists():
        shutil.copy2(base / "recipe.yaml", directory)
    for stage in stages:
        manifest, own = base / stage / "manifest.json", directory / stage / "manifest.json"
        if not manifest.is_file() or (own.is_file() and own.read_bytes() == manifest.read_bytes()):
            continue
        with atomic_directory(directory / stage) as temporary:
            shutil.copytree(base / stage, temporary, ignore=_LEFT_BEHIND, dirs_exist_ok=True)


def reuse(runs: Sequence[Path], seeds: Sequence[int], out: Path) -> None:
    """Begin the runs of seeds from finished ones: each goes to the seed that its recipe names."""
    for path in runs:
        run = Run.open(path)
        seed = run.recipe().seed
        if seed not in seeds:
            raise UserError(f"a run of seed {seed}", where=f"--reuse {path}", mend="add that seed to --seeds")
        directory = out / f"seed-{seed}"
        if not directory.exists():
            with atomic_directory(directory) as temporary:
                begin_from(path, temporary, (*UNTIL_REWARD, *ALIGNED))


def seed_run(
    recipe: Path, out: Path, seed: int, names: Sequence[str], overrides: Sequence[str]
) -> tuple[dict[str, tuple[Path, str]], dict[str, str]]:
    """({stage or variant that is done: (its run, its stage)}, {one that refused: its message}); out/seed-N is made.

    A stage that ends with the user's mistake is a finding (PPO refuses a weak reward model); what comes before must work.
    """
    directory, given = out / f"seed-{seed}", [f"seed={seed}", *overrides]
    wanted = load_recipe(recipe, given).stages
    ended = mengya_run(recipe, directory, [stage for stage in UNTIL_REWARD if stage in wanted], given)
    if ended.code:
        raise UserError(ended.message, where=directory, mend="mend it and give the same command again")
    done, refused = {}, {}
    for name in names:
        run, (stage, more) = directory, VARIANTS.get(name, (name, ()))
        if name in VARIANTS:
            run = out / f"seed-{seed}-{name}"
            begin_from(directory, run)
        ended = mengya_run(recipe, run, [stage], [*given, *more])
        if ended.code == 2:
            refused[name] = ended.message
        elif ended.code:
            raise SystemExit(f"alignment: {run}: {stage} ended with code {ended.code}: {ended.message}")
        else:
            done[name] = (run, stage)
    return done, refused


def ppo_run(recipe: Path, base: Path, directory: Path, overrides: Sequence[str]) -> Ended:
    """PPO by `recipe` with `overrides`, on the SFT and reward model of `base`."""
    begin_from(base, directory)
    return mengya_run(recipe, directory, ["ppo"], overrides)


def split_preferences(recipe: Path, overrides: Sequence[str], names: Sequence[str]) -> tuple[str, str]:
    """Two values for `--set`: the preference sources without, and with only, those that the judge alone is trained on."""
    sources = load_recipe(recipe, list(overrides)).corpus.preferences
    labels = {source.label for source in sources}
    for name in names:
        if name not in labels:
            known = ", ".join(sorted(labels))
            raise UserError(f"no preference source {name!r}", where="--judge-sources", mend=f"known: {known}")
    if labels <= set(names):
        raise UserError("no pairs are left for the policy", where="--judge-sources", mend="name fewer of the sources")

    def value(of_judge: bool) -> str:
        rows: list[Any] = [
            source.model_dump(mode="json", exclude_defaults=True)
            for source in sources
            if (source.label in names) == of_judge
        ]
        return f"corpus.preferences={json.dumps(rows, ensure_ascii=False)}"

    return value(False), value(True)


def judge_run(recipe: Path, base: Path, directory: Path, overrides: Sequence[str]) -> None:
    """A reward model trained from the SFT model of `base` on other pairs, which `overrides` name."""
    begin_from(base, directory, ("tokenizer", "shards", "pretrain", "sft"))
    # All its pairs for itself: it is no policy's reward model, so nobody has to judge what climbs it.
    ended = mengya_run(recipe, directory, ["corpus", "reward"], [*overrides, "reward.judge_share=0"])
    if ended.code:
        raise UserError(ended.message, where=directory, mend="name other sources with --judge-sources")


def manifest_of(directory: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(directory / stage / "manifest.json")
    return found

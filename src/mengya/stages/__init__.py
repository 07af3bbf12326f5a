"""The stages of a run: what each is made from, what it leaves, and the module that does it, loaded when called."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from mengya.corpus import catalogue
from mengya.run import Context, Outcome, Stage
from mengya.settings import (
    MAX_REWARD_MEMBERS,
    DPOSettings,
    PairTrainSettings,
    Recipe,
    RewardTerm,
    RolloutSettings,
    Source,
    StageName,
)


def _execute(context: Context) -> Outcome:
    # Imported only now: `mengya --help`, and a run whose stages are all done, never load torch.
    from mengya.stages.ranks import call_all

    call_all(context)
    outcome: Outcome = module_of(context.stage.name).execute(context)
    return outcome


def module_of(name: StageName) -> ModuleType:
    """The module whose `execute` does the stage."""
    # `stages.preferences` is what the stages share that train on pairs.
    return importlib.import_module(f"mengya.stages.{'own_pairs' if name == 'preferences' else name}")


def source_files(source: Source) -> list[Path]:
    """The user's files behind a source, sorted; a folder or a glob stands for all files in it."""
    if source.dataset is not None:
        return catalogue.source_files(source)
    if source.path is None:
        return []
    path = Path(source.path)
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    if path.exists():
        return [path]
    return sorted(file for file in Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))) if file.is_file())


def tokenizer_files(recipe: Recipe) -> list[Path]:
    """The files of the imported tokenizer, if the recipe names one."""
    if recipe.tokenizer.path is None:
        return []
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    return [file for name in names if (file := Path(recipe.tokenizer.path) / name).is_file()]


def token_files(recipe: Recipe) -> list[Path]:
    """The user's files of token ids, in the order in which they are named."""
    found = (file for path in recipe.shards.token_files for file in source_files(Source(path=path)))
    return list(dict.fromkeys(found))


def _corpus_files(recipe: Recipe) -> list[Path]:
    sources = [*recipe.corpus.documents, *recipe.corpus.conversations, *recipe.corpus.preferences]
    files = [file for source in sources for file in source_files(source)]
    files += [file for benchmark in recipe.corpus.evaluation for file in source_files(Source(path=benchmark.path))]
    return list(dict.fromkeys(files))


def _function_files(rewards: list[RewardTerm]) -> list[Path]:
    """The files of the user's own reward functions."""
    named = [term.function.rpartition(":")[0] for term in rewards if term.function]
    return [Path(file) for file in named if Path(file).is_file()]


def _ppo_files(recipe: Recipe) -> list[Path]:
    return _function_files(recipe.ppo.rewards)


def _grpo_files(recipe: Recipe) -> list[Path]:
    return _function_files(recipe.grpo.rewards)


def _preference_files(recipe: Recipe) -> list[Path]:
    files = [file for source in recipe.preferences.sources for file in source_files(source)]
    return list(dict.fromkeys([*files, *_function_files(recipe.preferences.rewards)]))


def _asked_by(name: str) -> Callable[[Recipe], tuple[str, ...]]:
    """What a stage needs if its recipe wants the pairs that the run made for itself, or conversations replayed."""

    def asks(recipe: Recipe) -> tuple[str, ...]:
        settings: PairTrainSettings | RolloutSettings = getattr(recipe, name)
        own = () if settings.pairs_from == "corpus" else (OWN_PAIRS,)
        replays = isinstance(settings, DPOSettings | RolloutSettings) and settings.replay.conversations > 0
        return (*own, _CONVERSATIONS) if replays else own

    return asks


TOKEN_FILES = "token_files"
"""Name of the source that `shards.token_files` are."""
OWN_PAIRS = "preferences/pairs"
"""What the stage `preferences` makes: pairs in the layout of corpus/preferences."""
JUDGE = "reward/judge"
"""A reward model of pairs of its own, which no policy is trained on or against; where `reward.judge_share` sets some apart."""
_HARDWARE = ("seed", "precision", "device")
_DOCUMENTS, _CONVERSATIONS, _HELD_OUT = "corpus/documents", "corpus/conversations", "corpus/evaluation"
_CHAT_NEEDS = ("tokenizer/model", "shards/tokens", _HELD_OUT)
_REWARD = ("reward/model", "reward/evaluation.json")
_REWARD_MEMBERS = tuple(f"reward/model-{number}" for number in range(1, MAX_REWARD_MEMBERS))
"""Those of an ensemble, beside reward/model; most runs have none."""


def _stage(
    name: StageName,
    settings: tuple[str, ...],
    needs: tuple[str, ...],
    makes: tuple[str, ...],
    uses: tuple[str, ...] = (),
    measured_by: tuple[str, ...] = (),
) -> Stage:
    files = {
        "corpus": _corpus_files,
        "tokenizer": tokenizer_files,
        "shards": token_files,
        "preferences": _preference_files,
        "ppo": _ppo_files,
        "grpo": _grpo_files,
    }
    asks = _asked_by(name) if name in ("reward", "dpo", "ppo", "grpo") else lambda recipe: ()
    return Stage(name, settings, needs, makes, _execute, files.get(name, lambda recipe: []), uses, asks, measured_by)


STAGES: dict[StageName, Stage] = {
    stage.name: stage
    for stage in (
        _stage(
            "corpus",
            ("seed", "identity", "playground", "corpus"),
            (),
            (_DOCUMENTS, _CONVERSATIONS, "corpus/preferences", _HELD_OUT),
        ),
        _stage("tokenizer", ("seed", "tokenizer"), (_DOCUMENTS,), ("tokenizer/model",)),
        _stage("shards", ("shards",), (_DOCUMENTS, "tokenizer/model"), ("shards/tokens",)),
        _stage(
            "pretrain",
            (*_HARDWARE, "model", "pretrain", "evaluate"),
            _CHAT_NEEDS,
            ("pretrain/model", "pretrain/evaluation.json"),
            measured_by=("evaluate",),
        ),
        _stage(
            "sft",
            (*_HARDWARE, "sft", "evaluate"),
            ("pretrain/model", "pretrain/evaluation.json", _CONVERSATIONS, *_CHAT_NEEDS),
            ("sft/model", "sft/evaluation.json"),
            measured_by=("evaluate", "pretrain/evaluation.json"),
        ),
        _stage(
            "preferences",
            (*_HARDWARE, "identity", "playground", "corpus", "preferences"),
            ("sft/model", _CONVERSATIONS, "corpus/preferences", "tokenizer/model", _HELD_OUT),
            (OWN_PAIRS,),
        ),
        _stage(
            "reward",
            (*_HARDWARE, "reward"),
            ("sft/model", "corpus/preferences"),
            (*_REWARD, *_REWARD_MEMBERS, JUDGE),
        ),
        _stage(
            "dpo",
            (*_HARDWARE, "dpo", "evaluate"),
            ("sft/model", "sft/evaluation.json", "corpus/preferences", *_CHAT_NEEDS),
            ("dpo/model", "dpo/evaluation.json"),
            uses=("reward/model", JUDGE),  # who judges where no truth is known
        ),
        _stage(
            "ppo",
            (*_HARDWARE, "identity", "playground", "ppo", "evaluate"),
            ("sft/model", "sft/evaluation.json", *_REWARD, "corpus/preferences", *_CHAT_NEEDS),
            ("ppo/model", "ppo/evaluation.json"),
            uses=(*_REWARD_MEMBERS, JUDGE),
        ),
        _stage(
            "grpo",
            (*_HARDWARE, "identity", "playground", "grpo", "evaluate"),
            ("sft/model", "sft/evaluation.json", "corpus/preferences", *_CHAT_NEEDS),
            ("grpo/model", "grpo/evaluation.json"),
            uses=(*_REWARD, *_REWARD_MEMBERS, JUDGE),
        ),
        _stage(
            "evaluate",
            (*_HARDWARE, "evaluate"),
            ("pretrain/model", "tokenizer/model", "shards/tokens", _HELD_OUT),
            ("evaluate/samples.jsonl",),
            uses=("sft/model", "dpo/model", "ppo/model", "grpo/model"),
        ),
    )
}
"""In dependency order: a stage needs only what stands before it."""


def downstream(name: StageName, recipe: Recipe) -> list[StageName]:
    """The stages that are made, directly or not, from what `name` makes, in order."""
    made = set(STAGES[name].makes)
    found: list[StageName] = []
    for stage in STAGES.values():
        if made & {*stage.all_needs(recipe), *stage.uses}:
            found.append(stage.name)
            made |= set(stage.makes)
    return found

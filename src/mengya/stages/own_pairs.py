"""preferences: pairs from the SFT model's own answers to prompts that it was not trained on.

What is under way lies beside what is made: prompts/ (chosen once), answers/ (a file a part of the prompts, with scores:
they are ranked lists for whoever wants them), pairs/ (in the layout of corpus/preferences). After a kill the parts that
are there stay, and the part that was under way is answered again, by the same batches and seeds: the same bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mengya.console import Progress, say
from mengya.corpus.fresh_prompts import Prompt
from mengya.corpus.funnel import Drop, Funnel, Manifest
from mengya.corpus.playground import judges
from mengya.corpus.records import PreferencePair, to_row
from mengya.errors import UserError
from mengya.evaluate.answers import has_truth
from mengya.evaluate.score import Estimate, proportion
from mengya.files import atomic_directory, read_json, read_jsonl, write_jsonl
from mengya.generate.sampling import Sampling
from mengya.model.transformer import Transformer
from mengya.rl.division import sampled_answers
from mengya.rl.own_pairs import Sampled, answer_seed, drop_of, judged, make_pair, unbalanced
from mengya.rl.terms import RewardTerms
from mengya.run import Context, Outcome
from mengya.settings import PreferencesSettings
from mengya.stages.common import load_language_model, tokenizer_of, world_of
from mengya.stages.prompts import gather_prompts
from mengya.tokenizer.encode import ChatTokenizer
from mengya.train.parallel import World

_PART_BATCHES = 4
SPLITS = ("train", "validation")


def execute(context: Context) -> Outcome:
    _check_rewards(context.recipe.preferences)
    world, tokenizer = world_of(context), tokenizer_of(context)
    model = load_language_model(context, "sft/model", world).requires_grad_(False)
    room = model.config.max_positions - context.recipe.preferences.max_new_tokens
    place = context.directory / "prompts"
    world.from_main(lambda: gather_prompts(context, tokenizer, room, place))
    prompts = [Prompt.of_row(row) for row in read_jsonl(place / "prompts.jsonl")]
    settings = _with_judge(context.recipe.preferences, prompts)
    answers = _sample(context, settings, model, tokenizer, prompts, world)
    if not world.is_main:
        return Outcome()
    return _make_pairs(context, settings, prompts, answers)


def _check_rewards(settings: PreferencesSettings) -> None:
    where = "preferences.rewards"
    if settings.judge == "rewards" and not settings.rewards:
        raise UserError("the judge `rewards` has no terms", where=where, mend="add `{kind: truth}`, or a function")
    if settings.rewards and settings.judge != "rewards":
        raise UserError("reward terms that nobody asks", where=where, mend="set preferences.judge to rewards")
    for number, term in enumerate(settings.rewards):
        if term.kind == "model":
            raise UserError(
                "the reward model is trained after the pairs are made",
                where=f"{where}.{number}.kind",
                mend="use truth, or a function of your own",
            )
        if term.kind == "function" and term.function is None:
            raise UserError(
                "a reward function without a name", where=f"{where}.{number}.function", mend="write FILE.py:NAME"
            )


def _with_judge(settings: PreferencesSettings, prompts: Sequence[Prompt]) -> PreferencesSettings:
    """The settings with their judge decided; UserError where it cannot judge any of these prompts."""
    known = sum(has_truth(prompt.question) for prompt in prompts)
    if settings.judge is None:
        return settings.model_copy(update={"judge": "gold" if known == len(prompts) else "rules"})
    if settings.judge == "gold" and known < len(prompts):
        raise UserError(
            f"{len(prompts) - known} of {len(prompts)} prompts have no truth for the judge `gold`",
            where="preferences.judge",
            mend="use rules, or rewards with a function of your own",
        )
    if settings.judge == "rewards" and known == 0 and {term.kind for term in settings.rewards} == {"truth"}:
        raise UserError(
            "no prompt has an answer that can be verified",
            where="preferences.rewards",
            mend="add a function of your own, or use the judge `rules`",
        )
    return settings


def _sample(
    context: Context,
    settings: PreferencesSettings,
    model: Transformer,
    tokenizer: ChatTokenizer,
    prompts: Sequence[Prompt],
    world: World,
) -> Path:
    """The folder of the parts of answers, all of them made; each is as many prompts as have four batches of answers."""
    directory = context.directory / "answers"
    num_samples = settings.num_samples if settings.method == "best_of_n" else 1
    size = max(1, _PART_BATCHES * settings.batch_size // num_samples)
    starts = range(0, len(prompts), size)
    files = [directory / f"{part:05d}.jsonl" for part in range(len(starts))]
    # Rank 0's word: the others might see a file that it has written since.
    missing = world.from_main(lambda: [part for part, file in enumerate(files) if not file.exists()])
    if len(missing) < len(files):
        say(f"preferences: {len(files) - len(missing)} of {len(files)} parts of answers are there already")
    terms = RewardTerms.of(settings, None, world, "preferences") if settings.judge == "rewards" else None
    try:
        with Progress("preferences", len(files), len(files) - len(missing)) as bar:
            for done, part in enumerate(missing, len(files) - len(missing) + 1):
                numbers = range(starts[part], min(starts[part] + size, len(prompts)))
                asked = [prompts[number].question for number in numbers for _ in range(num_samples)]
                answers = sampled_answers(
                    model,
                    tokenizer,
                    [question.messages for question in asked],
                    world,
                    max_new_tokens=settings.max_new_tokens,
                    sampling=Sampling(settings.temperature, top_p=settings.top_p),
                    seed=[answer_seed(context.recipe.seed, n, s) for n in numbers for s in range(num_samples)],
                    batch_size=settings.batch_size,
                )
                scores = judged(asked, answers, settings, terms, world)
                if world.is_main:
                    columns: dict[str, list[Any]] = {
                        "texts": answers.texts,
                        "finished": answers.finished,
                        "scores": scores,
                    }
                    rows = (
                        {"prompt": number, **{name: column[at : at + num_samples] for name, column in columns.items()}}
                        for at, number in zip(range(0, len(asked), num_samples), numbers, strict=True)
                    )
                    write_jsonl(files[part], rows)
                bar.update(done)
    finally:
        if terms is not None:
            terms.close()
    return directory


def sampled_of(directory: Path) -> Iterator[Sampled]:
    """The answers to each prompt, in the order of the prompts."""
    for file in sorted(directory.glob("*.jsonl")):
        for row in read_jsonl(file):
            yield Sampled(row["texts"], row["finished"], row["scores"])


def _make_pairs(context: Context, settings: PreferencesSettings, prompts: Sequence[Prompt], answers: Path) -> Outcome:
    funnel, place = Funnel("pairs"), context.directory / "prompts"
    passed_over = [Drop(**row) for row in read_jsonl(place / "drops.jsonl")]
    funnel.read.update([drop.source for drop in passed_over] + [prompt.question.source for prompt in prompts])
    prompt_characters = sum(len(message.content) for prompt in prompts for message in prompt.messages)
    for drop in passed_over:
        funnel.drop(drop)
    passed_characters = sum(drop.characters for drop in passed_over)
    funnel.step("read", len(passed_over) + len(prompts), passed_characters + prompt_characters)
    funnel.step("fresh_prompts", len(prompts), prompt_characters)

    found: dict[str, list[PreferencePair]] = {split: [] for split in SPLITS}
    tally = Counter[str]()
    for prompt, sampled in zip(prompts, sampled_of(answers), strict=True):
        tally["answers"] += len(sampled.texts)
        tally["unfinished_answers"] += sampled.finished.count(False)
        tally["empty_answers"] += sampled.texts.count("")
        tally["failed_scores"] += sampled.scores.count(None)
        pair, reason = make_pair(prompt, sampled, settings)
        if reason is not None:
            funnel.drop(drop_of(pair, reason))
            continue
        found["validation" if prompt.held_out else "train"].append(pair)
    funnel.left("pairs", [pair for pairs in found.values() for pair in pairs])
    if settings.balance_length:
        for split, pairs in found.items():
            gone = unbalanced(pairs, context.recipe.seed)
            for index in sorted(gone):
                funnel.drop(drop_of(pairs[index], "length_balance"))
            found[split] = [pair for index, pair in enumerate(pairs) if index not in gone]
        funnel.left("length_balance", [pair for pairs in found.values() for pair in pairs])
    kept = [pair for pairs in found.values() for pair in pairs]
    funnel.kept.update(pair.source for pair in kept)
    manifest = funnel.manifest(*(funnel.counts(found[split]) for split in SPLITS))
    _tell(context, manifest, prompts)
    with atomic_directory(context.directory / "pairs") as directory:
        for split, pairs in found.items():
            write_jsonl(directory / f"{split}.jsonl", map(to_row, pairs))
        write_jsonl(directory / "dropped.jsonl", funnel.samples())
    metrics = _metrics(kept, prompts, tally)
    counts = {"pairs": manifest, "prompts": len(prompts), **tally, **read_json(place / "counts.json")}
    return Outcome(metrics=metrics, counts=counts)


def _tell(context: Context, manifest: Manifest, prompts: Sequence[Prompt]) -> None:
    """Say what became of the prompts; UserError where a side of the split is left empty."""
    train, validation = (manifest["kept"][split]["pairs"] for split in SPLITS)
    reasons = ", ".join(f"{reason} {entry['pairs']:,}" for reason, entry in manifest["dropped"].items()) or "nothing"
    say(f"preferences: {len(prompts):,} prompts, {train:,} pairs to train on and {validation:,} held out")
    say(f"preferences: dropped: {reasons}")
    if train == 0:
        raise UserError(
            f"no pair is left to train on (dropped: {reasons})",
            where="preferences",
            mend="relax what drops most, or raise num_prompts; answers are kept while nothing else changes",
        )
    if validation == 0:
        raise UserError(
            f"none of the pairs is held out (dropped: {reasons})",
            where="preferences.validation_fraction",
            mend="raise it, or num_prompts",
        )


def _metrics(pairs: Sequence[PreferencePair], prompts: Sequence[Prompt], tally: Counter[str]) -> dict[str, Estimate]:
    longer = sum(len(pair.chosen) > len(pair.rejected) for pair in pairs)
    unequal = sum(len(pair.chosen) != len(pair.rejected) for pair in pairs)
    metrics: dict[str, Any] = {
        "kept_share": proportion(len(pairs), len(prompts)),
        "chosen_longer_share": proportion(longer, unequal),
        "end_rate": proportion(tally["answers"] - tally["unfinished_answers"], tally["answers"]),
    }
    questions = {prompt.messages: prompt.question for prompt in prompts if has_truth(prompt.question)}
    known = [(pair, questions[pair.prompt]) for pair in pairs if pair.prompt in questions]
    for side in ("chosen", "rejected"):
        right = [judges.is_right(getattr(pair, side), question) for pair, question in known]
        if right:
            metrics[f"{side}_accuracy"] = proportion(sum(right), len(right))
    return {f"preferences.{name}": value for name, value in metrics.items()}

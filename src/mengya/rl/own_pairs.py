"""Preference pairs from a model's own answers: how answers are judged, which two make a pair, which pairs are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mengya.corpus.fresh_prompts import Prompt
from mengya.corpus.funnel import EXCERPT, Drop, hash64, num_characters
from mengya.corpus.messages import whole_text, why_unusable
from mengya.corpus.playground import judges
from mengya.corpus.records import PreferencePair, Question
from mengya.corpus.shingles import canonical, jaccard, shingles
from mengya.evaluate.answers import Answers, has_truth
from mengya.rl.rewards import penalised
from mengya.rl.terms import RewardTerms
from mengya.settings import PreferencesSettings
from mengya.train.parallel import World


@dataclass(frozen=True)
class Sampled:
    """A model's answers to one prompt: texts, whether each ended by itself, and its score (None: the judge failed)."""

    texts: list[str]
    finished: list[bool]
    scores: list[float | None]


def answer_seed(seed: int, prompt: int, sample: int) -> int:
    """The seed of one answer: of the prompt's number and the sample's, so that it is the same in any batch."""
    return hash64("own answers", f"{seed} {prompt} {sample}".encode())


def judged(
    questions: Sequence[Question],
    answers: Answers,
    settings: PreferencesSettings,
    terms: RewardTerms | None,
    world: World,
) -> list[float | None]:
    """One score an answer: gold score or reward terms (or 0, where rules alone judge), less what rules take; the same on all ranks."""
    if settings.judge == "gold":
        told = zip(answers.texts, questions, strict=True)
        scores = [judges.gold_score(text, question) for text, question in told]
    elif settings.judge == "rewards":
        assert terms is not None, "the stage opens them where they judge"
        scores, _ = terms(questions, answers, world)
    else:
        scores = [0.0] * len(questions)
    return [None if math.isnan(score) else score for score in penalised(scores, answers, settings)]


def make_pair(prompt: Prompt, sampled: Sampled, settings: PreferencesSettings) -> tuple[PreferencePair, str | None]:
    """The pair of a prompt and why it is dropped, if it is.

    Reasons: of best_of_n "one_answer" (fewer than two that are not empty and were judged), "no_margin", "endless" (the
    best one never ended; training would teach to end it there), "broken_characters" (the best one holds half characters,
    which as text are other tokens than those that were sampled); of reference "right_answer"; of both "empty",
    "equal_answers" (but for white space, case and punctuation) and "near_equal".
    """
    if settings.method == "reference":
        pair, reason = _against_reference(prompt, sampled, settings)
    else:
        pair, reason = _best_and_worst(prompt, sampled, settings)
    return pair, reason or why_unusable(pair) or _alike(pair, settings.max_similarity)


def _pair(
    prompt: Prompt, chosen: str, rejected: str, settings: PreferencesSettings, margin: float | None = None
) -> PreferencePair:
    # The reason names where the pair is from: reward accuracy is reported for each reason.
    source, reason = prompt.question.source, f"own_{settings.method}"
    return PreferencePair(prompt.messages, chosen, rejected, source, reason, prompt.origin, margin=margin)


def _against_reference(
    prompt: Prompt, sampled: Sampled, settings: PreferencesSettings
) -> tuple[PreferencePair, str | None]:
    answer = sampled.texts[0]
    is_right = has_truth(prompt.question) and judges.is_right(answer, prompt.question)
    reason = "right_answer" if settings.drop_right_answers and is_right else None
    return _pair(prompt, prompt.reference, answer, settings), reason


def _best_and_worst(
    prompt: Prompt, sampled: Sampled, settings: PreferencesSettings
) -> tuple[PreferencePair, str | None]:
    """Of equals the first sample is taken, which favours no length."""
    scores = {
        index: score
        for index, (text, score) in enumerate(zip(sampled.texts, sampled.scores, strict=True))
        if text and score is not None
    }
    if len(scores) < 2:
        only = sampled.texts[next(iter(scores), 0)]
        return _pair(prompt, only, only, settings), "one_answer"
    best, worst = max(scores, key=scores.__getitem__), min(scores, key=scores.__getitem__)
    margin = scores[best] - scores[worst]
    pair = _pair(prompt, sampled.texts[best], sampled.texts[worst], settings, margin)
    if margin <= settings.min_margin:
        return pair, "no_margin"
    if not sampled.finished[best]:
        return pair, "endless"
    return pair, "broken_characters" if "\ufffd" in pair.chosen else None


def _alike(pair: PreferencePair, max_similarity: float) -> str | None:
    if canonical(pair.chosen) == canonical(pair.rejected):
        return "equal_answers"
    alike = jaccard(shingles(pair.chosen), shingles(pair.rejected))
    return "near_equal" if alike >= max_similarity else None


def drop_of(pair: PreferencePair, reason: str) -> Drop:
    return Drop(pair.origin, pair.source, reason, num_characters(pair), whole_text(pair)[:EXCERPT])


def unbalanced(pairs: Sequence[PreferencePair], seed: int) -> set[int]:
    """Indices of the fewest pairs without which `chosen` is the longer answer, in characters, as often as the shorter.

    Which of the more numerous kind go is decided by a hash of their content, as for the sources of the corpus.
    """
    longer = [i for i, pair in enumerate(pairs) if len(pair.chosen) > len(pair.rejected)]
    shorter = [i for i, pair in enumerate(pairs) if len(pair.chosen) < len(pair.rejected)]
    fewer, more = sorted((longer, shorter), key=len)

    def key(index: int) -> int:
        pair = pairs[index]
        return hash64(f"balance {seed}", f"{pair.prompt}\0{pair.chosen}\0{pair.rejected}".encode())

    return set(sorted(more, key=key)[len(fewer) :])

"""What is measured of a reward model: baselines that must not know too much, calibration, correlations, its standing."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_tokenizer import small_tokenizer

from mengya.corpus.records import Message, PreferencePair
from mengya.evaluate.baselines import (
    character_features,
    characters_only_accuracy,
    fit_characters,
    score_without_prompts,
)
from mengya.evaluate.calibration import (
    calibration,
    correlation,
    length_correlations,
    length_matched,
    margin_histogram,
    ranks,
)
from mengya.evaluate.pairs import PairScores, score_pairs
from mengya.evaluate.reward_quality import BASELINES, joint, measure_reward, offset_of, why_weak
from mengya.evaluate.score import proportion
from mengya.model.config import ModelConfig
from mengya.model.heads import RewardEnsemble, RewardModel
from mengya.settings import RewardSettings

PROMPT = (Message("user", "苹果好吃吗？"),)


def pair(chosen: str, rejected: str, prompt=PROMPT, **more) -> PreferencePair:
    return PreferencePair(prompt, chosen, rejected, "test", **more)


def from_two_sources(count: int, seed: int) -> list[PreferencePair]:
    """The better answer is written with one set of characters, the worse with another, both of random length."""
    rng = random.Random(seed)

    def text(letters: str) -> str:
        return "".join(rng.choice(letters) for _ in range(rng.randrange(5, 30)))

    return [pair(text("甲乙丙丁戊己庚辛"), text("子丑寅卯辰巳午未")) for _ in range(count)]


def shuffled_sides(pairs: list[PreferencePair], seed: int) -> list[PreferencePair]:
    rng = random.Random(seed)
    return [one if rng.random() < 0.5 else replace(one, chosen=one.rejected, rejected=one.chosen) for one in pairs]


# ------------------------------------------------------------------------------------------------ characters alone


def test_characters_alone_find_the_source_and_nothing_where_there_is_none():
    train, held_out = from_two_sources(200, 1), from_two_sources(300, 2)
    assert characters_only_accuracy(train, held_out)["value"] == 1.0
    chance = characters_only_accuracy(shuffled_sides(train, 3), shuffled_sides(held_out, 4))
    assert chance["low"] < 0.5 < chance["high"]


def test_characters_alone_know_no_length_and_no_order_of_sides():
    assert np.array_equal(character_features("好好")[0], character_features("好" * 9)[0])
    buckets, values = character_features("小明看见苹果")
    assert np.linalg.norm(values) == pytest.approx(1.0)
    assert len(buckets) == 6 + 5, "six characters and five pairs of neighbours"
    same = [pair("好", "好")] * 10
    assert characters_only_accuracy(from_two_sources(50, 1), same)["value"] == 0.5


def test_the_fit_is_the_minimum_and_the_same_every_time():
    pairs = from_two_sources(60, 5)
    weights = fit_characters(pairs)
    assert torch.equal(weights, fit_characters(pairs))
    # At the minimum the gradient of Σ log(1 + e^−z) + ½|w|² is 0; computed here densely, a pair at a time.
    gradient = weights.clone()
    for one in pairs:
        features = torch.zeros_like(weights)
        for text, sign in ((one.chosen, 1.0), (one.rejected, -1.0)):
            buckets, values = character_features(text)
            features[torch.from_numpy(buckets)] += sign * torch.from_numpy(values)
        gradient -= torch.sigmoid(-(features @ weights)) * features
    assert gradient.abs().max() < 1e-3 * len(pairs) ** 0.5


# ---------------------------------------------------------------------------------------------- the answer alone


def tiny_reward(seed: int) -> RewardModel:
    torch.manual_seed(seed)
    shape = {"width": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "ffn_width": 64, "max_positions": 128}
    model = RewardModel(ModelConfig(vocab_size=small_tokenizer().vocab_size, **shape))
    model.draw_head()
    return model.eval()


def test_without_its_prompt_an_answer_gets_one_score_whatever_was_asked():
    model, tokenizer = tiny_reward(0), small_tokenizer()
    other = (Message("user", "小明看见什么？"), Message("assistant", "小船"), Message("user", "还有呢？"))
    pairs = [pair("好吃", "不好"), pair("好吃", "不好", other)]
    asked = score_pairs(model, tokenizer, pairs, 128)
    bare = score_without_prompts(model, tokenizer, pairs, 128)
    assert asked.chosen[0] != asked.chosen[1]
    assert bare.chosen[0] == pytest.approx(bare.chosen[1], abs=1e-6)
    assert bare.rejected[0] == pytest.approx(bare.rejected[1], abs=1e-6)
    assert bare.chosen[0] != pytest.approx(bare.rejected[0], abs=1e-6)


# ------------------------------------------------------------------------------------------- calibration and margins


def test_calibration_by_hand():
    sure, unsure = math.log(0.95 / 0.05), math.log(0.57 / 0.43)
    error, bins = calibration([sure, sure, sure, -sure, unsure, -unsure])
    assert [row["n"] for row in bins] == [2, 4]
    assert [row["right"] for row in bins] == [0.5, 0.75]
    assert [row["predicted"] for row in bins] == pytest.approx([0.57, 0.95])
    assert error == pytest.approx(2 / 6 * 0.07 + 4 / 6 * 0.20)
    assert calibration([0.0, 0.0])[1] == [{"predicted": 0.5, "right": 0.5, "n": 2}]
    assert math.isnan(calibration([])[0])


def test_margins_drawn_from_bradley_terry_are_calibrated():
    rng = np.random.default_rng(0)
    true = rng.normal(scale=2, size=20_000)
    margins = np.where(rng.random(len(true)) < 1 / (1 + np.exp(-true)), true, -true)
    assert calibration(margins.tolist())[0] < 0.015
    assert calibration((3 * margins).tolist())[0] > 0.1, "three times too sure"


def test_the_histogram_holds_every_margin_and_has_an_edge_at_zero():
    rng = np.random.default_rng(1)
    for margins in (rng.normal(size=99).tolist(), [0.0] * 5, [2.0], [-1.0, -1.0], [1e-30]):
        found = margin_histogram(margins)
        assert sum(found["counts"]) == len(margins)
        assert min(abs(edge) for edge in found["edges"]) < 1e-12
        assert len(found["edges"]) == len(found["counts"]) + 1
    assert margin_histogram([]) == {"edges": [], "counts": []}


def test_equal_values_share_their_rank():
    assert ranks([3.0, 1.0, 3.0, 9.0]).tolist() == [2.5, 1.0, 2.5, 4.0]


def test_correlations_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(2)
    x = rng.integers(1, 9, size=60).astype(float)  # with ties
    y = 0.3 * x + rng.normal(size=60)
    assert ranks(x).tolist() == stats.rankdata(x).tolist()
    pearson, spearman = stats.pearsonr(x, y), stats.spearmanr(x, y)
    found = correlation(x, y)
    assert found["value"] == pytest.approx(pearson.statistic)
    interval = pearson.confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high), abs=1e-6)
    assert correlation(ranks(x), ranks(y))["value"] == pytest.approx(spearman.statistic)
    assert correlation([1.0] * 9, range(9)) is None, "a constant correlates with nothing"


def test_a_reward_that_is_the_length_correlates_with_it_fully():
    pairs = [pair("好" * n, "坏" * (20 - n)) for n in range(1, 19)]
    found = length_correlations(pairs, [float(n) for n in range(1, 19)], [20.0 - n for n in range(1, 19)])
    assert found["length_correlation"]["value"] == pytest.approx(1.0)
    assert found["length_rank_correlation"]["value"] == pytest.approx(1.0)


def test_pairs_of_like_length_are_taken_where_there_are_enough():
    alike, apart = [pair("好" * 10, "坏" * 9)] * 30, [pair("好" * 10, "坏" * 8)] * 50
    assert length_matched([*apart, *alike]) == (list(range(50, 80)), "alike")


def test_where_few_are_alike_the_longer_wins_as_often_as_the_shorter():
    rng = random.Random(0)
    pairs = [pair("好" * rng.randrange(1, 60), "坏" * rng.randrange(1, 30)) for _ in range(150)]
    kept, how = length_matched(pairs)
    assert how == "bins"
    assert len(kept) == len(set(kept)) > 30
    longer = sum(len(pairs[i].chosen) > len(pairs[i].rejected) for i in kept)
    shorter = sum(len(pairs[i].chosen) < len(pairs[i].rejected) for i in kept)
    assert longer == shorter > 0


# ------------------------------------------------------------------------------------------------------- ensembles


def test_the_conservative_score_by_hand():
    members, tokenizer = [tiny_reward(seed) for seed in (0, 1, 2)], small_tokenizer()
    pairs = [pair("好吃", "不好"), pair("小明看见苹果", "白菜")]
    scores = [score_pairs(member, tokenizer, pairs, 128) for member in members]
    offsets = [offset_of(one) for one in scores]
    assert offsets[0] == pytest.approx(sum([*scores[0].chosen, *scores[0].rejected]) / 4)
    raw = [one.chosen[0] - offset for one, offset in zip(scores, offsets, strict=True)]
    mean = sum(raw) / 3
    deviation = math.sqrt(sum((score - mean) ** 2 for score in raw) / 3)
    assert deviation > 0.01, "three equal members would test nothing"
    ensemble = RewardEnsemble(members, offsets, 0.7)
    found = score_pairs(ensemble, tokenizer, pairs, 128)
    assert found.chosen[0] == pytest.approx(mean - 0.7 * deviation, abs=1e-5)
    together = joint(scores, offsets, 0.7)
    assert together.chosen == pytest.approx(found.chosen, abs=1e-5)
    assert together.rejected == pytest.approx(found.rejected, abs=1e-5)
    assert joint(scores, offsets, 0.0).chosen[0] == pytest.approx(mean, abs=1e-6)


def test_members_that_differ_in_their_zero_point_alone_do_not_disagree():
    pairs = [pair("甲", "乙")] * 3
    first = PairScores(pairs, [3.0, 1.0, 2.0], [0.0, 2.0, 1.0])
    shifted = PairScores(pairs, [x + 50 for x in first.chosen], [x + 50 for x in first.rejected])
    members = [first, shifted]
    found = joint(members, [offset_of(one) for one in members], 5.0)
    assert found.margins == pytest.approx(first.margins)


# ---------------------------------------------------------------------------------------------------- the standing


def metrics(right: int, n: int, **baselines: float) -> dict:
    shares = dict.fromkeys(BASELINES, 0.5) | baselines
    found = {f"{name}_only_accuracy": proportion(share * n, n) for name, share in shares.items()}
    return found | {"pair_accuracy": proportion(right, n)}


def weakness(found: dict, **settings) -> str:
    return why_weak(found, RewardSettings(**settings)) or ""


def test_a_reward_model_must_beat_its_best_baseline_beyond_its_error():
    quickstart = metrics(368, 400, characters=0.812, answer=0.9)
    assert "the answer without its prompt alone on 90.0%" in weakness(quickstart)
    assert not weakness(quickstart, must_beat=["length", "characters"])
    assert "the characters alone on 81.2%" in weakness(quickstart, must_beat=["length", "characters"], min_margin=0.1)
    real = metrics(44, 69, length=0.558)
    assert "63.8% [52.0%, 74.1%] of 69 held-out pairs" in weakness(real)
    assert "the length alone on 55.8%" in weakness(real)
    assert not weakness(real, min_margin=-0.05)
    assert weakness(metrics(2, 2)), "two right of two prove nothing"
    assert "no held-out pair" in weakness(metrics(0, 0))


def test_all_is_measured_together():
    train, held_out = from_two_sources(60, 1), from_two_sources(80, 2)
    right = [1.0 if n % 10 else -1.0 for n in range(80)]
    scores = PairScores(held_out, right, [0.0] * 80)
    found, counts = measure_reward(scores, PairScores(held_out, [0.0] * 80, [1.0] * 80), train)
    assert found["pair_accuracy"]["value"] == 0.9
    assert found["pair_accuracy.test"] == found["pair_accuracy"]
    assert found["answer_only_accuracy"]["value"] == 0.0
    assert found["characters_only_accuracy"]["value"] == 1.0
    assert counts["best_baseline"] == "the characters"
    assert found["margin_over_baselines"] == found["pair_accuracy"]["low"] - 1.0
    assert counts["length_matched"]["pairs"] == found["length_matched_accuracy"]["n"]
    assert sum(counts["margin_histogram"]["counts"]) == sum(row["n"] for row in counts["calibration"]) == 80


def test_a_constant_reward_is_right_on_nothing_and_correlates_with_nothing():
    pairs = from_two_sources(40, 1)
    same = PairScores(pairs, [0.3] * 40, [0.3] * 40)
    found, _ = measure_reward(same, same, pairs)
    assert found["pair_accuracy"]["value"] == 0.0
    assert "length_correlation" not in found
    assert weakness(found)

"""Copies are found as surely as the S-curve says, against exact Jaccard over all pairs; and nothing else is dropped."""

from __future__ import annotations

import random

import numpy as np
import pytest

from mengya.corpus.dedup import (
    NGRAM,
    band_keys,
    candidate_pairs,
    exact_duplicates,
    exact_key,
    jaccard,
    near_duplicates,
    shingles,
)

HAN = [chr(code) for code in range(0x4E00, 0x4E00 + 800)]


def random_texts(count: int, length: int, seed: int) -> list[str]:
    rng = random.Random(f"{seed}:texts")
    return ["".join(rng.choices(HAN, k=length)) for _ in range(count)]


def edited(text: str, num_edits: int, rng: random.Random) -> str:
    characters = list(text)
    for place in rng.sample(range(len(characters)), num_edits):
        characters[place] = rng.choice(HAN)
    return "".join(characters)


def plain_jaccard(a: str, b: str) -> float:
    """Over Python sets of 5-grams, the definition itself."""
    a_grams, b_grams = ({text[i : i + NGRAM] for i in range(len(text) - NGRAM + 1)} for text in (a, b))
    return len(a_grams & b_grams) / len(a_grams | b_grams)


def test_exact_copies_differ_in_space_punctuation_and_case_only() -> None:
    texts = ["你好，World！", "你 好world", "3-1=2", "3+1=4", "3-1=2", "……", "！！"]
    found = [(duplicate.index, duplicate.of) for duplicate in exact_duplicates(texts)]
    assert found == [(1, 0), (4, 2)]
    assert exact_key("") != exact_key("。")


def test_hashed_jaccard_is_the_jaccard_of_the_definition() -> None:
    rng = random.Random(1)
    for text in random_texts(30, 120, 1):
        other = edited(text, rng.randrange(30), rng)
        assert jaccard(shingles(text), shingles(other)) == pytest.approx(plain_jaccard(text, other))
    assert jaccard(shingles("短文"), shingles("短文")) == 1.0


def test_band_keys_do_not_depend_on_the_neighbours_in_a_batch() -> None:
    texts = [*random_texts(20, 50, 2), "短", "", "恰好五个字", *random_texts(5, 4, 3)]
    together = band_keys(texts)
    alone = np.concatenate([band_keys([text]) for text in texts])
    np.testing.assert_array_equal(together, alone)
    assert (together[[20, 21]] == 0).all()


def test_recall_and_precision_against_all_pairs() -> None:
    rng = random.Random(3)
    originals = random_texts(300, 150, 4)
    texts = originals + [edited(text, rng.randrange(1, 9), rng) for text in originals]
    truth = [plain_jaccard(texts[i], texts[i + 300]) for i in range(300)]
    proposed = {(int(i), int(j)) for i, j in candidate_pairs(band_keys(texts))}
    for bound, wanted in ((0.85, 0.97), (0.8, 0.95)):
        above = [i for i in range(300) if truth[i] >= bound]
        assert len(above) > 50
        assert sum((i, i + 300) in proposed for i in above) >= wanted * len(above)
    dropped = near_duplicates(texts, threshold=0.8)
    assert {tuple(sorted((duplicate.index, duplicate.of))) for duplicate in dropped} <= {
        (i, i + 300) for i in range(300) if truth[i] >= 0.8
    }
    for duplicate in dropped:
        assert duplicate.similarity == pytest.approx(
            plain_jaccard(texts[duplicate.index], texts[duplicate.of]), abs=1e-4
        )


def test_the_longest_is_kept_and_the_first_among_equals() -> None:
    (text,) = random_texts(1, 200, 5)
    texts = [text, text + "尾巴", text[:-2] + "他她"]
    assert [(duplicate.index, duplicate.of) for duplicate in near_duplicates(texts)] == [(0, 1), (2, 1)]
    same = [text[:-1] + "甲", text[:-1] + "乙"]
    assert [(duplicate.index, duplicate.of) for duplicate in near_duplicates(same)] == [(1, 0)]


def test_a_chain_does_not_drop_what_is_unlike_the_kept_text() -> None:
    (text,) = random_texts(1, 300, 6)
    steps = [text[shift : shift + 200] for shift in range(0, 100, 12)]  # neighbours 0.89 alike, the ends 0.34
    assert plain_jaccard(steps[0], steps[1]) > 0.8
    assert plain_jaccard(steps[0], steps[-1]) < 0.6
    for duplicate in near_duplicates(steps):
        assert plain_jaccard(steps[duplicate.index], steps[duplicate.of]) >= 0.6
    assert len(near_duplicates(steps)) < len(steps) - 1


def test_a_crowd_of_copies_leaves_one() -> None:
    rng = random.Random(7)
    (text,) = random_texts(1, 200, 7)
    crowd = [edited(text, 2, rng) for _ in range(200)] + random_texts(50, 200, 8)
    dropped = near_duplicates(crowd)
    assert len(dropped) == 199
    assert all(duplicate.of < 200 for duplicate in dropped)

"""Copies are found as surely as the S-curve says, against exact Jaccard over all pairs; and nothing else is dropped."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mengya.corpus import copies, lsh, minhash
from mengya.corpus.copies import ShingleCache
from mengya.corpus.dedup import (
    NGRAM,
    band_keys,
    candidate_pairs,
    canonical,
    exact_duplicates,
    exact_key,
    find_duplicates,
    jaccard,
    near_duplicates,
    shingles,
    write_signatures,
)
from mengya.corpus.lsh import bucket_pairs, merged, proposal_probability
from mengya.corpus.minhash import SignatureFiles
from mengya.corpus.shingles import (
    canonical_codes,
    count_shingles,
    exact_keys,
    jaccards,
    padded_shingles,
    sorted_shingles,
)
from mengya.errors import UserError
from mengya.files import read_json, write_json

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


def write_parts(texts: list[str], sizes: list[int], directory: Path) -> list[Path]:
    stems, start = [], 0
    for number, size in enumerate(sizes):
        stems.append(directory / f"part-{number}")
        assert write_signatures(iter(texts[start : start + size]), stems[-1]) == size
        start += size
    assert start == len(texts)
    return stems


def mixed_texts(seed: int) -> list[str]:
    """Originals, near copies, exact copies, short and empty texts, shuffled."""
    rng = random.Random(seed)
    originals = random_texts(80, 150, seed)
    near = [edited(text, rng.randrange(1, 6), rng) for text in originals for _ in range(2)]
    exact = [f"{text[:40]}， {text[40:]}。" for text in originals[::4]]
    texts = [*originals, *near, *exact, "短", "短", "", "。", "恰好五个字"]
    rng.shuffle(texts)
    return texts


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.text("ΑΣβİK，。 \nab中文"), max_size=8))
def test_canonical_forms_of_many_are_those_of_each(texts: list[str]) -> None:
    codes, offsets = canonical_codes(texts)
    joined = codes.tobytes().decode("utf-32-le")
    assert [joined[start:end] for start, end in pairwise(offsets.tolist())] == [canonical(text) for text in texts]
    keys = exact_keys(texts, codes, offsets)
    own = [keys[start : start + 16] for start in range(0, len(keys), 16)]
    first = [own.index(key) for key in own]
    assert first == [list(map(exact_key, texts)).index(exact_key(text)) for text in texts]
    for text, key in zip(texts, own, strict=True):
        assert exact_keys([text], *canonical_codes([text])) == key


def test_a_key_of_two_byte_characters_is_not_that_of_four_byte_ones() -> None:
    wide = "\U0001f600\U00024b62"
    texts = [wide, wide.encode("utf-32-le").decode("utf-16-le"), "一" + wide, "一" + wide + "。"]
    keys = exact_keys(texts, *canonical_codes(texts))
    assert len({keys[start : start + 16] for start in range(0, 64, 16)}) == 3
    assert keys[32:48] == keys[48:]


def test_shingles_of_many_are_those_of_each() -> None:
    texts = [*random_texts(10, 60, 9), "哈" * 30, "四个字的", "", "哈" * 30, "五个字的话"]
    hashes, offsets = sorted_shingles(*canonical_codes(texts))
    for text, start, end in zip(texts, offsets[:-1], offsets[1:], strict=True):
        own = shingles(text) if len(text) >= NGRAM else np.zeros(0, np.uint64)
        np.testing.assert_array_equal(hashes[start:end], own)
    codes, borders = canonical_codes(texts)
    padded = padded_shingles(codes, borders)
    for text, start, end in zip(texts, borders[:-1], borders[1:], strict=True):
        if len(text) >= NGRAM:
            assert set(padded[start:end].tolist()) == set(shingles(text).tolist())
    assert count_shingles(padded, borders).tolist() == np.diff(offsets).tolist()


def test_a_hash_is_the_polynomial_of_five_code_points() -> None:
    def mixed(value: int) -> int:
        value ^= value >> 29
        value = value * 0xBF58476D1CE4E5B9 % 2**64
        return value ^ value >> 32

    for text in ("一二三四五六", "a\U0001f600b", ""):
        expected = set()
        for start in range(max(len(text) - NGRAM, 0) + 1):
            value = 0
            for character in text[start : start + NGRAM]:
                value = (value * 0x9E3779B97F4A7C15 + ord(character) + 1) % 2**64
            expected.add(mixed(value))
        assert shingles(text).tolist() == sorted(expected)


def test_many_jaccards_are_those_of_each_pair() -> None:
    rng = random.Random(24)
    texts = ["", "", "短", *random_texts(6, 60, 24)]
    texts += [edited(text, 3, rng) for text in texts[3:]]
    hashes, offsets = sorted_shingles(*canonical_codes(texts))
    own = [hashes[start:end] for start, end in pairwise(offsets.tolist())]
    pairs = [(rng.randrange(len(texts)), rng.randrange(len(texts))) for _ in range(60)]
    sets = [set(each.tolist()) for each in own]
    expected = [len(sets[i] & sets[j]) / max(len(sets[i] | sets[j]), 1) for i, j in pairs]
    assert jaccards([(own[i], own[j]) for i, j in pairs]) == expected
    assert jaccards([]) == []


def test_the_s_curve_is_what_is_measured() -> None:
    # 1,000 pairs of texts of one similarity each: the share of proposed pairs within 4.5 standard deviations.
    rng = random.Random(10)
    for num_edits in (6, 12, 18):
        originals = random_texts(1000, 204, 11)
        places = range(4, 204, 200 // num_edits)[:num_edits]  # 5-grams apart, so that all pairs have one Jaccard
        copies = ["".join(rng.choice("甲乙") if i in places else c for i, c in enumerate(text)) for text in originals]
        similarity = plain_jaccard(originals[0], copies[0])
        assert similarity == pytest.approx((200 - 5 * num_edits) / (200 + 5 * num_edits), abs=0.01)
        proposed = {(i, j) for i, j in candidate_pairs(band_keys(originals + copies)).tolist()}
        share = sum((i, i + 1000) in proposed for i in range(1000)) / 1000
        expected = proposal_probability(similarity)
        assert abs(share - expected) <= 4.5 * (expected * (1 - expected) / 1000) ** 0.5 + 1e-3


def test_pairs_of_a_bucket_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(12)
    keys = rng.integers(0, 60, 200).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    expected = [i * 200 + j for i in range(200) for j in range(i + 1, 200) if keys[i] == keys[j] != 0]
    assert bucket_pairs(keys).tolist() == expected
    crowd = np.array(
        [7 << 40] * 40 + [0] * 3, dtype=np.uint64
    )  # larger than what proposes all its pairs: connected still
    found = {divmod(number, 43) for number in bucket_pairs(crowd).tolist()}
    assert found == {(0, j) for j in range(1, 40)} | {(j, j + 1) for j in range(1, 39)}
    assert bucket_pairs(np.zeros(0, np.uint64)).tolist() == []


def test_the_merge_of_files_is_their_union(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lsh, "_BLOCK", 7)
    rng = np.random.default_rng(13)
    lists = [np.unique(rng.integers(0, 300, size)) for size in (0, 1, 50, 100, 7)]
    for number, values in enumerate(lists):
        np.save(tmp_path / f"{number}.npy", values)
    blocks = list(merged(tmp_path / f"{number}.npy" for number in range(len(lists))))
    union = sorted({value for values in lists for value in values.tolist()})
    assert np.concatenate(blocks).tolist() == union
    for after in (-1, union[0], union[60], 299):
        rest = [*merged([tmp_path / f"{number}.npy" for number in range(len(lists))], after), np.zeros(0, np.int64)]
        assert np.concatenate(rest).tolist() == [value for value in union if value > after]
    assert max(map(len, blocks)) <= 7 * len(lists)


def test_a_part_on_disk_is_its_texts_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minhash, "_BLOCK", 16)
    texts = mixed_texts(14)
    files = SignatureFiles(write_parts(texts, [len(texts) - 30, 0, 30], tmp_path))
    assert files.num_documents == len(texts)
    for band, keys in enumerate(band_keys(texts).T):
        np.testing.assert_array_equal(files.bands(range(band, band + 1)), [keys])
    assert files.exact().tobytes() == exact_keys(texts, *canonical_codes(texts))
    assert files.lengths().tolist() == [len(canonical(text)) for text in texts]
    assert files.num_shingles().tolist() == [
        len({canonical(text)[i : i + NGRAM] for i in range(len(canonical(text)) - NGRAM + 1)}) for text in texts
    ]


def test_parts_are_deduplicated_as_one_list(tmp_path: Path) -> None:
    texts = mixed_texts(15)
    exact = exact_duplicates(texts)
    left = sorted(set(range(len(texts))) - {duplicate.index for duplicate in exact})
    near = [
        replace(duplicate, index=left[duplicate.index], of=left[duplicate.of])
        for duplicate in near_duplicates([texts[index] for index in left])
    ]
    assert len(exact) >= 20
    assert len(near) >= 80
    for sizes in ([len(texts)], [10, 0, 100, len(texts) - 110]):
        directory = tmp_path / str(len(sizes))
        stems = write_parts(texts, sizes, directory)
        found = list(find_duplicates(stems, texts.__getitem__, directory=directory))
        assert found == [*exact, *near]
        assert not (directory / "finding").exists()
    assert list(find_duplicates([], texts.__getitem__, directory=tmp_path)) == []


def test_the_preferred_source_is_kept(tmp_path: Path) -> None:
    (text,) = random_texts(1, 200, 16)
    texts = [text + "长一些的尾巴", text, text + "。", text[:-1] + "末"]
    stems = write_parts(texts, [1, 1, 1, 1], tmp_path)

    def kept(**options: Any) -> set[int]:
        found = find_duplicates(stems, texts.__getitem__, directory=tmp_path, **options)
        return {0, 1, 2, 3} - {duplicate.index for duplicate in found}

    assert kept() == {0}
    assert kept(keep="first") == {0}
    assert kept(keep="first", priority=[1, 1, 0, 1]) == {2}
    assert kept(keep="first", priority=[2, 1, 1, 1]) == {1}
    assert kept(keep="longest", priority=[1, 1, 0, 1]) == {0}


def test_no_pair_of_copies_survives_and_nothing_else_is_dropped(tmp_path: Path) -> None:
    texts = [text for text in mixed_texts(17) if len(text) > NGRAM]
    alike = {
        (i, j)
        for i in range(len(texts))
        for j in range(i)
        if plain_jaccard(canonical(texts[i]), canonical(texts[j])) >= 0.8
    }
    found = list(find_duplicates(write_parts(texts, [len(texts)], tmp_path), texts.__getitem__, directory=tmp_path))
    dropped = {duplicate.index for duplicate in found}
    assert len(alike) > 100
    assert sum(i in dropped or j in dropped for i, j in alike) >= 0.99 * len(alike)
    assert dropped <= {index for pair in alike for index in pair}
    for duplicate in found:
        assert duplicate.kind == "exact_duplicate" or duplicate.of not in dropped
        likeness = plain_jaccard(canonical(texts[duplicate.index]), canonical(texts[duplicate.of]))
        assert duplicate.similarity == pytest.approx(likeness, abs=1e-4)
        assert likeness >= 0.6


def test_many_kept_texts_of_a_cluster_are_searched_as_one_by_one() -> None:
    rng = random.Random(18)
    kept, plain = copies._Kept(), []
    for index, text in enumerate(random_texts(100, 60, 19)):
        text = "共同的开头很长很长" + text
        hashes = shingles(edited(text, 5, rng))
        expected = max(((jaccard(hashes, own), -number) for number, own in plain), default=(0.0, 1))
        assert kept.closest(hashes) == (pytest.approx(expected[0]), -expected[1])
        kept.add(index, shingles(text))
        plain.append((index, shingles(text)))
        assert kept.closest(shingles(text)) == (1.0, index)


def test_a_small_cache_changes_nothing_and_texts_are_fetched_in_order() -> None:
    texts = random_texts(50, 100, 20)
    asked: list[int] = []

    def text_of(index: int) -> str:
        asked.append(index)
        return texts[index]

    cache = ShingleCache(text_of, capacity=5 * 96 * 8)
    for wanted in ([30, 3, 9], range(40), [3, 41]):
        found = cache.many(wanted)
        assert found.keys() == set(wanted)
        for index, hashes in found.items():
            np.testing.assert_array_equal(hashes, shingles(texts[index]))
    assert asked[:3] == [3, 9, 30]
    assert asked[3:40] == [index for index in range(40) if index not in (3, 9, 30)]
    assert asked[40:] == [3, 41]  # the others had to leave


def test_a_chain_through_many_steps_is_one_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = mixed_texts(21)
    at_once = near_duplicates(texts)
    monkeypatch.setattr(copies, "STEP_SHINGLES", 500)  # a few texts a step
    monkeypatch.setattr(copies, "_FEW", 2)
    assert near_duplicates(texts) == at_once


class Killed(BaseException):
    """What no `except Exception` sees, as nothing sees a kill."""


def test_a_killed_search_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after every file that it finishes, it ends with the same, and asks for a text again for one step at most."""
    monkeypatch.setattr(copies, "STEP_SHINGLES", 4000)  # some twenty texts a step
    monkeypatch.setattr(lsh, "KEYS", 2000)
    monkeypatch.setattr(lsh, "_BLOCK", 50)
    texts = mixed_texts(25) + [text + "。" for text in mixed_texts(25)[:9]]
    stems = write_parts(texts, [100, len(texts) - 100], tmp_path)
    asked: list[int] = []

    def text_of(index: int) -> str:
        asked.append(index)
        return texts[index]

    expected = list(find_duplicates(stems, text_of, directory=tmp_path))
    num_asked = len(asked)
    fetched_a_step = 4000 // 140 + 4  # texts have some 146 shingles; and what was kept of a cluster of a few

    written: list[Path] = []
    real_replace = os.replace

    def replace_and_die(source: Any, target: Any) -> None:
        real_replace(source, target)
        written.append(Path(target))
        raise Killed

    asked.clear()
    monkeypatch.setattr(os, "replace", replace_and_die)
    kills = 0
    while True:
        try:
            found = list(find_duplicates(stems, text_of, directory=tmp_path))
            break
        except Killed:
            kills += 1
    names = [path.name for path in written]
    assert found == expected
    assert kills == len(names) == len(set(names)), "every step was finished once"
    for kind, least in (("candidates", 3), ("joined", 5), ("dropped", 2), ("exact", 1)):
        assert sum(name.startswith(kind) for name in names) >= least
    # Every run begins with an empty cache, so it fetches what its one step needs, and the kept of a cluster in progress.
    assert len(asked) <= num_asked + kills * fetched_a_step
    assert not (tmp_path / "finding").exists()


def test_what_another_search_left_is_not_taken(tmp_path: Path) -> None:
    texts = mixed_texts(26)
    stems = write_parts(texts, [len(texts)], tmp_path)
    expected = list(find_duplicates(stems, texts.__getitem__, threshold=0.9, directory=tmp_path))
    abandoned = find_duplicates(stems, texts.__getitem__, threshold=0.8, directory=tmp_path)
    assert any(duplicate.kind == "near_duplicate" for duplicate in islice(abandoned, len(expected)))
    assert (tmp_path / "finding").exists()
    assert list(find_duplicates(stems, texts.__getitem__, threshold=0.9, directory=tmp_path)) == expected


def test_absent_and_foreign_signatures_are_the_users_mistake(tmp_path: Path) -> None:
    stems = write_parts(["一二三四五六"], [1], tmp_path)
    with pytest.raises(UserError, match="never written"):
        find_duplicates([*stems, tmp_path / "other"], str, directory=tmp_path)
    settings = tmp_path / "part-0.sig" / "signatures.json"
    write_json(settings, {**read_json(settings), "rows": 5})
    with pytest.raises(UserError, match="other settings"):
        find_duplicates(stems, str, directory=tmp_path)


def test_a_stopped_writer_leaves_no_part(tmp_path: Path) -> None:
    def texts() -> Iterator[str]:
        yield from random_texts(10, 50, 22)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_signatures(texts(), tmp_path / "part")
    assert list(tmp_path.iterdir()) == []


DATA = Path(os.environ.get("MENGYA_DATA", Path(__file__).parents[2] / "../shared/data"))


@pytest.mark.skipif(not DATA.exists(), reason=f"no real data at {DATA} (set MENGYA_DATA)")
def test_real_documents_with_planted_copies(tmp_path: Path) -> None:
    with zstandard.open(DATA / "pretrain" / "web_news_inews.jsonl.zst", "rt", encoding="utf-8") as file:
        originals = [json.loads(line)["text"][:600] for line in islice(file, 300)]
    rng = random.Random(23)
    originals = [text for text in originals if len(set(canonical(text))) >= 50]
    planted = [edited(text, 2, rng) for text in originals]
    alike = [plain_jaccard(canonical(a), canonical(b)) >= 0.9 for a, b in zip(originals, planted, strict=True)]
    texts = originals + planted
    assert sum(alike) > 100
    found = list(find_duplicates(write_parts(texts, [len(texts)], tmp_path), texts.__getitem__, directory=tmp_path))
    dropped = {duplicate.index for duplicate in found}
    assert all({index, index + len(originals)} & dropped for index in range(len(originals)) if alike[index])
    assert all(plain_jaccard(canonical(texts[d.index]), canonical(texts[d.of])) >= 0.6 for d in found)

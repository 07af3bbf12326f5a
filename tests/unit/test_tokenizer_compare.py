import json

import numpy as np
import pytest
from small_tokenizer import TEXTS, small_tokenizer
from tokenizers import Tokenizer, decoders, models
from typer.testing import CliRunner

from mengya.cli import app
from mengya.errors import UserError
from mengya.files import read_json
from mengya.tokenizer.bulk import BulkEncoder
from mengya.tokenizer.compare import compare, default_texts, partial_ids, read_texts
from mengya.tokenizer.encode import load_tokenizer
from mengya.tokenizer.train import save_tokenizer

ODD = ["", "<|im_end|>苹果", " \n\n x", "𠮷🌞é\u0301\x00", "１２３ 456"]


def run(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_comparison_holds_the_quotients_of_the_counts(tmp_path):
    tokenizer = small_tokenizer()
    result = compare({"ours": (tmp_path, tokenizer)}, {"fruit": ["苹果", "白菜𠮷"]}, "3m")
    own = result["tokenizers"]["ours"]
    ids = [*tokenizer.encode("苹果"), *tokenizer.encode("白菜𠮷")]
    row = own["kinds"]["fruit"]
    assert (row["tokens"], row["characters"]) == (len(ids), 5)
    assert row["characters_per_token"] == 5 / len(ids)
    assert row["bytes_per_token"] == 16 / len(ids)
    assert row["partial_share"] == sum("\ufffd" in tokenizer.decode([i]) for i in ids) / len(ids)
    assert row["unknown_share"] == 0
    assert row["round_trip"] == 1
    # 3m: width 192, tied; 5 layers of 4·192² + 3·192·512 + 2·192, and the last norm.
    rest = 5 * (4 * 192**2 + 3 * 192 * 512 + 2 * 192) + 192
    assert own["embedding_share"] == pytest.approx(370 * 192 / (370 * 192 + rest))


def test_tokens_of_half_a_character_are_those_that_do_not_decode():
    tokenizer = small_tokenizer()
    partial = partial_ids(tokenizer)
    expected = [i >= 6 and "\ufffd" in tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    np.testing.assert_array_equal(partial, expected)


def test_byte_fallback_and_unknown_tokens_are_told_apart(tmp_path):
    vocabulary = {"<unk>": 0, "</s>": 1, "a": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    save_tokenizer(tokenizer, tmp_path / "t")
    config = tmp_path / "t" / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": "</s>"}), encoding="utf-8")
    row = compare({"t": (tmp_path, load_tokenizer(tmp_path / "t"))}, {"k": ["aé"]}, "3m")["tokenizers"]["t"]["kinds"][
        "k"
    ]
    assert (row["tokens"], row["partial_share"], row["unknown_share"]) == (3, 2 / 3, 0)


def test_a_bulk_encoder_gives_the_reference_ids_whoever_encodes():
    encoder = BulkEncoder(small_tokenizer().backend)
    encoder.check([*TEXTS, *ODD])
    ids, lengths = encoder.encode([*TEXTS, *ODD])
    assert [own.tolist() for own in np.split(ids, np.cumsum(lengths)[:-1])] == [
        small_tokenizer().encode(text) for text in [*TEXTS, *ODD]
    ]
    assert encoder.encode([])[0].tolist() == []


def test_fastokens_encodes_where_it_is_installed():
    pytest.importorskip("fastokens", reason="optional: pip install mengya[fastokens]")
    encoder = BulkEncoder(small_tokenizer().backend)
    encoder.check([*TEXTS, *ODD])
    assert encoder.name == "fastokens"


def test_an_encoder_that_differs_in_one_id_is_not_used(capsys):
    encoder = BulkEncoder(small_tokenizer().backend)

    class Wrong:
        def encode_batch_flat(self, texts, split_special_tokens):
            assert split_special_tokens
            ids = [np.array(small_tokenizer().encode(text), "<u4") for text in texts]
            ids[-1][-1] += 1
            offsets = np.cumsum([0, *map(len, ids)]).astype("<u8")
            return np.concatenate(ids).tobytes(), offsets.tobytes()

    encoder._fast = Wrong()
    encoder.check(TEXTS[:5])
    assert encoder.name == "tokenizers"
    assert "other ids" in capsys.readouterr().err


def test_the_embedded_texts_are_chinese_and_digits():
    texts = default_texts()
    assert all(len(own) > 20 for own in texts.values())
    digits = "".join(texts["digits"])
    assert sum(character.isdigit() for character in digits) / len(digits) > 0.3


def test_texts_are_named_by_kind(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "苹果"}\n{"text": "白菜"}\n', encoding="utf-8")
    assert read_texts([f"fruit={tmp_path / 'a.jsonl'}"]) == {"fruit": ["苹果", "白菜"]}
    with pytest.raises(UserError, match="not KIND=FILE"):
        read_texts(["a.jsonl"])


def test_train_import_and_compare_on_the_command_line(tmp_path):
    for name, texts in (("河边", TEXTS[:30]), ("集市", TEXTS[30:])):
        rows = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(rows, encoding="utf-8")
    sources = [f"{name}={tmp_path / name}.jsonl" for name in ("河边", "集市")]
    run("tokenizer", "train", *sources, "--out", tmp_path / "a", "--vocab-size", 300, "--share", "集市=0.25",
        "--max-characters", 2000)  # fmt: skip
    record = read_json(tmp_path / "a" / "training.json")
    assert record["sources"]["集市"] <= 500 < 1000 < record["sources"]["河边"] <= 1500
    assert record["peak_memory_bytes"] > 1 << 20
    run("tokenizer", "import", tmp_path / "a", "--out", tmp_path / "b")
    assert load_tokenizer(tmp_path / "b").fingerprint == load_tokenizer(tmp_path / "a").fingerprint
    output = run(
        "tokenizer", "compare", tmp_path / "a", tmp_path / "b", "--text", f"k={tmp_path / '河边.jsonl'}",
        "--json", tmp_path / "c.json", "--plot", tmp_path / "c.svg",
    )  # fmt: skip
    rates = [own["kinds"]["k"]["characters_per_token"] for own in read_json(tmp_path / "c.json")["tokenizers"].values()]
    assert rates[0] == rates[1] > 0.5
    assert "trained on" in output
    assert "<svg" in (tmp_path / "c.svg").read_text(encoding="utf-8")

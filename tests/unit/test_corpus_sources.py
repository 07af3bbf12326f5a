"""Every row of a file is either given or counted among the rejects, whatever is wrong with the file."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from mengya.corpus import json_rows, sources, streams
from mengya.corpus.sources import Rejects, container_of, read_rows
from mengya.errors import UserError

ROWS = [{"text": f"第{number}个故事：从前有一只小猫。"} for number in range(5)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def read(path: Path | str) -> tuple[list[dict], Rejects]:
    rejects = Rejects()
    return [row for _, row in read_rows(path, rejects)], rejects


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_the_same_rows_come_out_of_every_container_and_compression(tmp_path: Path) -> None:
    csv = "text\n" + "".join(row["text"] + "\n" for row in ROWS)
    pretty = json.dumps(ROWS, ensure_ascii=False, indent=2)
    contents = {
        "a.jsonl": LINES,
        "lines.json": LINES,
        "array.json": json.dumps(ROWS),
        "pretty.json": pretty,
        "a.csv": csv,
        "a.tsv": csv,
    }
    for name, content in contents.items():
        put(tmp_path / name, content)
        put(tmp_path / f"{name}.gz", gzip.compress(content.encode()))
        put(tmp_path / f"{name}.zst", zstandard.compress(content.encode()))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for file in sorted(tmp_path.iterdir()):
        rows, rejects = read(file)
        assert rows == ROWS, file.name
        assert rejects.num_rows == 5
        assert not rejects.counts


def test_a_zip_gives_the_rows_of_all_its_readable_files(tmp_path: Path) -> None:
    file = tmp_path / "a.json.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b.jsonl", LINES)
        archive.writestr("a.json", json.dumps(ROWS))
        archive.writestr("__MACOSX/a.json", "x")
        archive.writestr("readme.md", "x")
        archive.writestr("c.parquet", "x")
    rejects = Rejects()
    found = list(read_rows(file, rejects))
    assert [row for _, row in found] == ROWS + ROWS
    assert found[5][0] == f"{file}/b.jsonl:1"
    assert rejects.counts == {"parquet_inside_zip": 1}
    assert container_of(file) == "JSON array and 2 more, .zip"


def test_a_damaged_zip_is_counted_or_the_users_error(tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.jsonl", LINES)
    data = file.read_bytes()
    half = data.index("第4".encode())
    put(file, data[:half] + b"XYZ" + data[half + 3 :])  # the checksum is wrong
    assert read(file)[1].counts["corrupt_file"] == 1
    with pytest.raises(UserError, match="not a zip file"):
        read(put(file, data[: len(data) // 2]))


YAML = """categories:
- AI
conversations:
- - 你好吗
  - 是
- - 哪一年
  - 1963
  - Yes
"""


def test_yaml_scalars_are_text_and_entries_rows(tmp_path: Path) -> None:
    file = put(tmp_path / "a.yml", YAML)
    rejects = Rejects()
    assert list(read_rows(file, rejects)) == [
        (f"{file}:4", {"items": ["你好吗", "是"], "category": "AI"}),
        (f"{file}:6", {"items": ["哪一年", "1963", "Yes"], "category": "AI"}),
    ]
    assert read(put(tmp_path / "b.yaml", "- {a: x}\n- plain\n"))[0] == [{"a": "x"}]
    for bad in ("a: [", "a: &x [1]\nb: *x\n", "\0"):
        rows, rejects = read(put(tmp_path / "c.yml", bad))
        assert (rows, rejects.counts) == ([], {"invalid_yaml": 1})


def test_an_object_of_objects_gives_its_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {f"k{number}": {"text": f'第{number}个 " }} {{', "more": {"text": "x"}} for number in range(2000)}
    expected = [{"id": key, **row} for key, row in value.items()]
    monkeypatch.setattr(streams, "SNIFF_BYTES", 1000)
    monkeypatch.setattr(json_rows, "SNIFF_BYTES", 1000)
    for indent in (None, 2):
        text = json.dumps(value, ensure_ascii=False, indent=indent)
        file = put(tmp_path / "a.json", text)
        assert container_of(file) == "JSON object of objects"
        rows, rejects = read(file)
        assert rows == expected
        assert not rejects.counts
        rows, rejects = read(put(file, text.replace('"第7个', '"第7个" x', 1)))
        assert rows == expected[:7] + expected[8:]
        assert rejects.counts == {"invalid_json": 1}


def test_a_pretty_printed_row_and_lines_of_objects_are_no_object_of_objects(tmp_path: Path) -> None:
    pair = {"chosen": {"role": "user", "text": "x"}, "rejected": {"role": "user", "text": "y"}}
    assert read(put(tmp_path / "a.json", json.dumps(pair, indent=1)))[0] == [pair]
    triple = {name: {"text": "x"} for name in "abc"}
    assert read(put(tmp_path / "a.json", f"{json.dumps(triple)}\n" * 2))[0] == [triple, triple]


def test_a_list_of_messages_is_one_dialogue(tmp_path: Path) -> None:
    said = [{"role": "client", "content": "问"}, {"role": "counselor", "content": "答", "annotation": []}]
    assert read(put(tmp_path / "a.json", json.dumps(said, indent=1)))[0] == [{"items": said}]
    cards = [{"role": "李白", "content": "诗人"}, {"role": "杜甫", "content": "诗人"}]
    assert read(put(tmp_path / "a.json", json.dumps(cards)))[0] == cards


def test_several_compressed_frames_in_one_file_are_one_stream(tmp_path: Path) -> None:
    half = len(LINES) // 2
    for name, compress in (("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)):
        frames = compress(LINES[:half].encode()) + compress(LINES[half:].encode())
        assert read(put(tmp_path / name, frames))[0] == ROWS


def test_origin_names_the_line_on_which_a_row_begins(tmp_path: Path) -> None:
    csv = put(tmp_path / "a.csv", 'title,text\nx,"two\nlines"\ny,one\n')
    assert [origin.rpartition(":")[2] for origin, _ in read_rows(csv, Rejects())] == ["2", "4"]
    array = put(tmp_path / "a.json", '[\n {"a": 1},\n\n {"a":\n 2},\n {"a": 3}]')
    assert [origin.rpartition(":")[2] for origin, _ in read_rows(array, Rejects())] == ["2", "4", "6"]


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_other_encodings_are_recognised_and_announced(tmp_path: Path, encoding: str) -> None:
    for name, content in (("a.jsonl", LINES), ("a.json", json.dumps(ROWS, ensure_ascii=False))):
        rows, rejects = read(put(tmp_path / name, content.encode(encoding)))
        assert rows == ROWS
        assert list(rejects.encodings) == [{"utf-16": "utf-16-le", "utf-8-sig": "utf-8"}.get(encoding, encoding)]


def test_a_bad_line_is_counted_with_its_place_and_the_others_are_read(tmp_path: Path) -> None:
    lines = LINES.encode().splitlines(keepends=True)
    bad = {
        "invalid_json": b'{"text": "broken\n',
        "not_an_object": b"42\n",
        "undecodable": b'{"text": "\xff\xfe\xff"}\n',
        "nul_bytes": b'{"text": "a\0b"}\n',
        "lone_surrogate": rb'{"text": "\ud83d"}' + b"\n",
    }
    for reason, line in bad.items():
        file = put(tmp_path / f"{reason}.jsonl", b"".join([*lines[:2], line, *lines[2:]]))
        rows, rejects = read(file)
        assert rows == ROWS
        assert rejects.counts == {reason: 1}
        assert [(sample.file, sample.line) for sample in rejects.samples] == [(str(file), 3)]
        json.dumps(list(rejects.rows()), ensure_ascii=False).encode()  # can be written


def test_a_broken_element_of_an_array_costs_itself_alone(tmp_path: Path) -> None:
    text = json.dumps(ROWS, ensure_ascii=False).replace('{"text": "第2', '{"text" "第2')
    rows, rejects = read(put(tmp_path / "a.json", text))
    assert rows == ROWS[:2] + ROWS[3:]
    assert rejects.counts == {"invalid_json": 1}


@pytest.mark.parametrize("sniffed", [200, 1 << 20])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("outer", [False, True])
def test_a_list_in_a_broken_element_is_not_taken_for_the_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outer: bool, indent: int | None, sniffed: int
) -> None:
    for module in (streams, json_rows):
        monkeypatch.setattr(module, "SNIFF_BYTES", sniffed)
    rows = [
        {"conversations": [{"from": name, "value": f"{number}号] }}, {{"} for name in ("human", "gpt")], "id": number}
        for number in range(60)
    ]
    text = json.dumps([[row] for row in rows] if outer else rows, ensure_ascii=False, indent=indent)
    for number in (0, 30, 59):
        for damage in (f'"{number}号"]', f'{number}号"'):
            spoiled = text.replace(f'"{number}号]', damage, 1)
            found, rejects = read(put(tmp_path / "a.json", spoiled))
            assert found == [row for row in rows if row["id"] != number]
            assert rejects.counts == {"invalid_json": 1}
            assert (
                rejects.samples[0].line
                == 1 + text[: text.index(f'"{number}号')].count("\n") - ({None: 0, 1: 4 + outer}[indent])
            )


def test_what_follows_an_array_is_counted(tmp_path: Path) -> None:
    text = json.dumps(ROWS, indent=1)
    rows, rejects = read(put(tmp_path / "a.json", f"{text}\n{text}\n"))
    assert rejects.counts == {"text_after_the_array": 1}
    assert rows == ROWS


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.json.zst", "a.json.gz"])
def test_a_truncated_file_gives_what_was_whole_and_says_so(tmp_path: Path, name: str) -> None:
    rows = [{"text": f"{number * 7919 % 10007:x}" * 9, "number": number} for number in range(3000)]
    text = json.dumps(rows) if ".json." in name else "".join(json.dumps(row) + "\n" for row in rows)
    data = gzip.compress(text.encode()) if name.endswith("gz") else zstandard.compress(text.encode())
    found, rejects = read(put(tmp_path / name, data[: len(data) * 2 // 3]))
    assert rejects.counts == {"truncated_file": 1}
    assert found == rows[: len(found)]
    if name.endswith("gz"):  # zstandard gives whole blocks only, and this file is one
        assert len(found) > 1000


def test_corrupt_compression_is_counted(tmp_path: Path) -> None:
    assert read(put(tmp_path / "a.jsonl.zst", b"not zstandard at all"))[1].counts == {"corrupt_file": 1}


def test_a_very_long_line_is_counted_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_LINE_BYTES", 100_000)
    long = b'{"text": "' + b"x" * 5_000_000 + b'"}\n'
    rows, rejects = read(put(tmp_path / "a.jsonl", LINES.encode() + long + LINES.encode()))
    assert rows == ROWS + ROWS
    assert rejects.counts == {"line_too_long": 1}
    assert rejects.samples[0].line == 6


def test_csv_rows_of_another_width_are_counted(tmp_path: Path) -> None:
    rows, rejects = read(put(tmp_path / "a.csv", "a,b\n1,2\n1,2,3\n4\n5,6\n"))
    assert rows == [{"a": "1", "b": "2"}, {"a": "5", "b": "6"}]
    assert rejects.counts == {"wrong_number_of_fields": 2}


def test_a_text_file_is_one_document_and_a_huge_one_is_cut_at_line_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "第一段。\n\n第二段。\n"
    file = put(tmp_path / "a.txt", text)
    assert read(file)[0] == [{"text": "第一段。\n\n第二段。"}]
    monkeypatch.setattr(sources, "TEXT_DOCUMENT_CHARACTERS", 4)
    assert [row["text"] for row in read(file)[0]] == ["第一段。", "\n第二段。"]


def test_a_directory_and_a_glob_mean_their_files_in_order(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        put(tmp_path / f"{number}.jsonl", json.dumps({"n": number}) + "\n")
    put(tmp_path / "3.jsonl", "")
    put(tmp_path / "README.md", "not data")
    for path in (tmp_path, str(tmp_path / "*.jsonl")):
        rows, rejects = read(path)
        assert rows == [{"n": 0}, {"n": 1}, {"n": 2}]
        assert rejects.counts == {"empty_file": 1}


def test_what_cannot_be_a_source_is_the_users_error(tmp_path: Path) -> None:
    put(tmp_path / "empty.jsonl", "")
    put(tmp_path / "a.docx", "x")
    put(tmp_path / "a.parquet", "not parquet")
    (tmp_path / "folder").mkdir()
    for name in ("missing.jsonl", "empty.jsonl", "a.docx", "a.parquet", "folder", "*.nothing"):
        with pytest.raises(UserError) as error:
            read(tmp_path / name)
        assert name in str(error.value)
        assert error.value.mend


def test_rejects_are_fatal_above_the_allowed_share_only(tmp_path: Path) -> None:
    file = put(tmp_path / "a.jsonl", LINES + "{broken\n" * 5)
    _, rejects = read(file)
    assert rejects.share() == 0.5
    rejects.check(0.5)
    with pytest.raises(UserError, match=r"5 of 10 rows rejected .* invalid_json") as error:
        rejects.check(0.4)
    assert error.value.where == f"{file}:6"


def test_samples_are_bounded_and_keep_room_for_rare_reasons() -> None:
    rejects = Rejects(max_samples=20)
    for line in range(1000):
        rejects.add("common", "f", line, "x" * 1000)
    rejects.add("rare", "f", 1000)
    assert rejects.counts == {"common": 1000, "rare": 1}
    assert [sample.reason for sample in rejects.samples].count("rare") == 1
    assert len(rejects.samples) <= 20
    assert max(len(sample.excerpt) for sample in rejects.samples) == 200

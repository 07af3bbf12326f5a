import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_tokenizer import TEXTS, small_tokenizer

from mengya.corpus.records import Document
from mengya.data import token_files
from mengya.data.loader import PackedLoader
from mengya.data.packing import PADDING
from mengya.data.shard_writer import write_shards
from mengya.data.token_files import JoinedTokens, TokenFiles, index_token_files, open_tokens
from mengya.errors import UserError

END = 7
DOCUMENTS = st.lists(st.lists(st.integers(8, 369), max_size=9), min_size=1, max_size=8)


def write(directory, corpora, *, unended=()):
    """Files as other programs write them: document after document, each closed by the end id."""
    files = []
    for number, documents in enumerate(corpora):
        ids = [token for document in documents for token in [*document, END]] + list(unended)
        file = directory / f"part{number}.bin"
        np.array(ids, "<u2").tofile(file)
        files.append(file)
    return files


def index(files, directory, **options):
    return index_token_files(files, directory, end_id=END, vocab_size=370, **options)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.lists(DOCUMENTS, min_size=1, max_size=4), st.lists(st.integers(8, 369), max_size=3), st.integers(1, 40))
def test_every_document_of_every_file_is_read_between_two_ends_whatever_the_chunk(tmp_path, corpora, unended, chunk):
    expected = []
    for documents in corpora:
        expected += [[END, *document, END] for document in documents if document]
        expected += [[END, *unended]] if unended else []
    files = write(tmp_path, corpora, unended=unended)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_files, "_CHUNK_TOKENS", chunk)
        if not expected:
            with pytest.raises(UserError, match="no document"):
                index(files, tmp_path)
            return
        counts = index(files, tmp_path)
    read = TokenFiles(tmp_path)
    assert [read[i].tolist() for i in range(len(read))] == expected
    assert read.lengths_N.tolist() == [len(document) for document in expected]
    assert counts["documents"] == len(expected)
    assert counts["tokens"] == read.num_tokens == sum(map(len, expected))
    assert counts["empty"] == sum(not document for documents in corpora for document in documents)
    assert counts["unended"] == (len(corpora) if unended else 0)
    for i, document in enumerate(expected):
        for start in range(len(document) - 1):
            inputs, targets = read.piece(i, start, len(document) - 1 - start)
            assert inputs.tolist() == document[start:-1]
            assert targets.tolist() == document[start + 1 :]


def test_held_out_documents_are_those_that_training_does_not_see(tmp_path):
    corpora = [[[8 + i, 9, j + 8] for i in range(20)] for j in range(3)]
    files = write(tmp_path, corpora)
    index(files, tmp_path, num_held_out=5)
    read = TokenFiles(tmp_path)
    held = [ids.tolist() for ids in read.held_out()]
    seen = [read[i][1:-1].tolist() for i in range(len(read))]
    assert len(held) == 5
    assert len({ids[2] for ids in held}) == 3, "from all files"
    assert sorted(held + seen) == sorted(document for documents in corpora for document in documents)
    assert len(index(files, tmp_path, num_held_out=1000)["held_out"]) == 6, "never more than a tenth"


def test_shards_and_token_files_are_read_as_one(tmp_path):
    write_shards([Document(text, "自己") for text in TEXTS[:5]], small_tokenizer(), tmp_path)
    alone = open_tokens(tmp_path)
    index(write(tmp_path, [[[8, 9], [10]]]), tmp_path)
    both = open_tokens(tmp_path)
    assert isinstance(both, JoinedTokens)
    assert [both[i].tolist() for i in range(2)] == [[END, 8, 9, END], [END, 10, END]]
    for i in range(5):
        assert both[2 + i].tolist() == alone[i].tolist()
        assert both.piece(2 + i, 1, 3)[1].tolist() == alone.piece(i, 1, 3)[1].tolist()
    assert [both.source_names[k] for k in both.source_ids_N] == ["token_files"] * 2 + ["自己"] * 5
    assert both.fingerprint != alone.fingerprint
    assert both.num_tokens == alone.num_tokens + 7


def test_packing_places_every_token_of_the_files_once(tmp_path):
    files = write(tmp_path, [[list(range(8, 8 + n)) for n in range(1, 20)] for _ in range(3)])
    index(files, tmp_path)
    read = TokenFiles(tmp_path)
    options = {"row_length": 16, "rows_per_step": 1, "micro_batch_rows": 1, "seed": 1, "pad_id": END}
    loader = PackedLoader(read, **options)
    placed = 0
    while loader.epoch == 0:
        (batch,) = next(loader)
        placed += int((batch.documents_BT != PADDING).sum())
    assert placed == sum(len(read[i]) - 1 for i in range(len(read)))


def test_mistakes_in_the_files_are_named(tmp_path):
    (file,) = write(tmp_path, [[[8, 9]]])
    with pytest.raises(UserError, match=r"part0\.bin: token 9 at 1 is beyond the tokenizer's 9"):
        index_token_files([file], tmp_path, end_id=END, vocab_size=9)
    index([file], tmp_path)
    file.write_bytes(file.read_bytes() * 2)
    with pytest.raises(UserError, match=r"part0\.bin: .*changed"):
        TokenFiles(tmp_path)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="not whole uint16"):
        index([file], tmp_path)
    file.unlink()
    with pytest.raises(UserError, match=r"part0\.bin: .*no longer there"):
        TokenFiles(tmp_path)

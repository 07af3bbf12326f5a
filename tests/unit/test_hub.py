"""A dataset comes whole, verified and resumable from either hub or a folder; what goes wrong is said in one line."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import sys

import pytest
from hub_servers import COMMIT, Handler, Hub, served

from mengya.corpus import catalogue, download, hub
from mengya.corpus.dataset import Dataset
from mengya.errors import UserError
from mengya.serve import data_commands
from mengya.serve.data_commands import get_dataset
from mengya.settings import Source

BIG = random.Random(1).randbytes(300_000)
FILES = {"data/a.jsonl": BIG, "data/b.jsonl": BIG[::-1], "small.jsonl": b'{"text": "x"}\n', "README.md": b"card"}
REPOSITORY = "group/toy"
TOY = Dataset(
    name="toy",
    kind="conversation",
    format="alpaca",
    files=("data/*.jsonl", "small.jsonl"),
    huggingface=REPOSITORY,
    modelscope=REPOSITORY,
    licence="CC0",
    language="zh",
    note="of the tests",
)
WANTED = {name: data for name, data in FILES.items() if name != "README.md"}
FROM_HUBS = pytest.mark.parametrize("origin", ["huggingface", "modelscope"])


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A hub with the toy dataset, both protocols on one address; the data home is empty and retries do not wait."""
    for name in ("HTTP_PROXY", "http_proxy", "HF_TOKEN", "HF_HUB_OFFLINE", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(catalogue, "DATASETS", {"toy": TOY})
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    monkeypatch.setenv("MENGYA_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    toy = Hub({REPOSITORY: dict(FILES)})
    with served(toy) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", url)
        yield toy


@pytest.fixture
def place(tmp_path):
    return tmp_path / "home" / "toy"


def on_disk(place):
    """The files that are there, hidden ones and SOURCE.json aside."""
    files = (file for file in place.rglob("*") if file.is_file() and not file.name.startswith("."))
    return {file.relative_to(place).as_posix(): file.read_bytes() for file in files if file.name != "SOURCE.json"}


def files_for_a_recipe():
    return catalogue.source_files(Source(dataset="toy"))


def interrupted(*_):
    raise KeyboardInterrupt


def requests_of(server, part):
    return [headers for path, headers in server.seen if part in path]


@FROM_HUBS
def test_exactly_the_datasets_files_arrive_and_source_json_says_where_from(server, place, origin):
    get_dataset("toy", origin)
    assert on_disk(place) == WANTED
    record = json.loads((place / "SOURCE.json").read_text())
    assert record["complete"] is True
    assert (record["from"], record["repository"]) == (origin, REPOSITORY)
    assert record["revision"] == (COMMIT if origin == "huggingface" else "master")
    assert record["licence"] == ("gpl-3.0" if origin == "huggingface" else "CC0")
    assert [(file["path"], file["bytes"], file["sha256"]) for file in record["files"]] == [
        (name, len(data), hashlib.sha256(data).hexdigest()) for name, data in sorted(WANTED.items())
    ]


@FROM_HUBS
def test_a_dropped_connection_is_taken_up_at_the_byte_where_it_broke(server, place, origin):
    server.drops["data/a.jsonl"] = 2
    get_dataset("toy", origin)
    assert on_disk(place) == WANTED
    ranges = [headers.get("Range") for headers in requests_of(server, "a.jsonl")]
    assert ranges == [None, f"bytes={len(BIG) // 2}-", f"bytes={len(BIG) // 2 + len(BIG) // 4}-"]


@FROM_HUBS
def test_a_second_call_goes_on_with_the_part_that_an_interrupted_one_left(server, place, origin, monkeypatch):
    server.drops["data/b.jsonl"] = 1
    with monkeypatch.context() as patch:
        patch.setattr(download.time, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get_dataset("toy", origin)
    assert set(on_disk(place)) == {"data/a.jsonl"}, "no half file under its own name"
    assert json.loads((place / "SOURCE.json").read_text())["complete"] is False
    server.seen.clear()
    get_dataset("toy", origin)
    assert on_disk(place) == WANTED
    assert not list(place.rglob("*.download"))
    assert not requests_of(server, "a.jsonl"), "what is whole is not fetched again"
    assert [headers.get("Range") for headers in requests_of(server, "b.jsonl")] == [f"bytes={len(BIG) // 2}-"]


def test_a_server_without_ranges_is_read_from_the_start(server, place):
    server.ranges = False
    server.drops["data/a.jsonl"] = 1
    get_dataset("toy", "modelscope")
    assert on_disk(place) == WANTED


def test_a_part_of_another_version_is_not_continued(server, place, monkeypatch):
    server.drops["data/a.jsonl"] = 1
    with monkeypatch.context() as patch:
        patch.setattr(download.time, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get_dataset("toy", "modelscope")
    server.repositories[REPOSITORY]["data/a.jsonl"] = BIG[1:] + b"z"
    server.seen.clear()
    get_dataset("toy", "modelscope")
    assert on_disk(place)["data/a.jsonl"] == BIG[1:] + b"z"
    assert [headers.get("Range") for headers in requests_of(server, "a.jsonl")] == [None]


def test_a_file_altered_here_is_fetched_again_and_the_others_are_not(server, place):
    get_dataset("toy", "huggingface")
    (place / "small.jsonl").write_bytes(b'{"text": "y"}\n')  # the same length
    server.seen.clear()
    get_dataset("toy", "huggingface")
    assert on_disk(place) == WANTED
    assert [path for path, _ in server.seen if "resolve" in path] == [
        f"/datasets/{REPOSITORY}/resolve/{COMMIT}/small.jsonl"
    ]


@FROM_HUBS
@pytest.mark.parametrize("name", ["data/a.jsonl", "small.jsonl"])
def test_other_content_than_announced_is_refused_and_not_kept(server, place, origin, name):
    server.corrupt.add(name)
    with pytest.raises(UserError, match="not what its repository announced"):
        get_dataset("toy", origin)
    assert name not in on_disk(place)
    with pytest.raises(UserError, match="not finished"):
        files_for_a_recipe()
    server.corrupt.clear()
    get_dataset("toy", origin)
    assert on_disk(place) == WANTED


@FROM_HUBS
def test_a_busy_server_is_asked_again(server, place, origin):
    url = {
        "huggingface": f"/datasets/{REPOSITORY}/resolve/{COMMIT}/small.jsonl",
        "modelscope": f"/api/v1/datasets/{REPOSITORY}/repo",
    }[origin]
    server.statuses[url] = [503, 429]
    get_dataset("toy", origin)
    assert on_disk(place) == WANTED


@pytest.mark.parametrize(
    ("status", "words"), [(404, "gone, renamed or private"), (403, "gated or private"), (400, "HTTP 400")]
)
@FROM_HUBS
def test_a_refused_file_is_one_clear_line(server, origin, status, words):
    url = {
        "huggingface": f"/datasets/{REPOSITORY}/resolve/{COMMIT}/small.jsonl",
        "modelscope": f"/api/v1/datasets/{REPOSITORY}/repo",
    }[origin]
    server.statuses[url] = [status]
    with pytest.raises(UserError, match=words) as caught:
        get_dataset("toy", origin)
    assert "\n" not in str(caught.value)
    assert caught.value.mend


@FROM_HUBS
def test_a_repository_that_is_gone_is_one_clear_line(server, origin):
    server.repositories.clear()
    with pytest.raises(UserError, match="gone, renamed or private") as caught:
        get_dataset("toy", origin)
    assert "\n" not in str(caught.value)


def test_a_gated_repository_is_one_clear_line(server, monkeypatch):
    path = f"/api/datasets/{REPOSITORY}"
    server.statuses[path] = [403]
    plain = Handler.answer
    monkeypatch.setattr(
        Handler,
        "answer",
        lambda self, status, value, headers=None: plain(
            self, status, value, {"X-Error-Code": "GatedRepo"} if status == 403 else headers
        ),
    )
    with pytest.raises(UserError, match=r"is gated .*HF_TOKEN"):
        get_dataset("toy", "huggingface")


@FROM_HUBS
def test_no_network_is_one_clear_line(server, origin, monkeypatch):
    for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(UserError, match=r"cannot reach .*127\.0\.0\.1:9") as caught:
        get_dataset("toy", origin)
    assert "\n" not in str(caught.value)
    assert "ENDPOINT" in str(caught.value)


def test_a_network_that_goes_and_stays_away_leaves_the_part_to_go_on_from(server, place):
    server.drops["data/a.jsonl"] = 10**6
    # Each connection brings half of the rest, until nothing is left to halve: then five bring nothing.
    with pytest.raises(UserError, match="cannot reach"):
        get_dataset("toy", "modelscope")
    server.drops.clear()
    server.seen.clear()
    get_dataset("toy", "modelscope")
    assert on_disk(place) == WANTED
    assert requests_of(server, "a.jsonl")[0]["Range"] == f"bytes={len(BIG) - 1}-"


@FROM_HUBS
def test_a_full_disk_is_one_clear_line_and_the_part_stays(server, place, origin, monkeypatch):
    real = open
    full = [True]

    def opened(path, mode="r", *arguments, **named):
        file = real(path, mode, *arguments, **named)
        if full[0] and str(path).endswith(".download") and mode in ("wb", "ab"):
            write = file.write

            class Full:
                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    file.close()

                def write(self, chunk):
                    write(chunk[:1000])
                    raise OSError(errno.ENOSPC, "No space left on device")

            return Full()
        return file

    monkeypatch.setattr(download, "open", opened, raising=False)
    with pytest.raises(UserError, match="the disk is full"):
        get_dataset("toy", origin)
    full[0] = False
    get_dataset("toy", origin)
    assert on_disk(place) == WANTED
    assert "bytes=1000-" in [headers.get("Range") for headers in requests_of(server, "a.jsonl")]


def test_too_little_free_space_is_said_before_anything_is_fetched(server, place, monkeypatch):
    usage = shutil.disk_usage(place.parent.parent)
    monkeypatch.setattr(data_commands.shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(UserError, match=r"586\.0 KiB to come, 97\.7 KiB free"):
        get_dataset("toy")
    assert on_disk(place) == {}
    assert not [path for path, _ in server.seen if "resolve" in path]


def test_licence_size_and_place_are_said_before_the_first_byte(server, place, monkeypatch, capsys):
    def stop(*_):
        raise RuntimeError("here the files begin")

    monkeypatch.setattr(data_commands, "fetch", stop)
    with pytest.raises(RuntimeError):
        get_dataset("toy")
    said = capsys.readouterr().err
    assert "licence: CC0 (its card says: gpl-3.0)" in said
    assert "3 files, 586.0 KiB" in said
    assert f"to: {place}" in said


@pytest.mark.parametrize(("origin", "variable", "name"), [
    ("huggingface", "HF_TOKEN", "Authorization"),
    ("modelscope", "MODELSCOPE_API_TOKEN", "Cookie"),
])  # fmt: skip
def test_a_token_goes_to_its_hub_and_not_to_where_the_hub_redirects(server, place, origin, variable, name, monkeypatch):
    monkeypatch.setenv(variable, "secret-token")
    store = Hub(server.repositories)
    with served(store) as url:
        server.files_at = url
        store.drops["data/a.jsonl"] = 1
        get_dataset("toy", origin)
    assert on_disk(place) == WANTED
    assert len(store.seen) == len(WANTED) + 1
    assert [headers.get("Range") for path, headers in store.seen if "a.jsonl" in path][1] == f"bytes={len(BIG) // 2}-"
    assert all(name not in headers for _, headers in store.seen)
    to_hub = [headers for path, headers in server.seen if "small.jsonl" in path]
    assert to_hub
    assert all("secret-token" in headers[name] for headers in to_hub)


def test_a_token_stays_with_a_redirect_on_the_same_host(server, monkeypatch):
    """A renamed repository answers with a redirect, and its files may be gated."""

    def moved(self):
        if self.path == "/old":
            return self.answer(307, {}, {"Location": "/new"})
        self.hub.seen.append((self.path, dict(self.headers)))
        return self.answer(200, {})

    monkeypatch.setattr(Handler, "do_GET", moved)
    with download.open_url(os.environ["HF_ENDPOINT"] + "/old", {"Authorization": "Bearer t"}) as response:
        assert response.status == 200
    assert server.seen[-1][0] == "/new"
    assert server.seen[-1][1]["Authorization"] == "Bearer t"


def test_a_folder_of_the_same_layout_is_a_source(server, place, tmp_path):
    folder = tmp_path / "disk"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    record = get_dataset("toy", str(folder))
    assert on_disk(place) == WANTED
    assert record["from"] == "folder"
    assert server.seen == []


def test_a_folder_that_was_downloaded_before_is_verified_against_its_record(server, place, tmp_path):
    get_dataset("toy", "huggingface", to=tmp_path / "first")
    spoilt = tmp_path / "first" / "data" / "b.jsonl"
    spoilt.write_bytes(BIG)
    with pytest.raises(UserError, match="not what its repository announced"):
        get_dataset("toy", str(tmp_path / "first"))
    spoilt.write_bytes(BIG[::-1])
    record = get_dataset("toy", str(tmp_path / "first"))
    assert on_disk(place) == WANTED
    assert record["licence"] == "gpl-3.0"


def test_parts_of_a_dataset_add_up_and_the_whole_replaces_them(server, place):
    get_dataset("toy", only="data/a*")
    get_dataset("toy", only="data/b*")
    assert {file.name for file in files_for_a_recipe()} == {"a.jsonl", "b.jsonl"}
    server.repositories[REPOSITORY].pop("data/b.jsonl")
    get_dataset("toy")
    assert {file.name for file in files_for_a_recipe()} == {"a.jsonl", "small.jsonl"}


def test_modelscope_listings_are_read_page_by_page(server, place, monkeypatch):
    monkeypatch.setattr(hub, "_PAGE", 2)
    get_dataset("toy", "modelscope")
    assert on_disk(place) == WANTED


@pytest.mark.parametrize("name", ["../evil.jsonl", "/etc/evil.jsonl", "data/../../evil.jsonl", "a\\evil.jsonl"])
@FROM_HUBS
def test_a_path_that_leads_out_of_the_folder_is_refused(server, place, origin, name):
    server.repositories[REPOSITORY][name] = b"evil"
    with pytest.raises(UserError, match="lists a file named"):
        get_dataset("toy", origin, only="*evil.jsonl")
    assert on_disk(place) == {}


def test_one_process_at_a_time(server, place):
    place.mkdir(parents=True)
    with data_commands._locked(place), pytest.raises(UserError, match="another mengya process"):
        get_dataset("toy")


def test_a_folder_of_another_dataset_is_not_written_into(server, place):
    place.mkdir(parents=True)
    (place / "SOURCE.json").write_text('{"dataset": "other", "complete": true, "files": []}')
    with pytest.raises(UserError, match="holds another dataset, other"):
        get_dataset("toy")


def test_without_huggingface_hub_the_line_names_what_to_install(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'mengya\[hub\]'"):
        get_dataset("toy", "huggingface")


def test_what_no_hub_has_and_what_one_hub_lacks_is_said_with_the_way_out(monkeypatch):
    with pytest.raises(UserError, match=r"no hub is known .*data\.baai\.ac\.cn.*--from"):
        get_dataset("wudao-corpora")
    with pytest.raises(UserError, match="say --from modelscope"):
        get_dataset("deepctrl", "huggingface")
    with pytest.raises(UserError, match="neither a hub nor a folder"):
        get_dataset("deepctrl", "no/such/folder")


def test_show_says_what_is_here_and_where_from(server, place, capsys):
    data_commands.show_dataset("toy")
    assert "not here; run `mengya data get toy`" in capsys.readouterr().out
    get_dataset("toy", "huggingface")
    capsys.readouterr()
    data_commands.show_dataset("TOY")
    assert f"{place}: 3 files, 586.0 KiB, from huggingface {REPOSITORY} at {COMMIT}" in capsys.readouterr().out

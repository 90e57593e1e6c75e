"""Weights that come from the Hub shard by shard, and go again: the same bytes as from a folder, on
a disk that does not hold the model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import autoquant
from autoquant.core.bundled import MODEL as DEMO_FOLDER
from autoquant.core.cache import cache_folder
from autoquant.source import fetch, resolve
from tests.fakes.hub import Hub
from tests.hub.conftest import User
from tests.hub.test_downloads import small_disk  # noqa: F401 (a fixture)
from tests.workers import in_worker

REPO = "maker/shards"
TYPES = ("--types", "Q8_0,Q4_K_M", "--pre-tokenizer", "gpt-2", "--evaluate", "off")
FIRST = "model-00001-of-00004.safetensors"
STREAM = ("quantize", "gguf", REPO, *TYPES, "--download", "stream", "--out", "out")


def in_shards(folder: Path, count: int) -> dict[str, bytes | Path]:
    """A checkpoint of one file in ``count``, tensors in the order of their names: what belongs
    together may lie in two of them.
    """
    data = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    names, listed, files = sorted(header), {}, dict[str, bytes | Path]()
    for i in range(count):
        name = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        own, parts, at = {}, b"", 0
        for one in names[i * len(names) // count : (i + 1) * len(names) // count]:
            begin, end = header[one]["data_offsets"]
            parts += data[start + begin : start + end]
            own[one] = {**header[one], "data_offsets": [at, at + end - begin]}
            at += end - begin
        head = json.dumps(own).encode()
        files[name] = len(head).to_bytes(8, "little") + head + parts
        listed |= dict.fromkeys(own, name)
    index = {"metadata": {}, "weight_map": listed}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    small = (path for path in folder.iterdir() if path.suffix != ".safetensors")
    return {**{path.name: path for path in small}, **files}


def weights(folder: Path) -> list[Path]:
    """Weight files of models below a folder that are no holes."""
    found = (path for path in folder.rglob("*.safetensors") if path.stat().st_blocks > 64)
    return [path for path in found if not path.name.startswith("adapter")]


def downloads(hub: Hub) -> list[str]:
    """The hashes of weight files that were fetched whole."""
    files = hub.repos[REPO].at("main").files
    ours = {one.sha256 for name, one in files.items() if name.endswith(".safetensors")}
    fetched = (
        request.path.rpartition("/")[2].partition("?")[0]
        for request in hub.log
        if request.method == "GET" and "/_cdn/" in request.path and not request.range
    )
    return [sha256 for sha256 in fetched if sha256 in ours]


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = autoquant.gguf(
        "demo",
        types="Q8_0,Q4_K_M",
        pre_tokenizer="gpt-2",
        evaluate="off",
        keep_intermediate=True,
        out=tmp_path_factory.mktemp("folder") / "out",
    )
    return {one.type: tensors_of(made.path(one.type)) for one in made.artifacts}


def tensors_of(path: Path) -> str:
    """A hash of a file's data: its name, and so the model's, is another on the Hub."""
    from hashlib import sha256

    from autoquant.core import gguf_head

    return sha256(path.read_bytes()[gguf_head.read(path).data_offset :]).hexdigest()


def made_in(out: Path) -> dict[str, str]:
    return {path.stem.rpartition("-")[2]: tensors_of(path) for path in out.glob("*.gguf")}


def test_the_same_bytes_and_no_weights_stay(user: User, hub: Hub, wanted: dict[str, str]) -> None:
    hub.seed(REPO, in_shards(DEMO_FOLDER, 4))
    plan = user.run("plan", "gguf", REPO, *TYPES, "--download", "stream").stdout
    assert "the 4 weight files come one after the other and are removed again" in " ".join(
        plan.split()
    )
    assert "measuring" not in plan, "which is off"
    assert weights(user.home) == []
    user.run(*STREAM)
    assert made_in(user.cwd / "out") == wanted
    assert weights(user.home) == [], "neither in the cache nor in the run's folder"
    assert len(downloads(hub)) == len(set(downloads(hub)))
    before = hub.served
    user.run(*STREAM)
    user.run(*STREAM[:-4], "--download", "whole", "--out", "out")
    assert hub.served - before < 200_000, "what is made is not fetched again"
    # uploaded, and measured later: now all weights are fetched
    user.run("upload", "out", "acme/shards")
    assert {"shards-Q8_0.gguf", "shards-Q4_K_M.gguf"} <= set(hub.files("acme/shards"))
    times = {path.name: path.stat().st_mtime_ns for path in (user.cwd / "out").glob("*.gguf")}
    words = [word for word in STREAM if word not in ("off", "--evaluate", "stream", "--download")]
    assert "KL mean" in user.run(*words, "--eval-chunks", "1").stdout
    assert len(weights(user.home)) == 4
    assert times == {
        path.name: path.stat().st_mtime_ns for path in (user.cwd / "out").glob("*.gguf")
    }


def test_experts_of_one_block_in_two_files(user: User, hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "mixtral"
    in_worker("bench.cases.architectures:make", tmp_path, name="mixtral", folder=str(folder))
    hub.seed(REPO, in_shards(folder, 5))
    user.run(*STREAM)
    quick = {"pre_tokenizer": "gpt-2", "evaluate": "off"}
    made = autoquant.gguf(folder, types="Q8_0,Q4_K_M", out=tmp_path / "whole", **quick)
    assert made_in(user.cwd / "out") == {
        one.type: tensors_of(made.path(one.type)) for one in made.artifacts
    }
    assert weights(user.home) == []


def test_codes_and_scales_of_fp8(user: User, hub: Hub, tmp_path: Path) -> None:
    """A weight is in one file and its scale in another; no 16-bit copy of the model is made."""
    folder = tmp_path / "fp8"
    in_worker("bench.cases.architectures:make", tmp_path, name="qwen3_fp8", folder=str(folder))
    hub.seed(REPO, in_shards(folder, 6))
    user.run(*STREAM)
    sixteen = fetch(resolve(folder)).folder
    quick = {"pre_tokenizer": "gpt-2", "evaluate": "off"}
    made = autoquant.gguf(sixteen, types="Q8_0,Q4_K_M", out=tmp_path / "whole", **quick)
    wanted = {one.type: tensors_of(made.path(one.type)) for one in made.artifacts}
    assert made_in(user.cwd / "out") == wanted
    assert weights(user.home) == []
    copies = set((cache_folder() / "sources").glob("*-16bit"))
    of_folder = autoquant.gguf(folder, types="Q8_0,Q4_K_M", out=tmp_path / "folder", **quick)
    assert {one.type: tensors_of(of_folder.path(one.type)) for one in of_folder.artifacts} == wanted
    assert set((cache_folder() / "sources").glob("*-16bit")) == copies


@pytest.mark.slow
def test_sigkill_between_two_files(user: User, hub: Hub, wanted: dict[str, str]) -> None:
    hub.seed(REPO, in_shards(DEMO_FOLDER, 4))
    hub.bandwidth = 4e6
    first = user.start(*STREAM)
    journal = user.cwd / "out" / ".autoquant" / "jobs" / "one-pass.txt"
    deadline = time.monotonic() + 60
    while not (journal.is_file() and len(journal.read_text().splitlines()) > 4):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.kill()
    first.wait()
    hub.bandwidth = 0
    fetched = downloads(hub)
    user.run(*STREAM)
    assert made_in(user.cwd / "out") == wanted
    assert downloads(hub).count(fetched[0]) == 1, "its tensors are written already"
    assert weights(user.home) == []


def test_a_shard_that_is_not_what_the_hub_lists(user: User, hub: Hub) -> None:
    hub.seed(REPO, in_shards(DEMO_FOLDER, 4))
    name = "model-00003-of-00004.safetensors"
    blob = hub.blob(hub.repos[REPO].at("main").files[name].sha256)
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    said = user.run(*STREAM, status=1).stderr
    assert f"{REPO}: {name} has arrived with" in said
    assert "run again to fetch it anew" in said
    assert not list(user.cwd.glob("out/*.gguf"))
    kept = user.cwd / "out" / ".autoquant" / "jobs" / "shards"
    assert not [path for path in kept.glob("*.safetensors*") if name in path.name]
    blob.write_bytes(whole)
    before = downloads(hub)
    user.run(*STREAM)
    assert downloads(hub)[len(before) :].count(hub.repos[REPO].at("main").files[FIRST].sha256) == 0
    assert made_in(user.cwd / "out").keys() == {"Q8_0", "Q4_K_M"}
    assert weights(user.home) == []


def test_a_model_that_the_disk_does_not_hold(
    hub: Hub,
    small_disk: Callable[[int], Path],  # noqa: F811
    wanted: dict[str, str],
) -> None:
    """8.4 MB of weights and 7.2 MB of results, on 12 MB: streamed without being asked for it."""
    hub.seed(REPO, in_shards(DEMO_FOLDER, 6))
    user = User(hub, small_disk(12) / "home")
    words = ("gguf", REPO, *TYPES)
    plan = " ".join(user.run("plan", *words).stdout.split())
    assert "come one after the other" in plan
    assert plan.endswith("it fits")
    assert "it does NOT fit" in user.run("plan", *words, "--download", "whole").stdout
    user.run("quantize", *words, "--out", "out")
    assert made_in(user.cwd / "out") == wanted
    assert weights(user.home) == []


COLLECT = ("--imatrix", "prose", "--imatrix-chunks", "2")


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an importance matrix makes of the folder."""
    made = autoquant.gguf(
        "demo",
        types="Q4_K_M",
        pre_tokenizer="gpt-2",
        evaluate="off",
        imatrix="prose",
        imatrix_chunks=2,
        out=tmp_path_factory.mktemp("imatrix") / "out",
    )
    return {one.type: tensors_of(made.path(one.type)) for one in made.artifacts}


def test_what_runs_the_model_has_an_unquantized_file(
    user: User, hub: Hub, collected: dict[str, str]
) -> None:
    """It is written where there is room, stays until all is done, and nothing comes twice."""
    hub.seed(REPO, in_shards(DEMO_FOLDER, 4))
    words = ("gguf", REPO, "--types", "Q4_K_M", "--pre-tokenizer", "gpt-2", "--download", "stream")
    more = (*COLLECT, "--evaluate", "on", "--eval-chunks", "2")
    plan = " ".join(user.run("plan", *words, *more).stdout.split())
    assert "an unquantized file (F16) stays until the end, to be run" in plan
    out = user.run("quantize", *words, *more, "--out", "out").stdout
    assert "KL mean" in out
    assert made_in(user.cwd / "out") == {
        **collected,
        "imatrix": made_in(user.cwd / "out")["imatrix"],
    }
    assert len(downloads(hub)) == len(set(downloads(hub))) == 4
    assert weights(user.home) == []
    card = (user.cwd / "out" / "README.md").read_text()
    assert "against the unquantized model" in card


def test_a_type_is_not_measured_against_itself(user: User, hub: Hub) -> None:
    hub.seed(REPO, in_shards(DEMO_FOLDER, 4))
    words = ("gguf", REPO, "--types", "Q8_0", "--pre-tokenizer", "gpt-2", "--download", "stream")
    user.run("quantize", *words, "--evaluate", "on", "--eval-chunks", "1", "--out", "out")
    assert 1e-6 < user.journal("out")["evaluate Q8_0"]["facts"]["kl_mean"] < 0.01
    assert len(downloads(hub)) == 4
    assert made_in(user.cwd / "out").keys() == {"Q8_0"}


def test_where_there_is_no_room_for_that_it_is_a_smaller_one_and_files_come_twice(
    hub: Hub,
    small_disk: Callable[[int], Path],  # noqa: F811
) -> None:
    """8.4 MB of weights and as much for an unquantized file, on 10 MB."""
    hub.seed(REPO, in_shards(DEMO_FOLDER, 6))
    user = User(hub, small_disk(10) / "home")
    words = ("gguf", REPO, "--types", "Q4_K_M", "--pre-tokenizer", "gpt-2")
    plan = " ".join(user.run("plan", *words, *COLLECT).stdout.split())
    assert "the importance matrix is collected on a Q8_0 file" in plan
    assert "and then all files come again; and once more, to measure: 0.025 GB to download" in plan
    assert downloads(hub) == []
    said = user.run("quantize", *words, *COLLECT, "--out", "out").stdout
    assert "KL mean" in said, "measured without its files, which come in parts"
    assert {downloads(hub).count(one) for one in downloads(hub)} == {2}
    assert {path.name for path in (user.cwd / "out").glob("*.gguf")} == {
        "imatrix.gguf",
        "shards-Q4_K_M.gguf",
    }
    card = (user.cwd / "out" / "README.md").read_text()
    assert " tokens, on the Q8_0 file" in card
    assert weights(user.home) == []
    before = hub.served
    user.run("quantize", *words, *COLLECT, "--out", "out", "--download", "stream")
    assert hub.served - before < 200_000, "what is made is not made again"


def test_what_sees_stays_of_the_files_that_go(user: User, hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "gemma3"
    in_worker("bench.cases.architectures:make", tmp_path, name="gemma3_vision", folder=str(folder))
    hub.seed(REPO, in_shards(folder, 5))
    user.run(*STREAM)
    made = autoquant.gguf(
        folder,
        types="Q8_0,Q4_K_M",
        pre_tokenizer="gpt-2",
        evaluate="off",
        out=tmp_path / "whole",
    )
    whole = {path.stem.rpartition("-")[2]: tensors_of(path) for path in made.folder.glob("*.gguf")}
    assert made_in(user.cwd / "out") == whole
    assert len(whole) == 3, "the mmproj file among them"
    assert len(downloads(hub)) == len(set(downloads(hub)))
    assert weights(user.home) == []


def test_a_folder_has_nothing_to_download(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="is not on the Hub; leave download out"):
        autoquant.gguf("demo", download="stream", out=tmp_path / "out")

"""Files measured against a model that the disk does not hold: it is read from the Hub, block by
block, and that is said beforehand, in bytes and minutes.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import autoquant
from autoquant import pipeline
from autoquant.core.bundled import MODEL as DEMO_FOLDER
from tests.fakes.hub import Hub
from tests.hub.conftest import User
from tests.hub.test_downloads import small_disk  # noqa: F401 (a fixture)
from tests.hub.test_streaming import REPO, downloads, in_shards, weights
from tests.workers import in_worker

QUICK = ("--pre-tokenizer", "gpt-2", "--download", "stream")
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
WEIGHTS = 8_400_000  # bytes, nearly


def bytes_said(text: str) -> float:
    """How many are read from the Hub, by what a run says beforehand."""
    found = re.search(r"about ([\d.]+) (kB|MB|GB) are read from the Hub", " ".join(text.split()))
    assert found is not None, text
    return float(found[1]) * UNITS[found[2]]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("file") / "out"
    made = autoquant.gguf("demo", types="Q4_K_M", pre_tokenizer="gpt-2", evaluate="off", out=out)
    return made.path("Q4_K_M")


def test_a_reference_that_the_disk_does_not_hold(
    hub: Hub,
    small_disk: Callable[[int], Path],  # noqa: F811
    file: Path,
    model: Callable[..., Path],
) -> None:
    """8.4 MB of weights on a disk of 7 MB, which has the references and all that comes too."""
    hub.seed(REPO, in_shards(DEMO_FOLDER, 4))
    user = User(hub, small_disk(7) / "home")
    words = ("evaluate", str(file), "--reference", REPO, "--chunks", "2")
    for folders in ((str(DEMO_FOLDER),), ()):
        before = hub.served
        done = user.run(*words[:2], *folders, *words[2:])
        said = bytes_said(done.stderr)
        assert said == pytest.approx(hub.served - before, rel=0.15)
        if folders:
            assert "their files" not in done.stderr
            assert f"{REPO}: its files need 8." in done.stderr
            assert WEIGHTS < said < 1.6 * WEIGHTS
            rows = pipeline.evaluate_files([file, DEMO_FOLDER], str(model()), chunks=2)
            for _, row in rows:
                assert f"{row.perplexity:.3f} ± " in done.stdout
        else:
            assert said < 0.4 * WEIGHTS, "what was kept is not read again: the head alone"
        assert weights(user.home) == []
    assert downloads(hub) == []


def test_where_there_is_room_it_is_downloaded(user: User, hub: Hub, file: Path) -> None:
    hub.seed(REPO, in_shards(DEMO_FOLDER, 4))
    done = user.run("evaluate", str(file), "--reference", REPO, "--chunks", "1")
    assert "read from the Hub" not in done.stderr
    assert len(weights(user.home)) == len(downloads(hub)) == 4


def test_a_run_is_measured_later_without_its_model(
    user: User,
    hub: Hub,
    small_disk: Callable[[int], Path],  # noqa: F811
    model: Callable[..., Path],
) -> None:
    hub.seed(REPO, in_shards(DEMO_FOLDER, 4))
    words = ("quantize", "gguf", REPO, "--types", "Q4_K_M", *QUICK, "--out", "out")
    user.run(*words, "--evaluate", "off")
    code = (
        "import autoquant, json, logging; logging.basicConfig(filename='log')\n"
        "one = autoquant.load('out').evaluate(chunks=2)\n"
        "row = one.artifacts[0].evaluation\n"
        "print(json.dumps([row.perplexity, row.kl_mean, row.engine]))"
    )
    before, fetched = hub.served, downloads(hub)
    seen = user.python(code, HF_HOME=str(small_disk(6) / "hf"))
    said = (user.cwd / "log").read_text()
    assert bytes_said(said) == pytest.approx(hub.served - before, rel=0.15)
    assert "they stay on the Hub" in said
    assert weights(user.home) == []
    assert downloads(hub) == fetched, "nothing was fetched whole"
    made = user.cwd / "out" / "shards-Q4_K_M.gguf"
    _, (_, row) = pipeline.evaluate_files([made], str(model()), chunks=2)
    assert seen[:2] == pytest.approx([row.perplexity, row.kl_mean], rel=1e-6)


@pytest.mark.parametrize("kind", ["gguf", "pickle"])
def test_what_cannot_be_read_in_parts_is_refused_before_it_is_fetched(
    hub: Hub,
    small_disk: Callable[[int], Path],  # noqa: F811
    file: Path,
    kind: str,
) -> None:
    if kind == "gguf":
        hub.seed(REPO, {"big-Q8_0.gguf": file})
        said = f"measuring against {REPO} needs 2.69 MB for its files, "
        last = f"in parts: {REPO} is no checkpoint of safetensors. Free some space or set HF_HOME"
    else:
        small = {path.name: path for path in DEMO_FOLDER.iterdir() if path.suffix == ".json"}
        hub.seed(REPO, {**small, "pytorch_model.bin": b"b" * WEIGHTS})
        said, last = "pickle", "safetensors"
    user = User(hub, small_disk(2 if kind == "gguf" else 7) / "home")
    err = user.run("evaluate", str(file), "--reference", REPO, status=2).stderr
    assert said in err
    assert last in err
    assert hub.served < 1_500_000


def test_the_plan_has_the_second_reading_in_bytes_and_minutes(user: User, hub: Hub) -> None:
    hub.seed(REPO, in_shards(DEMO_FOLDER, 4))
    words = ("plan", "gguf", REPO, "--types", "Q4_K_M", *QUICK)
    kept = user.home / "cache" / "rates.json"

    def planned(rate: float) -> str:
        known = json.loads(kept.read_text()) if kept.is_file() else {}
        known = {**known, "download": rate} if rate else known
        kept.parent.mkdir(exist_ok=True, parents=True)
        kept.write_text(json.dumps(known))
        return " ".join(user.run(*words).stdout.split())

    unknown = planned(0)
    assert "to measure, 8.4" in unknown
    assert "MB are read from the Hub once more, how fast is not known" in unknown
    fast = planned(10_000)  # 14 minutes
    assert "are read from the Hub once more, which takes about 14 minutes" in fast
    assert "; and once more, to measure: 0.017 GB to download in all" in fast
    assert "about 28 minutes to download" in fast, "both times"


def test_a_quantized_reference_is_made_as_it_is_read(
    hub: Hub,
    small_disk: Callable[[int], Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    """FP8: no 16-bit copy of it where there is no room for one, be there any for its files or
    not.
    """
    folder = tmp_path / "fp8"
    in_worker("bench.cases.architectures:make", tmp_path, name="qwen3_fp8", folder=str(folder))
    hub.seed(REPO, in_shards(folder, 3))
    words = ("evaluate", str(folder), "--reference", REPO, "--chunks", "1")
    disk = small_disk(6)
    filled = disk / "filled"
    filled.write_bytes(bytes(4 << 20))
    first = User(hub, tmp_path / "home").run(*words, HF_HOME=str(disk / "hf"))
    assert "they stay on the Hub" in first.stderr
    assert downloads(hub) == []
    filled.unlink()
    shutil.rmtree(disk / "hf")
    user = User(hub, disk / "home")
    second = user.run(*words)
    assert "read from the Hub" not in second.stderr
    assert len(downloads(hub)) == 3
    assert not list((user.home / "cache" / "sources").glob("*-16bit"))
    assert first.stdout == second.stdout
    assert "    0.0000  " in first.stdout.splitlines()[-1], "it is its own source"

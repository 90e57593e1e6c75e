"""Types straight from a checkpoint: the bytes that llama.cpp makes of a converted file, without
such a file; killed at any moment, nothing is written twice.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.core.errors import InputError
from autoquant.core.files import sha256_of
from autoquant.methods.gguf.one_pass import JOURNAL
from autoquant.result import Result
from autoquant.runtime import process
from bench.cases import sources
from tests.gguf.conftest import QUICK
from tests.workers import in_llama_worker, in_worker

CONVERT = "autoquant.backends.llamacpp.convert:convert"


def hashes(result: Result) -> dict[str, str]:
    return {one.type: one.files[0].sha256 for one in result.artifacts}


def instead(monkeypatch: pytest.MonkeyPatch, helper: str) -> None:
    """Let another function stand for the converter's worker."""
    real = process.call

    def call(target: str, /, **kwargs: Any) -> Any:
        return real(helper if target == CONVERT else target, **kwargs)

    monkeypatch.setattr(process, "call", call)


def test_the_bytes_are_those_of_the_converted_file(demo: Result, tmp_path: Path) -> None:
    """The session's files are made of a converted one, for which its importance matrix was
    collected.
    """
    names = [one.type for one in demo.artifacts]
    made = autoquant.gguf(
        "demo",
        types=names,
        imatrix=str(demo.folder / "imatrix.gguf"),
        out=tmp_path / "out",
        **QUICK,
    )
    assert hashes(made) == hashes(demo)
    assert sorted(path.name for path in made.folder.glob("*.gguf")) == sorted(
        one.name for one in made.artifacts
    ), "nothing in between"
    assert list((made.folder / ".autoquant").glob("jobs*")) == []


@pytest.mark.parametrize("name", ["mixtral", "qwen3_fp8", "gemma3_text"])
def test_experts_scales_and_tied_embeddings(name: str, tmp_path: Path) -> None:
    model = tmp_path / name
    in_worker("bench.cases.architectures:make", tmp_path, name=name, folder=str(model))
    types = ("Q4_K_M", "IQ4_XS", "Q2_K")
    made = autoquant.gguf(model, types=types, keep_intermediate=True, out=tmp_path / "out", **QUICK)
    (whole,) = made.folder.glob("*-BF16.gguf")
    for one in made.artifacts:
        wanted = in_llama_worker(
            "tests.helpers.gguf:quantized",
            tmp_path,
            source=str(whole),
            type=one.type,
            imatrix="",
            folder=str(tmp_path),
        )
        assert one.files[0].sha256 == wanted, one.type


def test_of_a_quantized_file_and_in_shards(demo: Result, tmp_path: Path) -> None:
    """What is lost is lost in the same way, and the cuts are where gguf-py's writer makes them."""
    types = ("Q4_K_M", "IQ3_S")
    made = autoquant.gguf(
        demo.path("Q8_0"), types=types, split_size="1M", evaluate="off", out=tmp_path / "out"
    )
    for one in made.artifacts:
        assert len(one.files) > 1
        wanted = in_llama_worker(
            "tests.helpers.gguf:in_shards",
            tmp_path,
            source=str(demo.path("Q8_0")),
            type=one.type,
            folder=str(tmp_path),
            limit=1_000_000,
        )
        assert [stored.sha256 for stored in one.files] == wanted, one.type
        assert wanted == [sha256_of(made.folder / stored.name) for stored in one.files]


def test_large_tensors_are_read_and_quantized_in_parts(
    demo: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, "tests.helpers.gguf:convert_in_small_pieces")
    for precision in ("f16", "bf16"):
        made = autoquant.gguf(
            "demo",
            types="F16,Q4_K_M" if precision == "f16" else "BF16",
            precision=precision,
            keep_intermediate=True,
            out=tmp_path / precision,
            **QUICK,
        )
        if precision == "f16":
            plain = autoquant.gguf("demo", types="F16,Q4_K_M", out=tmp_path / "plain", **QUICK)
            assert hashes(made) == hashes(plain)
            assert hashes(made)["F16"] == hashes(demo)["F16"]
        else:
            monkeypatch.undo()
            plain = autoquant.gguf(
                "demo", types="BF16", precision="bf16", out=tmp_path / "whole", **QUICK
            )
            assert hashes(made) == hashes(plain)


COMMAND = [sys.executable, "-m", "autoquant.cli", "quantize", "gguf", "demo"]
COMMAND += ["--pre-tokenizer", "gpt-2", "--types", "Q4_K_M,Q2_K,IQ4_XS,IQ3_S", "--evaluate", "off"]
Seen = Callable[[list[str], Path], bool]
MOMENTS: dict[str, Seen] = {
    "some tensors": lambda lines, _: len(lines) > 5,
    "all tensors": lambda lines, _: len(lines) > 39,
    "a type": lambda _, out: any(out.glob("*.gguf")),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_sigkill_then_again_gives_the_same_bytes(moment: str, tmp_path: Path) -> None:
    wanted = autoquant.gguf("demo", types="Q4_K_M,Q2_K,IQ4_XS,IQ3_S", out=tmp_path / "a", **QUICK)
    out = tmp_path / "out"
    kept = out / ".autoquant" / "jobs" / JOURNAL
    first = subprocess.Popen([*COMMAND, "--out", str(out)], stdout=subprocess.DEVNULL)
    lines: list[str] = []
    while first.poll() is None and not MOMENTS[moment](lines, out):
        time.sleep(0.002)
        lines = kept.read_text().splitlines() if kept.is_file() else lines
    first.kill()
    assert first.wait() == -9, "the run ended before it could be killed"
    time.sleep(0.5)  # its worker dies of the same
    before = kept.read_text().splitlines() if kept.is_file() else []
    again = subprocess.run(
        [*COMMAND, "--out", str(out)], check=True, capture_output=True, text=True
    )
    assert "4 files" in again.stdout
    assert {path.name: sha256_of(path) for path in out.glob("*.gguf")} == {
        one.name: one.files[0].sha256 for one in wanted.artifacts
    }
    assert not kept.parent.exists()
    assert len(before) > (5 if moment == "some tensors" else 0)


def test_a_value_that_is_not_finite_is_found_wherever_it_is(tmp_path: Path) -> None:
    folder = sources.make("not_finite", tmp_path / "nan")
    with pytest.raises(
        InputError, match=r"embed_tokens\.weight has NaN or Inf.*in row 2001 of tok"
    ):
        autoquant.gguf(folder, types="Q8_0,Q4_K_M", out=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists(), "nothing is left, under any name"


def test_the_plan_counts_no_file_in_between(demo: Result) -> None:
    given = {"types": "Q4_K_M,Q2_K", "pre_tokenizer": "gpt-2"}
    plain = autoquant.plan("gguf", "demo", **given)
    assert plain.disk_needed == sum(item.bytes for item in plain.items)
    whole = next(one.bytes for one in demo.artifacts if one.type == "F16")
    for more in ({"keep_intermediate": True}, {"imatrix": "builtin"}):
        assert autoquant.plan("gguf", "demo", **given, **more).disk_needed == (
            autoquant.plan("gguf", "demo", **given).disk_needed + whole
        )
    file = str(demo.folder / "imatrix.gguf")
    assert autoquant.plan("gguf", "demo", **given, imatrix=file).intermediate == whole

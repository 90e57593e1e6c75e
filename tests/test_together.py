"""Methods beside each other: in one process, on one calibration object, in one table."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import autoquant
from autoquant.core.errors import InputError
from tests.workers import in_llama_worker


@pytest.mark.slow
def test_methods_follow_each_other_in_one_process_in_any_order(tmp_path: Path) -> None:
    """In a process of its own, so that nothing else has been imported there: both orders give the
    same bytes.
    """
    program = """
import sys, autoquant
common = {"calibration_samples": 4, "calibration_length": 64, "evaluate": "off"}
for name in sys.argv[2:]:
    values = {**common, "algorithm": "awq"} if name == "awq" else common
    if name == "gguf":
        values = {"types": ["Q4_K_M"], "pre_tokenizer": "gpt-2", "evaluate": "off"}
    result = getattr(autoquant, name)("demo-small", out=f"{sys.argv[1]}/{name}", **values)
    files = result.artifacts[0].files
    weights = [one for one in files if one.name.endswith(("gguf", "safetensors"))]
    print(name, *(f"{one.name}={one.sha256}" for one in weights))
heavy = {"torch", "transformers", "gptqmodel", "auto_round", "llama_cpp"}
print("quiet", sorted({name.split(".")[0] for name in sys.modules} & heavy))
"""
    seen = []
    for order in (["awq", "gguf", "gptq"], ["gptq", "gguf", "awq"]):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / order[0]), *order],
            capture_output=True,
            text=True,
            check=True,
        )
        seen.append(sorted(done.stdout.splitlines()))
    assert seen[0] == seen[1]
    assert "quiet []" in seen[0]


def test_one_calibration_object_gives_every_method_the_same_tokens(tmp_path: Path) -> None:
    one = autoquant.Calibration(samples=6, length=64, seed=3)
    quantized = autoquant.gptq("demo", calibration=one, evaluate="off", out=tmp_path / "gptq")
    converted = autoquant.gguf(
        "demo",
        imatrix=one,
        types=["Q4_K_M"],
        pre_tokenizer="gpt-2",
        evaluate="off",
        out=tmp_path / "gguf",
    )
    assert (
        converted.provenance["importance matrix"]
        == "the built-in text (English novels), 6 samples of 64 tokens"
    )
    assert converted.provenance["calibration sha256"] == quantized.provenance["calibration sha256"]
    layout = in_llama_worker(
        "tests.helpers.gguf:imatrix_layout", tmp_path, path=str(tmp_path / "gguf" / "imatrix.gguf")
    )
    assert (layout["chunks"], layout["chunk_size"]) == (6, 64)
    assert set(layout["counts"]["blk.0.attn_q.weight.counts"]) == {6.0 * 64}, "tokens"
    with pytest.raises(
        InputError,
        match="calibration_samples: the Calibration given as calibration sets that already",
    ):
        autoquant.gptq("demo", calibration=one, calibration_samples=9, out=tmp_path / "no")
    with pytest.raises(InputError, match="calibration: a Calibration is given as imatrix"):
        autoquant.gguf("demo", calibration=one, out=tmp_path / "no")
    with pytest.raises(InputError, match="eval_text: a Calibration is given as calibration"):
        autoquant.gptq("demo", eval_text=one, out=tmp_path / "no")


@pytest.mark.slow
def test_calibration_sets_are_compared_in_one_table(tmp_path: Path) -> None:
    other = tmp_path / "numbers.txt"
    other.write_text(" ".join(str(i * i) for i in range(4000)))
    sets = {
        "novels": autoquant.Calibration(samples=16, length=64),
        "numbers": autoquant.Calibration(other, samples=16, length=64),
    }
    seen = autoquant.compare(
        "gptq", "demo", sets, out=tmp_path / "out", bits=2, group_size=32, eval_chunks=4
    )
    kl = {name: seen[name].artifacts[0].evaluation.kl_mean for name in sets}
    assert kl["novels"] < 0.8 * kl["numbers"], "calibrated on text like the one it is measured on"
    lines = [
        line.split()[0]
        for line in str(seen).splitlines()
        if "2bit-32g" in line or "unquantized  " in line
    ]
    assert lines[:3] == ["–", "novels", "numbers"]
    assert re.search(r"^By perplexity, token by token|^Perplexity does not tell", str(seen), re.M)
    assert ">numbers</td>" in seen._repr_html_()
    card = (tmp_path / "out" / "numbers" / "README.md").read_text()
    assert "numbers.txt, 16 samples of 64 tokens" in card
    assert str(tmp_path) not in card, "a card must not name a path of this machine"
    with pytest.raises(InputError, match="upload: several results would go into one repository"):
        autoquant.compare("gptq", "demo", sets, out=tmp_path / "no", upload="me/model")
    for bad, said in (
        ({}, "none given"),
        ({"a/b": autoquant.Calibration()}, "is not a valid folder name"),
        ({"a": "text.txt"}, r"write autoquant.Calibration\('text.txt'\)"),
        (
            {"a": autoquant.Calibration(), "b": autoquant.Calibration("nowhere.txt")},
            "no such file: nowhere.txt",
        ),
    ):
        with pytest.raises(InputError, match=said):
            autoquant.compare("gptq", "demo", bad, out=tmp_path / "no")
    assert not (tmp_path / "no").exists()

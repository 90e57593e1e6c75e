"""AutoRound writes GPTQ's format and AWQ's, says so, and learns a better rounding."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant import source
from tests.gptq.conftest import QUICK
from tests.workers import in_worker


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_autoround_writes_the_same_format_and_says_so(method: str, tmp_path: Path) -> None:
    """Few steps: what is tested is the file. Its weights are near the original without any scales
    fitted, in either format.
    """
    made = getattr(autoquant, method)(
        "demo", algorithm="autoround", iterations=4, group_size=64, **QUICK, out=tmp_path / "out"
    )
    artifact = made.artifacts[0]
    assert artifact.type == "4bit-64g-autoround"
    assert 0.05 < float(re.search(r"relative error (\d\.\d+)", artifact.checks[0].seen)[1]) < 0.15
    block = json.loads((made.folder / "config.json").read_text())["quantization_config"]
    assert block["quant_method"] == method
    assert "| algorithm | AutoRound 0." in made.card()
    assert f"| file format | {method.upper()} (" in made.card()
    assert {path.stat().st_mode & 0o777 for path in made.folder.glob("*.safetensors")} == {
        (tmp_path / "out" / "config.json").stat().st_mode & 0o777
    }
    worst = in_worker(
        "tests.helpers.folders:format_against_library",
        tmp_path,
        folder=str(made.folder),
        reader=method,
        bits=4,
    )
    assert worst["difference"] < 8e-3, "of AWQ's float16 scales the library makes bfloat16"


@pytest.mark.parametrize("name", ["gemma3_text", "qwen35_moe"])
def test_each_block_gets_its_own_mask_and_rotary_embedding(name: str, tmp_path: Path) -> None:
    """Sliding beside full attention, linear beside full attention; in batches."""
    folder = str(tmp_path / "model")
    in_worker("bench.cases.architectures:make", tmp_path, name=name, folder=folder)
    far = in_worker("tests.helpers.blocks:called_like_the_first", tmp_path, folder=folder)
    assert max(far["own"]) < 1e-5
    if name == "gemma3_text":
        assert max(far["as given"]) > 0.01, "the first block's are wrong for others"


@pytest.mark.slow
def test_learned_rounding_is_better_than_gptq_at_two_bits(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "bits": 2,
        "group_size": 64,
        "calibration_samples": 16,
        "calibration_length": 128,
        "eval_chunks": 10,
    }
    plain = autoquant.gptq("demo-small", **values, out=tmp_path / "g").artifacts[0].evaluation
    learned = (
        autoquant.gptq(
            "demo-small", **values, algorithm="autoround", iterations=50, out=tmp_path / "a"
        )
        .artifacts[0]
        .evaluation
    )
    assert learned.kl_mean < 0.8 * plain.kl_mean


@pytest.mark.slow
@pytest.mark.parametrize("instructions", [True, False])
def test_autoround_holds_the_model_at_16_bits_with_bfloat16_instructions_and_without(
    tmp_path: Path, instructions: bool
) -> None:
    seen = in_worker(
        "tests.helpers.arithmetic:widths_in_autoround",
        tmp_path,
        instructions=instructions,
        model=str(source.resolve("demo-small").folder),
        folder=str(tmp_path),
    )
    assert seen == {"dtypes": ["torch.bfloat16"], "products in float32": not instructions}

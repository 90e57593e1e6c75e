"""Models as people have them, from their names on the Hub to measured, uploaded repositories in
one command each.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.hub import Hub
from tests.hub.conftest import User
from tests.workers import in_worker

SHORT = ("--evaluate", "on", "--eval-chunks", "1")
CALIBRATED = ("--calibration-samples", "8", "--calibration-length", "128")


@pytest.mark.parametrize(
    ("name", "words", "uploaded", "said"),
    [
        (
            "gemma3_vision",
            ("gguf", "--types", "Q8_0"),
            ("gemma3_vision-Q8_0.gguf", "mmproj-gemma3_vision-F16.gguf"),
            "pipeline_tag: image-text-to-text",
        ),
        (
            "mixtral",
            ("gptq", *CALIBRATED),
            ("config.json", "model.safetensors"),
            "a mixture of experts: transformers 5 does not load quantized experts",
        ),
        (
            "qwen3_fp8",
            ("w8a8",),
            ("config.json", "model.safetensors"),
            "FP8",
        ),
    ],
)
def test_from_a_name_to_a_measured_repository(
    user: User,
    hub: Hub,
    tmp_path: Path,
    name: str,
    words: tuple[str, ...],
    uploaded: tuple[str, ...],
    said: str,
) -> None:
    folder = tmp_path / name
    in_worker("bench.cases.architectures:make", tmp_path, name=name, folder=str(folder))
    hub.seed(f"maker/{name}", {path.name: path for path in folder.iterdir()})
    method, *options = words
    user.run(
        "quantize", method, f"maker/{name}", *options, *SHORT, "--upload", f"acme/{name}-{method}"
    )
    repo = f"acme/{name}-{method}"
    assert {*uploaded, "README.md"} <= set(hub.files(repo))
    card = hub.content(repo, "README.md").decode()
    assert said in card
    assert f"base_model: maker/{name}" in card
    assert "KL divergence" in card

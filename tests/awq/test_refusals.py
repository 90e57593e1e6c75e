"""What AWQ and AutoRound refuse: bad options, models they cannot quantize, too little memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.core.errors import InputError
from autoquant.methods import folder
from tests.workers import in_worker


@pytest.mark.parametrize(
    ("method", "values", "said"),
    [
        (
            "awq",
            {"bits": 3},
            (
                r"bits: 3 is not allowed; allowed: 4 \(AWQ's file format has no other; for 2, 3 or"
                r" 8 bits take GPTQ\)"
            ),
        ),
        ("awq", {"group_size": 48}, "group_size: 48 is not allowed"),
        (
            "awq",
            {"algorithm": "awq", "iterations": 50},
            "iterations: 50 has an effect only with algorithm='autoround'",
        ),
        (
            "gptq",
            {"iterations": 50},
            "iterations: 50 has an effect only with algorithm='autoround'",
        ),
        (
            "gptq",
            {"algorithm": "autoround", "desc_act": True},
            "desc_act: on has an effect only with algorithm='gptq'",
        ),
        (
            "gptq",
            {"algorithm": "autoround", "damp_percent": 0.1},
            "damp_percent: 0.1 has an effect only with algorithm='gptq'",
        ),
        (
            "gptq",
            {"algorithm": "autoround", "backend": "auto-gptq"},
            "backend: auto-gptq has an effect only with algorithm='gptq'",
        ),
        (
            "gguf",
            {"calibration": "mine.txt"},
            "calibration: mine.txt has an effect only with imatrix='calibration'",
        ),
    ],
)
def test_bad_options_leave_nothing_behind(
    method: str, values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        getattr(autoquant, method)("demo", out=tmp_path / "out", **values)
    assert list(tmp_path.iterdir()) == []


def test_blocks_that_take_inputs_of_their_own_are_not_for_autoround(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    in_worker("bench.cases.architectures:make", tmp_path, name="gemma4_e_text", folder=str(folder))
    for name in ("gptq", "awq"):
        with pytest.raises(
            InputError, match=r"each block inputs of its own .*GPTQ with algorithm gptq takes such"
        ):
            getattr(autoquant, name)(folder, algorithm="autoround", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_layers_whose_outputs_do_not_come_out_even_are_named(tmp_path: Path) -> None:
    folder = in_worker(
        "tests.helpers.models:random_model", tmp_path, folder=str(tmp_path / "odd"), hidden_size=192
    )
    with pytest.raises(
        InputError,
        match=(
            r"algorithm: awq clips outputs 64 at a time; 4 of 14 layers are not divisible by it,"
            r" e.g. .*k_proj \(96 outputs\). Take algorithm autoround"
        ),
    ):
        autoquant.awq(folder, algorithm="awq", out=tmp_path / "out")


@pytest.mark.slow
def test_too_little_memory_says_what_would_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker may have 3 GB of addresses, torch's libraries among them; its allocator then
    really fails.
    """
    monkeypatch.setattr(folder, "memory_available", lambda: 3_000_000_000)
    real = folder.process.call

    def call(target: str, /, **kwargs: Any) -> Any:
        if target != "autoquant.backends.gptqmodel:quantize":
            return real(target, **kwargs)
        return real("tests.helpers.folders:gptqmodel_in_little_memory", **kwargs)

    monkeypatch.setattr(folder.process, "call", call)
    with pytest.raises(
        InputError,
        match=(
            r"out of memory. Quantizing tiny-austen-4m with 128 samples of 256 tokens, 128 at a"
            r" time, needs about .* GB; 3.0 GB are free. "
            r"What would fit: batch_size=1"
        ),
    ):
        autoquant.gptq(
            "demo", calibration_length=256, batch_size=128, evaluate="off", out=tmp_path / "out"
        )
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", "out of memory on the GPU"),
        (
            (
                "[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory:"
                " you tried to allocate 8 bytes"
            ),
            "out of memory",
        ),
        ("something else", None),
    ],
)
def test_torchs_ways_to_say_out_of_memory(text: str, found: str | None) -> None:
    from autoquant.runtime.worker import out_of_memory

    try:
        try:
            raise RuntimeError(text)
        except RuntimeError as inner:
            raise RuntimeError("a thread failed") from inner
    except RuntimeError as error:
        seen = out_of_memory(error)
    assert (seen[0] if seen else None) == found

"""AWQ and AutoRound on the bundled model: the file format read by us and by the library, what is
refused, what the card says.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import autoquant
from autoquant import source
from autoquant.core.errors import CheckFailed, InputError
from autoquant.formats import awq as awq_format
from autoquant.formats import checks as folder_checks
from autoquant.formats.tensors import Tensors
from autoquant.methods import folder, grouped
from autoquant.result import Result
from tests import test_gguf
from tests.test_gptq import QUICK, in_worker


@pytest.fixture(scope="module")
def four_bits(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return autoquant.awq(
        "demo",
        algorithm="awq",
        calibration_samples=8,
        calibration_length=128,
        group_size=64,
        eval_chunks=10,
        out=tmp_path_factory.mktemp("awq") / "run",
    )


def test_packing_by_hand() -> None:
    """Eight outputs a word in AutoAWQ's order, written here nibble by nibble."""
    rng = np.random.default_rng(0)
    inputs, outputs, group_size = 64, 24, 32
    code, zero = (
        rng.integers(0, 16, (inputs, outputs)),
        rng.integers(0, 16, (inputs // group_size, outputs)),
    )
    scales = rng.random((inputs // group_size, outputs), dtype=np.float32)

    def words(values: Any) -> Any:
        out = np.zeros((len(values), outputs // 8), dtype=np.uint32)
        for place, which in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
            for word in range(outputs // 8):
                out[:, word] |= values[:, 8 * word + which].astype(np.uint32) << np.uint32(
                    4 * place
                )
        return out.view(np.int32)

    wanted = np.array(
        [
            [
                scales[i // group_size, o] * float(code[i, o] - zero[i // group_size, o])
                for i in range(inputs)
            ]
            for o in range(outputs)
        ],
        dtype=np.float32,
    )
    assert np.array_equal(
        awq_format.dequantize({"qweight": words(code), "qzeros": words(zero), "scales": scales}),
        wanted,
    )


def test_our_reader_agrees_with_the_librarys(four_bits: Result, tmp_path: Path) -> None:
    worst = in_worker(
        "tests.helpers.folders:format_against_library",
        tmp_path,
        folder=str(four_bits.folder),
        reader="awq",
        bits=4,
    )
    assert worst["layers"] == 28
    assert (
        in_worker(
            "tests.helpers.folders:dequantized_against_transformers",
            tmp_path,
            folder=str(four_bits.folder),
        )
        < 2e-3
    ), "KL in nats; the library computes in bfloat16"
    assert worst["difference"] < 5e-3, "the library computes in bfloat16"


def test_the_folder_is_a_model_and_the_card_names_algorithm_and_format(four_bits: Result) -> None:
    assert {path.name for path in four_bits.folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "quantize_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        "size-against-quality.png",
        ".autoquant",
    }
    for name in ("config.json", "quantize_config.json", "README.md"):
        assert "/tmp/" not in (four_bits.folder / name).read_text()
    block = json.loads((four_bits.folder / "config.json").read_text())["quantization_config"]
    assert (
        block["quant_method"],
        block["bits"],
        block["group_size"],
        block["zero_point"],
        block["version"],
    ) == ("awq", 4, 64, True, "gemm")
    artifact = four_bits.artifacts[0]
    assert artifact.evaluation is not None
    assert artifact.evaluation.kl_mean < 0.02
    (item,) = autoquant.plan(
        "awq", "demo", algorithm="awq", group_size=64, out=str(four_bits.folder)
    ).items
    assert item.bits_per_weight == pytest.approx(artifact.bits_per_weight, rel=2e-3)
    card = four_bits.card()
    for wanted in (
        "| algorithm | AWQ: activation-aware scaling and clipping (GPTQModel ",
        "| file format | AWQ (gemm) |",
        "vllm serve",
        "GPTQModel.load",
        "AWQ's scales fitted",
    ):
        assert wanted in card


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


def test_mixtures_of_experts_are_refused(tmp_path: Path) -> None:
    folder = in_worker(
        "tests.helpers.models:random_mixture", tmp_path, folder=str(tmp_path / "mixture")
    )
    for method in (autoquant.gptq, autoquant.awq):
        with pytest.raises(
            InputError,
            match=(
                "is a mixture of experts: transformers 5 does not load experts from .* files .*"
                " GGUF takes such models"
            ),
        ):
            method(folder, group_size=64, out=tmp_path / "out")


def test_layers_whose_outputs_do_not_come_out_even_are_named(tmp_path: Path) -> None:
    folder = in_worker(
        "tests.helpers.models:random_model", tmp_path, folder=str(tmp_path / "odd"), hidden_size=192
    )
    with pytest.raises(
        InputError,
        match=(
            r"algorithm: the AWQ algorithm clips outputs that many at a time: 64; 4 of 14 layers do"
            r" not divide so, e.g. .*k_proj \(96 outputs\)"
        ),
    ):
        autoquant.awq(folder, algorithm="awq", out=tmp_path / "out")


def test_a_scaled_layer_is_compared_without_its_scales_and_a_spoiled_one_is_not() -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((48, 64)).astype(np.float32)
    rows, columns = (
        rng.uniform(0.3, 3, 48).astype(np.float32),
        rng.uniform(0.3, 3, 64).astype(np.float32),
    )
    noise = 0.1 * rng.standard_normal((48, 64)).astype(np.float32)
    scaled = rows[:, None] * (weight + noise) * columns
    assert folder_checks.relative_error(weight, scaled, scaled=False) > 0.5
    assert folder_checks.relative_error(weight, scaled, scaled=True) == pytest.approx(0.1, abs=0.02)
    assert folder_checks.relative_error(weight, rng.permutation(scaled), scaled=True) > 0.8


def test_at_few_bits_a_layer_may_move_far_but_not_unsaid(tmp_path: Path) -> None:
    """SmolLM2 at 2 bits without zero points: a layer off by 109 %, and a perplexity of 72,000."""
    weight = np.ones((4, 8), dtype=np.float32)
    save_file({"a.weight": weight, "b.weight": weight}, tmp_path / "model.safetensors")
    tensors = Tensors(str(tmp_path))
    seen = folder_checks.layer_errors(
        ["a", "b"],
        tensors,
        lambda name: weight * (1.1 if name == "a" else 2.09),
        lambda *_: None,
        limit=folder_checks.LOW_BITS,
    )
    (said,) = folder_checks.warnings(seen, grouped.ADVICE)
    assert said.startswith("b is off by 109% of its own size: at so few bits")
    assert folder_checks.warnings({"a": 0.99}, grouped.ADVICE) == []
    with pytest.raises(CheckFailed, match="a is off by 109%"):
        folder_checks.layer_errors(["a", "b"], tensors, lambda name: weight * 2.09, lambda *_: None)


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
            r" time, needs about .* GB; 3.0 GB are there. "
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


# --- one calibration object -----------------------------------------------------------------------


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
    layout = test_gguf.in_worker(
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
    assert lines == ["tiny-austen-4m", "novels", "numbers"]
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

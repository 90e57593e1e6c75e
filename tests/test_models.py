"""Architectures and layouts as they are published, through the methods: experts, towers,
state-space mixers, draft blocks, and sources that are quantized. docs/models.md has all of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autoquant
from autoquant.core.errors import CheckFailed, InputError, ProcessFailed
from autoquant.core.files import sha256_of
from autoquant.core.records import Evaluation
from autoquant.result import Result
from autoquant.source import fetch, resolve, structure
from autoquant.source.parts import division
from tests.workers import in_llama_worker, in_worker

MEASURED = {"evaluate": "on", "eval_chunks": 1}
Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A tiny random model by its name in bench.cases.architectures, made once."""
    folder = tmp_path_factory.mktemp("models")

    def make(name: str) -> Path:
        if not (folder / name).is_dir():
            target = str(folder / name)
            in_worker("bench.cases.architectures:make", folder, name=name, folder=target)
        return folder / name

    return make


def run(method: str, folder: Path, out: Path, **values: Any) -> Result:
    options = {**({} if "evaluate" in values else MEASURED), **values}
    if method == "gguf":
        options = {"pre_tokenizer": "gpt-2", "types": ("Q8_0",), **options}
    if method in ("gptq", "awq"):
        options = {"calibration_samples": 8, "calibration_length": 128, **options}
    if method == "awq" and "algorithm" not in options:
        options = {"iterations": 20, **options}  # AutoRound's
    made: Result = getattr(autoquant, method)(folder, out=out / "run", **options)
    return made


def bits(result: Result) -> float:
    return float(result.artifacts[0].bits_per_weight)


def loss(result: Result) -> float:
    evaluation = result.artifacts[0].evaluation
    assert isinstance(evaluation, Evaluation)
    return evaluation.kl_mean


@pytest.mark.parametrize(
    ("method", "name", "most"),
    [
        ("gguf", "qwen35_mtp", 0.05),  # a draft block, an extra dimension of 1
        ("gguf", "qwen35_no_mtp", 0.05),  # config counts a draft block that is not there
        ("gguf", "gpt_neox_old", 0.01),  # names that transformers renames
        ("gguf", "bloom", 0.01),  # repeats one token itself
        ("gguf", "qwen3_fp8", 0.01),
        ("gguf", "deepseek_v3_fp8", 0.1),
        ("gguf", "gpt_oss_mxfp4", 0.05),
        ("gguf", "gemma3_vision", 0.01),  # SentencePiece's tokenizer without tokenizer.model
        ("gguf", "gemma4_text", 0.05),  # more rows than tokens
        ("gguf", "phi4_mini", 0.01),  # a tokenizer of bytes where Phi-3's is looked for
        ("gptq", "qwen35", 0.8),  # layers that GPTQModel leaves, and a tower
        ("awq", "mistral3_vision", 0.4),
        ("awq awq", "qwen25_vl", 0.4),
        ("awq", "gpt_oss", 0.4),
        ("awq", "qwen35", 0.8),  # linear attention before full attention: other arguments
        ("awq", "starcoder2", 0.2),  # a scale for its activation
        ("hqq", "mixtral", 0.4),
        ("hqq", "gpt_oss", 0.4),  # experts in one tensor, transposed, gate and up in turns
        ("hqq", "mamba", 0.2),
        ("hqq", "gemma3_vision", 0.5),
        ("bitsandbytes", "qwen35_moe_fused", 1.0),
        ("bitsandbytes", "mamba2", 0.2),
        ("w8a8", "llama4", 0.05),  # experts in one tensor, transposed
        ("w8a8", "ministral3_fp8", 0.05),
        ("w8a8", "llama_w8a8", 0.01),
    ],
)
def test_it_is_quantized_read_back_and_near(
    method: str, name: str, most: float, made: Made, tmp_path: Path
) -> None:
    method, *algorithm = method.split()
    result = run(method, made(name), tmp_path, **({"algorithm": "awq"} if algorithm else {}))
    assert loss(result) < most
    assert list(tmp_path.glob("run/.autoquant/work/*")) == []
    if name in ("gemma3_vision", "qwen25_vl", "qwen35", "mistral3_vision") and method != "gguf":
        (seen,) = [check.seen for check in result.artifacts[0].checks if check.name == "sees"]
        assert seen.endswith("pixels; upside down the logits differ")
    notes = " ".join(result.artifacts[0].notes)
    assert "transformers does not load the folder" not in notes, "experts have a note of their own"


def test_static_scales_of_a_model_that_sees(made: Made, tmp_path: Path) -> None:
    few = {"calibration_samples": 8, "calibration_length": 128}
    result = run("w8a8", made("qwen25_vl"), tmp_path, scheme="int8-static", **few)
    assert loss(result) < 0.05
    assert "stays in 16 bits: model.visual" in result.artifacts[0].notes[0]
    with pytest.raises(InputError, match="is a mixture of experts"):
        autoquant.w8a8(made("mixtral"), scheme="int8-static", out=tmp_path / "out")


def test_experts_get_names_of_their_own_and_gates_stay(made: Made, tmp_path: Path) -> None:
    """As checkpoints have them that hold experts one by one."""
    source, result = made("gpt_oss"), run("w8a8", made("gpt_oss"), tmp_path)
    before, after = load(source), load(result.folder)
    base = "model.layers.0.mlp.experts"
    whole = before[f"{base}.gate_up_proj"]  # [experts, inputs, gate and up in turns]
    for name, wanted in (("gate_proj", whole[3, :, 0::2].T), ("up_proj", whole[3, :, 1::2].T)):
        codes, scale = after[f"{base}.3.{name}.weight"], after[f"{base}.3.{name}.weight_scale"]
        assert codes.shape == wanted.shape
        assert np.abs(codes * scale - wanted).max() <= 0.51 * scale.max()
    assert f"{base}.gate_up_proj" not in after
    gate = "model.layers.0.mlp.router.weight"
    assert (after[gate] == before[gate]).all()
    block = json.loads((result.folder / "config.json").read_text())["quantization_config"]
    assert "lm_head" in block["ignore"]
    assert "transformers 5 does not load quantized experts" in str(result.artifacts[0].notes)


def test_towers_stay_as_they_are(made: Made, tmp_path: Path) -> None:
    source, result = made("gemma3_vision"), run("bitsandbytes", made("gemma3_vision"), tmp_path)
    before, after = load(source), load(result.folder)
    towers = [name for name in before if "vision" in name or "projector" in name]
    assert len(towers) > 10
    assert all((after[name] == before[name]).all() for name in towers)
    assert "stays in 16 bits: model.vision_tower" in str(result.artifacts[0].notes)
    block = json.loads((result.folder / "config.json").read_text())["quantization_config"]
    assert any("vision_tower" in name for name in block["llm_int8_skip_modules"])


def test_mxfp4_of_mxfp4_loses_nothing(made: Made, tmp_path: Path) -> None:
    """The default for a source whose experts are MXFP4; the plan says what it will be."""
    folder = made("gpt_oss_mxfp4")
    plan = autoquant.plan("gguf", folder, pre_tokenizer="gpt-2", types="Q4_K_M,MXFP4_MOE")
    assert [item.impossible for item in plan.items] == ["", ""]
    assert "the source is quantized (mxfp4): it is made 16-bit tensor by tensor" in str(plan.notes)
    result = autoquant.gguf(
        folder, out=tmp_path / "run", pre_tokenizer="gpt-2", evaluate="on", eval_chunks=1
    )
    assert [artifact.type for artifact in result.artifacts] == ["MXFP4_MOE"]
    assert loss(result) < 0.02
    assert "mxfp4" in result.card()


def test_a_source_of_our_own_making_is_read_back(tmp_path: Path) -> None:
    first = autoquant.bitsandbytes("demo", evaluate="off", out=tmp_path / "first")
    again = run("bitsandbytes", first.folder, tmp_path)
    assert loss(again) < 1e-6, "its values have codes already"
    config = json.loads((first.folder / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "quark"
    (first.folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"quantized already \(quark\), and cannot be read back"):
        autoquant.hqq(first.folder, out=tmp_path / "other")


def test_a_wrong_conversion_is_not_handed_out(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config that does not fit the weights any more: llama.cpp runs something else."""
    folder = made("llama")
    monkeypatch.setattr("autoquant.evaluate.conversion.WRONG", 1e-9)
    with pytest.raises(CheckFailed, match="the conversion is wrong for LlamaForCausalLM"):
        run("gguf", folder, tmp_path)


def test_sizes_are_known_from_headers(made: Made, tmp_path: Path) -> None:
    """Of experts in one tensor and towers too: what is planned is what is written."""
    for name in ("qwen35_moe_fused", "gemma3_vision"):
        source = resolve(made(name))
        planned = autoquant.plan("w8a8", made(name)).items[0]
        result = run("w8a8", made(name), tmp_path / name, evaluate="off")
        assert abs(8 * planned.bytes / division(source).parameters - bits(result)) < 1e-9
        assert division(source).parameters <= source.parameters


def test_the_16_bit_form_is_that_of_the_library(made: Made, tmp_path: Path) -> None:
    """Against transformers' own reader of the format, where it reads it on a CPU."""
    for name in ("qwen3_fp8", "gpt_oss_mxfp4"):
        form = fetch(resolve(made(name))).folder
        difference = in_worker(
            "tests.helpers.models:dequantized_by_transformers",
            tmp_path,
            folder=str(made(name)),
            form=str(form),
        )
        assert difference == 0.0, name


def test_the_look_is_kept_and_quick(made: Made) -> None:
    found = structure.structure(resolve(made("qwen3_next_mtp")))
    assert found.experts
    assert len(structure.drafts(resolve(made("qwen3_next_mtp")))) > 10
    assert structure.structure(resolve(made("qwen3_next_mtp"))) is found


def load(folder: Path) -> dict[str, Any]:
    """All tensors of a folder; NumPy has no bfloat16, so those as float32."""
    return {
        name: value
        for path in sorted(folder.glob("*.safetensors"))
        for name, value in _load(path).items()
    }


def _load(path: Path) -> dict[str, Any]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    kinds = {"F16": "<f2", "F32": "<f4", "I8": "i1", "U8": "u1", "BF16": "<u2", "F8_E4M3": "u1"}
    found = {}
    for name, entry in json.loads(raw[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        start, end = (8 + length + at for at in entry["data_offsets"])
        values = np.frombuffer(raw[start:end], dtype=kinds[entry["dtype"]])
        if entry["dtype"] == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        found[name] = values.reshape(entry["shape"])
    return found


@pytest.mark.parametrize("name", ["gemma2", "phi3", "mistral_old"])
def test_a_tokenizer_of_pieces_needs_no_tokenizer_model(
    made: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """llama.cpp makes the same tokens of a text, with and without a space before it, and nothing
    is said of them.
    """
    result = run("gguf", made(name), tmp_path, pre_tokenizer="")
    assert loss(result) < 0.01
    assert "token ids differ" not in caplog.text


@pytest.mark.parametrize(
    ("name", "towers"), [("gemma3_vision", "vision_tower."), ("qwen3_vl", "visual.")]
)
def test_what_sees_goes_into_a_file_of_its_own(
    made: Made, tmp_path: Path, name: str, towers: str
) -> None:
    """Every tensor of the tower is there, whatever the file calls it."""
    values = {"evaluate": "off", "modelfile": True, "mmproj_type": "bf16"}
    result = run("gguf", made(name), tmp_path, **values)
    file = f"mmproj-{name}-BF16.gguf"
    path, source = str(result.folder / file), str(made(name))
    lost = in_llama_worker(
        "tests.helpers.gguf:not_in", tmp_path, path=path, folder=source, prefix=towers
    )
    assert lost == []
    card = (result.folder / "README.md").read_text(encoding="utf-8")
    assert f"llama-mtmd-cli -m {name}-Q8_0.gguf --mmproj {file} --image" in card
    assert f"{sha256_of(result.folder / file)}  {file}" in card
    assert f"FROM ./{file}" in (result.folder / f"{name}-Q8_0.Modelfile").read_text()
    assert f"{file} (0.00" in card, "what it is, among how the files were made"


def test_without_its_processor_a_tower_is_left_out_and_that_is_said(
    made: Made, tmp_path: Path
) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(made("gemma3_vision"), folder)
    (folder / "preprocessor_config.json").unlink()
    plan = autoquant.plan("gguf", folder, pre_tokenizer="gpt-2")
    assert any("left out: model.vision_tower" in note for note in plan.notes), plan.notes
    assert not any(
        "left out" in note
        for note in autoquant.plan("gguf", made("qwen35"), pre_tokenizer="gpt-2").notes
    )
    result = run("gguf", folder, tmp_path, evaluate="off")
    assert not list(result.folder.glob("mmproj*"))
    card = (result.folder / "README.md").read_text(encoding="utf-8")
    assert "llama.cpp's converter makes no mmproj file of them (KeyError: 'image_mean')" in card
    alone = run("gguf", made("qwen35"), tmp_path / "alone", evaluate="off", mmproj=False)
    assert not list(alone.folder.glob("mmproj*"))
    assert "left out, as asked: model.visual" in (alone.folder / "README.md").read_text()


def stored(path: Path) -> dict[str, bytes]:
    """The tensors of a safetensors file as bytes."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    places = {name: one["data_offsets"] for name, one in header.items()}
    return {name: data[start + first : start + last] for name, (first, last) in places.items()}


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_experts_are_quantized_one_by_one_under_the_published_names(
    method: str, made: Made, tmp_path: Path
) -> None:
    """By GPTQModel and by AutoRound. transformers 5 calls Mixtral's modules otherwise. What is not
    quantized is the source's own.
    """
    folder = made("mixtral")
    result = run(method, folder, tmp_path, calibration_samples=1, calibration_length=32)
    assert loss(result) < 0.5
    written = stored(result.folder / "model.safetensors")
    source = stored(folder / "model.safetensors")
    quantized = {name.rpartition(".")[0] for name in written if name.endswith(".qweight")}
    block = "model.layers.1.block_sparse_moe"
    assert {f"{block}.experts.{i}.w{j}" for i in range(4) for j in (1, 2, 3)} < quantized
    kept = {name for name in written if name.rpartition(".")[0] not in quantized}
    assert kept == {name for name in source if name.removesuffix(".weight") not in quantized}
    assert f"{block}.gate.weight" in kept
    assert [name for name in kept if written[name] != source[name]] == []
    notes = " ".join(result.artifacts[0].notes)
    assert "a mixture of experts: transformers 5 does not load quantized experts" in notes


def test_where_a_library_fails_another_way_is_named(made: Made, tmp_path: Path) -> None:
    """GPTQModel 7.6 does so on GPT-NeoX."""
    with pytest.raises(ProcessFailed, match=r"gptqmodel:quantize failed: .*\(--algorithm autoro"):
        run("gptq", made("gpt_neox_old"), tmp_path)

"""GPTQ with bits by module: the choice, what the config says of it, who loads it, what is
refused.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.core.errors import CheckFailed, InputError
from autoquant.core.files import sha256_of
from autoquant.formats.gptq import Kind, kind
from autoquant.formats.tensors import Tensors
from autoquant.methods.gptq import bits
from autoquant.result import Result
from tests.workers import in_worker

COMMON: dict[str, Any] = {"calibration_samples": 16, "calibration_length": 256, "eval_chunks": 10}
MIXED: dict[str, Any] = {**COMMON, "bpw": 5.0, "sensitivity_samples": 8}
TYPE = "5.00bpw-128g"


@pytest.fixture(scope="module")
def five_bits(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return autoquant.gptq("demo", **MIXED, out=tmp_path_factory.mktemp("bits") / "run")


def block_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return found


def stored(folder: Path) -> dict[str, Kind]:
    """How each layer is quantized, by the shapes of its tensors."""
    tensors = Tensors(str(folder))
    found = {}
    for name in (one.removesuffix(".qweight") for one in tensors.names() if "qweight" in one):
        words, groups, inputs = (
            len(tensors.raw(f"{name}.{part}")) for part in ("qweight", "scales", "g_idx")
        )
        found[name] = Kind(words * 32 // inputs, inputs // groups)
    return found


def test_it_has_at_most_the_bits_and_loses_less_than_four(
    five_bits: Result, tmp_path: Path
) -> None:
    tensors = Tensors(str(five_bits.folder))
    names = [one for one in tensors.names() if one.endswith((".qweight", ".qzeros", ".scales"))]
    weights = sum(
        len(tensors.raw(f"{one}.g_idx")) * tensors.raw(f"{one}.scales").shape[1]
        for one in stored(five_bits.folder)
    )
    rate = 8 * sum(map(tensors.size, names)) / weights
    assert 4.9 < rate <= 5.0
    assert [one.type for one in five_bits.artifacts] == [TYPE]
    assert f"| bits by module | {rate:.3f} bits per weight" in five_bits.card()
    four = autoquant.gptq("demo", **COMMON, out=tmp_path / "out").artifacts[0]
    assert five_bits.artifacts[0].evaluation is not None
    assert four.evaluation is not None
    assert five_bits.artifacts[0].evaluation.kl_mean < 0.8 * four.evaluation.kl_mean
    (item,) = autoquant.plan("gptq", "demo", bpw=5.0).items
    assert 0.99 * item.bytes < tensors.bytes() <= item.bytes


def test_what_runtimes_join_is_alike_and_the_config_says_what_each_is(five_bits: Result) -> None:
    found, block = stored(five_bits.folder), block_of(five_bits.folder)
    assert len({*found.values()}) > 2, "4 and 8 bits, groups of 128 and 32"
    for number in range(4):
        base = f"model.layers.{number}"
        assert len({found[f"{base}.self_attn.{one}_proj"] for one in "qkv"}) == 1
        assert found[f"{base}.mlp.gate_proj"] == found[f"{base}.mlp.up_proj"]
    assert {name: kind(block, name) for name in found} == found
    assert json.loads((five_bits.folder / "quantize_config.json").read_text()) == block
    assert "8bit-128g" in five_bits.recipe()
    assert five_bits.recipe().splitlines()[2].split()[0] == "q_proj"


def test_a_layer_is_looked_into_as_it_is_stored(five_bits: Result) -> None:
    name, own = next((n, k) for n, k in stored(five_bits.folder).items() if k.bits == 8)
    looked = five_bits.look(layer=name)
    assert looked.stored == str(own)
    assert looked.levels > 16
    assert looked.relative_error < 0.03


def test_gptqmodel_loads_it_and_computes_what_our_reader_reads(
    five_bits: Result, tmp_path: Path
) -> None:
    assert "tokens with GPTQModel" in str(five_bits.checks())
    folder = str(five_bits.folder)
    seen = in_worker("tests.helpers.folders:mixed_against_gptqmodel", tmp_path, folder=folder)
    assert seen["layers"] == 28
    assert seen["kernels"] == ["TorchLinear"]
    assert seen["nats"] < 2e-3, "KL divergence; the library computes in 16 bits"
    assert seen["far"] < 0.02, "of the largest logit"


def test_a_config_that_says_something_else_is_found(five_bits: Result, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(five_bits.folder, folder, ignore=shutil.ignore_patterns(".autoquant"))
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]["dynamic"]
    (folder / "config.json").write_text(json.dumps(config))
    name = next(n for n, one in stored(folder).items() if one == (8, 128))
    known = {
        "source": str(five_bits.source.folder),
        "layers": {name: {"name": name, "tensor": f"{name}.weight", "shape": [0, 0]}},
        "scaled": False,
        "bits": 4,
        "advice": "",
        "parameters": 4_196_608,
    }
    target, said = "autoquant.backends.checks:verify", "has codes of 8 bits .* it is 4bit-128g"
    with pytest.raises(CheckFailed, match=said):
        in_worker(target, tmp_path, folder=str(folder), wanted={"bits": 4}, **known)
    wanted = {"dynamic": block_of(five_bits.folder)["dynamic"]}
    with pytest.raises(CheckFailed, match="quantization_config has {'dynamic': None}"):
        in_worker(target, tmp_path, folder=str(folder), wanted=wanted, **known)


def test_a_run_that_is_resumed_keeps_the_choice(
    five_bits: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = five_bits.folder / "model.safetensors"
    before = sha256_of(file)
    file.unlink()
    monkeypatch.setattr(bits, "_measured", lambda *_: pytest.fail("measured again"))
    with monkeypatch.context() as less:
        less.setattr("autoquant.methods.gradients.memory_available", lambda: 1)
        again = autoquant.gptq("demo", **MIXED, out=five_bits.folder)
        assert sha256_of(file) == before
        with pytest.raises(InputError, match="gradients on 9 chunks need"):  # which are not done
            autoquant.gptq("demo", **{**MIXED, "sensitivity_samples": 9}, out=five_bits.folder)
    assert again.recipe() == five_bits.recipe()
    with pytest.raises(InputError, match=f"holds a {TYPE} model; name another folder for 5.50bpw"):
        autoquant.gptq("demo", **{**MIXED, "bpw": 5.5}, out=five_bits.folder)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bpw": 4.1}, r"bpw: 4.1 is not allowed; .* groups of 128: 4.16 .* to 8.18"),
        ({"bpw": 8.3}, r"bpw: 8.3 is not allowed; .* to 8.18 \(all at 8 bits\)"),
        ({"bpw": 4.5, "group_size": 32}, r"groups of 32: 4.63 .* to 8.75"),
        ({"bpw": 12}, "bpw: 12 is not allowed; allowed: 0 to 9 bits per weight"),
        ({"bpw": 5, "bits": 8}, r"bits: 8 has no effect beside bpw=5.0 \(--bpw\); leave that out"),
        ({"bpw": 5, "algorithm": "autoround"}, "bpw: 5.0 has an effect only with algorithm='gptq'"),
        ({"bpw": 5, "backend": "auto-gptq"}, "AutoGPTQ gives all modules the same bits; leave out"),
        ({"sensitivity_samples": 8}, r"has an effect only with bpw \(--bpw\); add that"),
    ],
)
def test_bad_options_leave_nothing_behind(
    values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        autoquant.gptq("demo", out=tmp_path / "out", **values)
    assert list(tmp_path.iterdir()) == []


def test_models_that_it_does_not_go_with_are_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = in_worker("tests.helpers.models:random_mixture", tmp_path, folder=str(tmp_path / "m"))
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"is a mixture of experts, .* Take bits \(--bits\) inst"):
        autoquant.gptq(experts, bpw=5, out=out)
    shared = in_worker(
        "tests.helpers.models:of_case", tmp_path, folder=str(tmp_path / "s"), name="gemma3n_text"
    )
    with pytest.raises(InputError, match=r"share keys and values, .* Take bits \(--bits\) instead"):
        autoquant.gptq(shared, bpw=5, group_size=32, out=out)
    monkeypatch.setattr("autoquant.methods.gradients.memory_available", lambda: 700_000_000)
    with pytest.raises(InputError, match=r"gradients on 200 chunks need .* Take at most \d+ sens"):
        autoquant.gptq("demo", bpw=5, sensitivity_samples=200, out=out)
    assert not out.exists()


def test_a_plan_knows_what_gradients_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoquant.forward.cost.rate", lambda *, gpu=True: 1e9)
    planned = autoquant.plan("gptq", "demo", bpw=5.0, sensitivity_samples=2000)
    assert planned.seconds["measure sensitivities"] > 100
    assert planned.memory_needed > 2 * autoquant.plan("gptq", "demo").memory_needed
    assert [(item.type, item.note[:7]) for item in planned.items] == [(TYPE, "at most")]


SHAPES = {
    f"model.layers.{n}.{name}": shape
    for n in range(3)
    for name, shape in {
        "self_attn.q_proj": (256, 256),
        "self_attn.k_proj": (64, 256),
        "self_attn.v_proj": (64, 256),
        "self_attn.o_proj": (256, 256),
        "mlp.gate_proj": (512, 256),
        "mlp.up_proj": (512, 256),
        "mlp.down_proj": (256, 512),
    }.items()
}


@pytest.mark.parametrize("bpw", [4.16, 4.5, 5.0, 6.0, 8.18])
def test_the_best_kinds_fit_and_are_those_of_the_modules_that_lose_most(bpw: float) -> None:
    offered = bits.kinds(128)
    # what a module loses falls with its bits; one module loses a hundred times as much
    lost = {
        name: [
            (100.0 if name == "model.layers.1.mlp.down_proj" else 1.0) * 4.0**-one.bits
            / (2 if one.group_size == 32 else 1)
            for one in offered
        ]
        for name in SHAPES
    }  # fmt: skip
    chosen = bits.best(SHAPES, lost, offered, bpw)
    taken = sum(bits.taken(SHAPES[name], *one) for name, one in chosen.kinds.items())
    weights = sum(outputs * inputs for outputs, inputs in SHAPES.values())
    assert 8 * taken / weights == pytest.approx(chosen.bits)
    assert chosen.bits <= bpw
    for n in range(3):
        assert len({chosen.kinds[f"model.layers.{n}.self_attn.{one}_proj"] for one in "qkv"}) == 1
    if bpw > 4.5:
        assert chosen.kinds["model.layers.1.mlp.down_proj"].bits == 8
    nothing = bits.best(SHAPES, {}, offered, bpw)
    assert {*nothing.kinds.values()} == {Kind(4, 128)}, "of modules that nothing is known of"


def test_patterns_match_the_names_of_files_of_vllm_and_of_models_that_see() -> None:
    chosen = dict.fromkeys(SHAPES, Kind(4, 128))
    for name in SHAPES:
        if "layers.1." in name and name.endswith(("q_proj", "k_proj", "v_proj", "down_proj")):
            chosen[name] = Kind(8, 128)
        if name.endswith("o_proj"):
            chosen[name] = Kind(4, 32)
    said = bits.dynamic(chosen, Kind(4, 128))
    assert len(said) == 3, "one for all blocks where a module is alike"
    block = {"bits": 4, "group_size": 128, "dynamic": said}
    assert {name: kind(block, name) for name in SHAPES} == chosen
    assert list(said.values()) == [{"bits": 8}, {"group_size": 32}, {"bits": 8}] or (
        sorted(map(str, said.values())) == ["{'bits': 8}", "{'bits': 8}", "{'group_size': 32}"]
    )
    for other, wanted in {
        "model.layers.1.self_attn.qkv_proj": 8,
        "model.layers.11.self_attn.qkv_proj": 4,
        "model.layers.0.self_attn.qkv_proj": 4,
        "language_model.model.layers.1.mlp.down_proj": 8,
        "model.layers.1.mlp.gate_up_proj": 4,
        "model.layers.1.mlp.down_proj.lora": 4,
        "mtp.1.mlp.down_proj": 4,
    }.items():
        assert kind(block, other).bits == wanted, other
    assert all(re.match(one.removeprefix("+:"), "layers.1.x") is None for one in said)


def test_modules_that_no_runtime_joins_stand_alone() -> None:
    assert bits.joined("a.b.w1") == bits.joined("a.b.w3") == "a.b.gate_up_proj"
    assert bits.joined("a.attn.c_attn") == "a.attn.c_attn"
    assert bits.joined("a.o_proj") != bits.joined("b.o_proj")


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize(("width", "size"), [(4, 32), (8, 64), (4, -1)])
def test_rounding_is_gptqmodels_own(width: int, size: int, sym: bool, tmp_path: Path) -> None:
    target, asked = "tests.helpers.fisher:rounding", {"bits": width, "group_size": size}
    seen = in_worker(target, tmp_path, sym=sym, **asked)
    assert seen["error"] == pytest.approx(1, rel=2e-3)
    assert seen["other"] < 0.02, "ties: scales have 16 bits here"


def test_damage_is_what_the_whole_models_gradients_say(tmp_path: Path) -> None:
    seen = in_worker("tests.helpers.fisher:modules", tmp_path)
    assert seen["modules"] == 7
    assert seen["worst"] < 1e-3


def test_of_an_error_what_later_inputs_cannot_make_up_for_is_left(tmp_path: Path) -> None:
    seen = in_worker("tests.helpers.fisher:left", tmp_path)
    assert seen["found"] == pytest.approx(seen["wanted"], rel=1e-6)
    assert min(seen["found"]) < 0.9
    assert seen["alone"] == pytest.approx([1, 1, 1])
    assert seen["nothing"] == [0, 0, 0]

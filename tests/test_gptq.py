"""GPTQ on the bundled model: what is refused, what is written, and that our reader and the
library's agree about it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import autoquant
from autoquant import calibration
from autoquant.core import options
from autoquant.core.bundled import MODEL as DEMO_FOLDER
from autoquant.core.errors import CheckFailed, InputError
from autoquant.core.files import sha256_of
from autoquant.formats import gptq as gptq_format
from autoquant.formats.checks import layer_errors
from autoquant.methods import METHODS
from autoquant.methods.gptq import GptqOptions
from autoquant.result import Result
from autoquant.runtime import process

QUICK: dict[str, Any] = {"calibration_samples": 8, "calibration_length": 128, "evaluate": "off"}


def in_worker(target: str, tmp_path: Path, **kwargs: Any) -> Any:
    return process.call(
        target,
        log=tmp_path / "log",
        env={
            **METHODS["gptq"].environment(GptqOptions()),
            **process.finding(kwargs.pop("finding", ())),
        },
        **kwargs,
    )


@pytest.fixture(scope="module")
def four_bits(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return autoquant.gptq(
        "demo",
        calibration_samples=16,
        calibration_length=128,
        group_size=64,
        eval_chunks=10,
        out=tmp_path_factory.mktemp("gptq") / "run",
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packing_by_hand(bits: int) -> None:
    """A stream of codes, least significant bit first, over words of 32 bits: written here bit by
    bit, read by the package.
    """
    rng = np.random.default_rng(bits)
    n, columns = 96, 5
    wanted = rng.integers(0, 1 << bits, (n, columns))
    words = np.zeros((n * bits // 32, columns), dtype=np.uint64)
    for i in range(n):
        for b in range(bits):
            at = i * bits + b
            words[at // 32] |= ((wanted[i] >> b) & 1).astype(np.uint64) << np.uint64(at % 32)
    assert (gptq_format.codes(words.astype(np.uint32).view(np.int32), bits, n) == wanted).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 2, "group_size": 32, "sym": False},
        {"bits": 3, "group_size": 64},
        {"bits": 8, "group_size": -1},
        {"desc_act": True},
    ],
)
def test_our_reader_agrees_with_the_librarys(settings: dict[str, Any], tmp_path: Path) -> None:
    result = autoquant.gptq("demo-small", **{**QUICK, **settings}, out=tmp_path / "out")
    worst = in_worker(
        "tests.helpers.folders:format_against_library",
        tmp_path,
        folder=str(result.folder),
        reader="gptq",
        bits=settings.get("bits", 4),
    )
    assert worst["layers"] == 7
    assert worst["difference"] < 2e-3, "the library computes in float16"
    assert (
        in_worker(
            "tests.helpers.folders:dequantized_against_transformers",
            tmp_path,
            folder=str(result.folder),
        )
        < 2e-3
    ), "KL in nats"


def test_the_folder_is_a_model_and_names_no_path_of_this_machine(
    four_bits: Result, tmp_path: Path
) -> None:
    names = {path.name for path in four_bits.folder.iterdir()}
    assert names == {
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
        text = (four_bits.folder / name).read_text()
        assert "/tmp/" not in text
        assert str(four_bits.folder) not in text
    block = json.loads((four_bits.folder / "config.json").read_text())["quantization_config"]
    assert (
        block["quant_method"],
        block["bits"],
        block["group_size"],
        block["desc_act"],
        block["sym"],
    ) == ("gptq", 4, 64, False, True)
    assert four_bits.path("4bit-64g") == four_bits.folder
    assert four_bits.artifacts[0].evaluation is not None
    assert four_bits.artifacts[0].evaluation.kl_mean < 0.02
    card = four_bits.card()
    for wanted in (
        "| algorithm | GPTQ (GPTQModel ",
        "vllm serve",
        "library_name: transformers",
        "16 samples of 128 tokens",
        "relative error",
    ):
        assert wanted in card


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"),
    [("gptq", {}), ("awq", {"algorithm": "autoround", "iterations": 1})],
    ids=["GPTQModel", "AutoRound"],
)
def test_the_sources_own_config_and_what_is_not_quantized_arrive(
    method: str, settings: dict[str, Any], model: Callable[..., Path], tmp_path: Path
) -> None:
    """transformers 5 would write rope_theta into rope_parameters, where release 4 (and a vLLM with
    it) does not look: it would take 10000. And on a CPU the libraries work in bfloat16, and write
    all in it.
    """
    folder = model("older")
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 500000.0, "torch_dtype": config.pop("dtype", "float16")}
    (folder / "config.json").write_text(json.dumps(config))
    made = getattr(autoquant, method)(folder, **{**QUICK, **settings}, out=tmp_path / "out")
    written = json.loads((made.folder / "config.json").read_text())
    assert written["rope_theta"] == 500000.0
    assert "rope_parameters" not in written
    assert {
        name: value for name, value in config.items() if name != "torch_dtype"
    }.items() <= written.items()
    assert written["dtype"] == "float16"
    with (
        safe_open(folder / "model.safetensors", "np") as before,
        safe_open(made.folder / "model.safetensors", "np") as after,
    ):
        rest = [name for name in after.keys() if name in before.keys()]  # noqa: SIM118 (not dicts)
        assert {
            "model.embed_tokens.weight",
            "lm_head.weight",
            "model.norm.weight",
            "model.layers.3.input_layernorm.weight",
        } <= set(rest)
        for name in rest:
            assert after.get_tensor(name).dtype == np.float16
            assert np.array_equal(after.get_tensor(name), before.get_tensor(name)), name


def test_where_16_bit_products_are_slow_they_are_made_in_float32(tmp_path: Path) -> None:
    made = in_worker("tests.helpers.arithmetic:products", tmp_path, instructions=False)
    assert made.pop("replaced") is True
    assert set(made.values()) == {True}, made
    assert (
        in_worker("tests.helpers.arithmetic:products", tmp_path, instructions=True)["replaced"]
        is False
    )


def test_instructions_that_are_emulated_do_not_count(tmp_path: Path) -> None:
    assert in_worker("tests.helpers.arithmetic:instructions", tmp_path) == [
        ["x86_64", "oneDNN and AVX-512", True],
        ["x86_64", "oneDNN", False],
        ["x86_64", "neither", False],
        ["aarch64", "oneDNN", True],
    ]


def test_the_card_of_codes_that_only_plain_kernels_run_says_so(four_bits: Result) -> None:
    from dataclasses import replace

    assert "--dtype float16" not in four_bits.card()
    first = four_bits.artifacts[0]
    for changed in ({"bits": 3}, {"sym": False}):
        facts = {**first.facts, "settings": {**first.facts["settings"], **changed}}
        other = replace(four_bits, artifacts=(replace(first, facts=facts),))
        said = METHODS["gptq"].how_to_run(other)
        assert "vllm serve MODEL --max-model-len 256 --dtype float16" in said


def test_the_plan_is_the_size(
    four_bits: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (item,) = autoquant.plan("gptq", "demo", group_size=64).items
    weights = (four_bits.folder / "model.safetensors").stat().st_size
    assert 0.98 * weights < item.bytes < weights
    assert item.bits_per_weight == pytest.approx(four_bits.artifacts[0].bits_per_weight, rel=1e-3)
    assert list(tmp_path.iterdir()) == []


def test_more_bits_are_better(four_bits: Result, tmp_path: Path) -> None:
    eight = autoquant.gptq(
        "demo",
        bits=8,
        group_size=64,
        calibration_samples=8,
        calibration_length=128,
        eval_chunks=10,
        out=tmp_path / "out",
    )
    assert eight.artifacts[0].evaluation is not None
    assert four_bits.artifacts[0].evaluation is not None
    assert eight.artifacts[0].evaluation.kl_mean < four_bits.artifacts[0].evaluation.kl_mean / 5


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bits": 5}, "bits: 5 is not allowed; allowed: 2, 3, 4, 8"),
        ({"group_size": 48}, "group_size: 48 is not allowed; allowed: 0, -1, 32, 64, 128"),
        ({"damp_percent": 0.9}, "damp_percent: 0.9 is not allowed; allowed: 0.001 to 0.5"),
        ({"calibration": "/nowhere.txt"}, "calibration: no such file"),
        ({"calibration_length": 8}, "calibration_length: 8 is not allowed"),
        (
            {"calibration_split": "test"},
            "calibration_split: applies to datasets on the Hub only, but calibration is builtin",
        ),
        (
            {"calibration_column": "body"},
            "calibration_column: applies to datasets and .jsonl and .parquet files only",
        ),
    ],
)
def test_bad_options_leave_nothing_behind(
    values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        autoquant.gptq("demo", out=tmp_path / "out", **values)
    assert list(tmp_path.iterdir()) == []


def test_a_group_size_that_does_not_fit_names_layers_and_sizes_that_would(tmp_path: Path) -> None:
    folder = in_worker(
        "tests.helpers.models:random_model", tmp_path, folder=str(tmp_path / "odd"), hidden_size=192
    )
    with pytest.raises(
        InputError,
        match=(
            r"group_size: 128 does not divide the inputs of 12 of 14 layers: .*_proj \(192"
            r" inputs\).*Sizes that fit this model: -1, 32, 64"
        ),
    ):
        autoquant.gptq(folder, group_size=128, out=tmp_path / "out")
    (item,) = autoquant.plan("gptq", folder).items
    assert item.type == "4bit-64g", "unless asked, the largest that fits"


def test_a_weight_that_was_never_finite_is_no_small_error() -> None:
    spoiled = np.ones((4, 4), dtype=np.float32)
    spoiled[0, 0] = np.nan

    class Original:
        def get(self, _: str) -> Any:
            return spoiled

    with pytest.raises(CheckFailed, match="layer is off by nan%"):
        layer_errors(
            ["layer"], Original(), lambda _: np.ones((4, 4), dtype=np.float32), lambda *_: None
        )  # type: ignore[arg-type]


def test_a_text_that_gives_fewer_samples_is_named_on_the_card(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(
        "She sells sea shells by the sea shore, and the shells she sells are sea shells. " * 40
    )
    made = autoquant.gptq(
        "demo",
        **{**QUICK, "calibration_samples": 64},
        calibration=str(tmp_path / "short.txt"),
        out=tmp_path / "out",
    )
    samples = made.artifacts[0].facts["samples"]
    assert samples < 20
    assert (
        f"calibrated on {samples} samples of 128 tokens, for the text gives no more (64 were asked"
        " for)" in made.card()
    )


def test_a_model_too_large_to_be_measured_is_known_before_it_is_quantized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("autoquant.pipeline.memory_available", lambda: 900_000_000)
    with pytest.raises(InputError, match="measuring needs the unquantized model in memory"):
        autoquant.gptq("demo", **{**QUICK, "evaluate": "on"}, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("autoquant.pipeline.fetch", lambda _: pytest.fail("far enough"))
    with pytest.raises(pytest.fail.Exception, match="far enough"):
        autoquant.gptq("demo", **{**QUICK, "evaluate": "auto"}, out=tmp_path / "out")
    assert "it will not be measured: measuring needs" in caplog.text


def test_an_unknown_architecture_is_refused_before_much_is_downloaded(
    model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoquant.source.layers.bytes_to_fetch", lambda _: 1 << 30)
    early = lambda _: pytest.fail("it was downloaded first")  # noqa: E731
    monkeypatch.setattr("autoquant.pipeline.fetch", early)
    with pytest.raises(InputError, match="does not know the architecture 'nonesuch'; nearest of"):
        autoquant.gptq(model("odd", model_type="nonesuch"), **QUICK, out=tmp_path / "out")


def test_only_gguf_takes_pickles(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="allow_pickle"):
        autoquant.gptq("demo", allow_pickle=True, out=tmp_path / "out")


def test_an_already_quantized_source_is_refused(four_bits: Result, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run is quantized already \(gptq\)"):
        autoquant.gptq(four_bits.folder, out=tmp_path / "out")


def test_damaged_weights_and_unknown_architectures_are_refused(
    model: Callable[..., Path], tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    folder = model("nan")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"model.layers.1.mlp.up_proj.weight has NaN or Inf values"
    ):
        autoquant.gptq(folder, out=tmp_path / "out", **QUICK)
    with pytest.raises(
        InputError, match="GPTQModel does not know the architecture 'llamax'; it knows: .*llama"
    ):
        autoquant.gptq(model("other", model_type="llamax"), out=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_a_layer_that_was_spoiled_fails_the_check_and_is_named(
    four_bits: Result, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "spoiled"
    shutil.copytree(four_bits.folder, folder, ignore=shutil.ignore_patterns(".autoquant"))
    in_worker(
        "tests.helpers.folders:spoil",
        tmp_path,
        path=str(folder / "model.safetensors"),
        name="model.layers.2.mlp.down_proj.scales",
    )
    known = {
        "source": str(DEMO_FOLDER),
        "layers": ["model.layers.0.mlp.up_proj", "model.layers.2.mlp.down_proj"],
        "wanted": {"bits": 4},
        "scaled": False,
        "bits": 4,
        "advice": "",
        "parameters": 4_196_608,
    }
    with pytest.raises(CheckFailed, match=r"model.layers.2.mlp.down_proj is off by"):
        in_worker("autoquant.formats.checks:verify", tmp_path, folder=str(folder), **known)
    with pytest.raises(CheckFailed, match=r"quantization_config has \{'bits': 4\}"):
        in_worker(
            "autoquant.formats.checks:verify",
            tmp_path,
            folder=str(four_bits.folder),
            **{**known, "wanted": {"bits": 8}},
        )


def test_another_type_goes_to_another_folder(four_bits: Result) -> None:
    with pytest.raises(
        InputError, match="holds a 4bit-64g model; name another folder for 8bit-64g"
    ):
        autoquant.gptq("demo", bits=8, group_size=64, out=four_bits.folder, **QUICK)


@pytest.mark.slow
def test_sigkill_then_again(four_bits: Result, tmp_path: Path) -> None:
    import time

    out = tmp_path / "out"
    words = [
        sys.executable,
        "-m",
        "autoquant.cli",
        "quantize",
        "gptq",
        "demo",
        "--calibration-samples",
        "16",
        "--calibration-length",
        "128",
        "--group-size",
        "64",
        "--evaluate",
        "off",
        "--out",
        str(out),
    ]
    first = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / ".autoquant" / "work" / "scratch").exists():
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.wait()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    assert sha256_of(out / "model.safetensors") == sha256_of(
        four_bits.folder / "model.safetensors"
    ), "the bytes of an undisturbed run"
    assert not (out / ".autoquant" / "work").exists()


# --- calibration ----------------------------------------------------------------------------------


def built(**values: Any) -> GptqOptions:
    return options.build(GptqOptions, values)


def test_samples_are_packed_and_drawn_by_seed(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    texts = ["One short document. " * 40, "Another one; it is longer. " * 90]

    def pack(**more: Any) -> Any:
        given = {"samples": 4, "length": 64, "seed": 0, **more}
        target = "autoquant.calibration:pack"
        return in_worker(target, tmp_path, folder=str(DEMO_FOLDER), texts=texts, **given)

    chosen = pack()
    tokenizer = Tokenizer.from_file(str(DEMO_FOLDER / "tokenizer.json"))
    lengths = [len(tokenizer.encode(text, add_special_tokens=False).ids) + 1 for text in texts]
    everything = pack(samples=1000)
    assert len(everything) == sum(lengths) // 64, (
        "documents are joined: nothing is padded, only the last piece is left out"
    )
    assert [len(sample) for sample in chosen] == [64] * 4
    assert sum(sample.count(2) for sample in everything) in (
        1,
        2,
    ), "the end token stands between documents"
    assert pack() == chosen
    assert pack(seed=1) != chosen
    assert calibration.digest(chosen) != calibration.digest(pack(seed=1))
    with pytest.raises(InputError, match="one sample needs 9000"):
        pack(length=9000)


def test_text_from_files(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    lines = tmp_path / "a.jsonl"
    lines.write_text(
        '{"text": "one", "other": "1"}\n\n{"text": null}\n{"text": "two", "other": "2"}\n'
    )
    assert calibration.documents(built(calibration=str(lines))).texts == ["one", "two"]
    lines.write_text('{"text": "one\u2028line"}\n', encoding="utf-8")
    assert calibration.documents(built(calibration=str(lines))).texts == ["one\u2028line"], (
        "a separator that JSON lets stand, as web texts have"
    )
    lines.write_text('{"text": "one", "other": "1"}\n')
    array = tmp_path / "a.json"
    array.write_text('[{"text": "one", "other": "1"}, {"text": "two", "other": "2"}]')
    assert calibration.documents(
        built(calibration=str(array), calibration_column="other")
    ).texts == ["1", "2"]
    numbers = tmp_path / "numbers.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), numbers)
    with pytest.raises(InputError, match="column 'text' of .* holds no text"):
        calibration.documents(built(calibration=str(numbers)))
    table = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["eins", None, "zwei"]}), table)
    assert calibration.documents(built(calibration=str(table))).texts == ["eins", "zwei"]
    (tmp_path / "a.txt").write_text("plain")
    assert calibration.documents(built(calibration=str(tmp_path / "a.txt"))).texts == ["plain"]
    for path, column, said in (
        (lines, "body", "no text in column 'body'; it has: text, other"),
        (table, "body", "has no column 'body'; it has: text"),
        (tmp_path, "text", "no such file"),
    ):
        with pytest.raises(InputError, match=said):
            calibration.documents(built(calibration=str(path), calibration_column=column))
    (tmp_path / "bad.parquet").write_text("no")
    (tmp_path / "bad.jsonl").write_text("{")
    (tmp_path / "empty.txt").write_text(" \n")
    for name, said in (
        ("bad.parquet", "is no parquet file"),
        ("bad.jsonl", "cannot be read"),
        ("empty.txt", "is empty"),
    ):
        with pytest.raises(InputError, match=said):
            calibration.documents(built(calibration=str(tmp_path / name)))

"""HQQ on the bundled model: the layout by our reader and by the library, the loader, what is
refused. All bits, axes and group sizes.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autoquant
from autoquant import source
from autoquant.core import options
from autoquant.core.bundled import MODEL as DEMO_FOLDER
from autoquant.core.errors import CheckFailed, InputError
from autoquant.formats import hqq as hqq_format
from autoquant.methods import hqq
from autoquant.notebook.files import Files
from autoquant.result import Result
from autoquant.source.layers import linears
from tests.workers import in_worker


@pytest.fixture(scope="module")
def four_bits(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return autoquant.hqq("demo", evaluate="off", out=tmp_path_factory.mktemp("hqq") / "run")


def test_the_command_that_is_named_for_it_runs_it(four_bits: Result) -> None:
    ((_, path, _, command),) = Files(four_bits).rows()
    assert path == four_bits.folder
    program, *words = shlex.split(command)
    assert program == "autoquant"
    words = [sys.executable, "-m", "autoquant.cli", *words]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "--- 4bit-64g\n" in done.stdout, done.stderr
    assert "(" not in done.stdout.partition("--- 4bit-64g\n")[2][:1], "it says something"


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_packing_by_hand(bits: int) -> None:
    """Codes that share a word lie far apart, the first in the highest bits: written here code by
    code, read by the package.
    """
    rng = np.random.default_rng(bits)
    per, rows, columns = {3: 10}.get(bits, 8 // bits), 40, 3
    wanted = rng.integers(0, 1 << bits, (rows, columns))
    words = np.zeros((rows // per, columns), dtype=np.int32 if bits == 3 else np.uint8)
    for row in range(rows):
        for column in range(columns):
            words[row % len(words), column] |= wanted[row, column] << (
                bits * (per - 1 - row // len(words))
            )
    assert (hqq_format.codes(words, bits, rows) == wanted).all()


def test_every_width_axis_and_group_size_is_read_as_the_library_reads_it_and_has_the_planned_size(
    tmp_path: Path,
) -> None:
    seen = in_worker(
        "tests.helpers.hqq:hqq_grid", tmp_path, finding=["hqq"], scratch=str(tmp_path / "grid")
    )
    assert len(seen) == 5 * 2 * 4
    found = source.resolve("demo-small")
    for one in seen:
        assert one["difference"] == 0.0, one
        chosen = options.build(
            hqq.HqqOptions, {name: one[name] for name in ("bits", "axis", "group_size")}
        )
        assert hqq.Hqq().size(found, chosen) == one["bytes"], one
        assert hqq.misfits(linears(found), chosen, one["group_size"]) == []
    errors = {(one["bits"], one["axis"], one["group_size"]): one["error"] for one in seen}
    assert (
        errors[8, 1, 64]
        < errors[4, 1, 64]
        < errors[3, 1, 64]
        < errors[2, 1, 64]
        < errors[1, 1, 64]
        < 2
    )
    assert errors[2, 1, 16] < errors[2, 1, 64]


def test_a_reloaded_model_computes_what_it_computed_before_it_was_saved(
    four_bits: Result, tmp_path: Path
) -> None:
    """Against the library's own way to quantize a model, in memory: the same numbers to the last
    bit. Its own loader would run a text of the file; ours does not.
    """
    seen = in_worker(
        "tests.helpers.hqq:hqq_reloaded",
        tmp_path,
        finding=["hqq"],
        folder=str(four_bits.folder),
        scratch=str(tmp_path / "spoiled"),
    )
    assert seen["layers"] == 28
    assert seen["difference"] == 0.0
    assert seen["tokens"] == 12
    assert seen["spoiled difference"] == 0.0, "a text in the file is data"
    assert seen["tied difference"] == 0.0
    assert seen["shards"] > 1
    with pytest.raises(
        CheckFailed, match=r"tensors missing or left over: model.norm.weight, nobody"
    ):
        in_worker(
            "tests.helpers.hqq:hqq_incomplete",
            tmp_path,
            finding=["hqq"],
            folder=str(four_bits.folder),
            scratch=str(tmp_path / "incomplete"),
        )


def test_the_folder_is_safe_and_its_card_says_what_loads_it(four_bits: Result) -> None:
    names = {path.name for path in four_bits.folder.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        ".autoquant",
    }
    config = json.loads((four_bits.folder / "config.json").read_text())
    assert config["quantization_config"]["quant_config"]["weight_quant_params"]["nbits"] == 4
    assert config["quantization_config"]["skip_modules"] == ["lm_head"]
    assert "dtype" in config
    card = four_bits.card()
    assert 'pip install "autoquant-notebooks[hqq] @ git+https://github.com/' in card
    for wanted in (
        "library_name: hqq",
        "| algorithm | HQQ (hqq 0.2.8",
        "hqq.load(",
        "Not with transformers 5",
        "hqq_marlin",
    ):
        assert wanted in card
    assert "calibration" not in four_bits.provenance
    assert "generates" in str(four_bits.checks())
    assert "with hqq" in str(four_bits.checks())
    seen = four_bits.look(layer="model.layers.1.mlp.up_proj")
    assert 0.05 < seen.relative_error < 0.12


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bits": 5}, "bits: 5 is not allowed; allowed: 1, 2, 3, 4, 8"),
        (
            {"group_size": 100},
            "group_size: 100 is not allowed; allowed: 0, -1, 8, 16, 32, 64, 128, 256",
        ),
        ({"axis": 2}, "axis: 2 is not allowed; allowed: 0, 1"),
        ({"calibration": "text.txt"}, "no option is called 'calibration'"),
    ],
)
def test_bad_options_leave_nothing_behind(
    values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        autoquant.hqq("demo", out=tmp_path / "out", **values)
    assert list(tmp_path.iterdir()) == []


def test_sizes_that_do_not_fit_name_layers_and_sizes_that_do(
    four_bits: Result, tmp_path: Path
) -> None:
    folder = in_worker(
        "tests.helpers.models:random_model", tmp_path, folder=str(tmp_path / "odd"), hidden_size=192
    )
    with pytest.raises(
        InputError,
        match=(
            r"group_size: 128 with axis 1 and 4 bits does not fit 12 of 14 layers: .*_proj \(192"
            r" inputs, .* outputs\).*"
            r"Sizes that fit this model: -1, 8, 16, 32, 64"
        ),
    ):
        autoquant.hqq(folder, group_size=128, out=tmp_path / "out")
    (item,) = autoquant.plan("hqq", folder, group_size=128, axis=0).items
    assert item.type == "4bit-128g-axis0"
    (item,) = autoquant.plan("hqq", folder).items
    assert item.type == "4bit-64g", "unless asked, the largest that fits"
    assert not (tmp_path / "out").exists()
    assert str(DEMO_FOLDER) not in four_bits.card()


@pytest.mark.parametrize("axis", [0, 1])
def test_a_search_in_parts_finds_what_the_whole_finds(axis: int, tmp_path: Path) -> None:
    target = "tests.helpers.hqq:in_parts_and_whole"
    seen = in_worker(target, tmp_path, finding=["hqq"], axis=axis)
    assert seen["same"] > 0.99
    assert seen["parts"] == pytest.approx(seen["whole"], rel=1e-3)

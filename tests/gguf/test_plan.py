"""Plans are exact to the byte, and types are those that llama.cpp knows."""

from __future__ import annotations

from pathlib import Path

import pytest

import autoquant
from autoquant.result import Result
from tests.gguf.conftest import QUICK
from tests.workers import in_llama_worker


def test_fallbacks_are_said(tmp_path: Path) -> None:
    folder = in_llama_worker(
        "tests.helpers.models:random_model", tmp_path, folder=str(tmp_path / "odd"), hidden_size=192
    )
    result = autoquant.gguf(folder, types=["Q4_K_M"], out=tmp_path / "out", **QUICK)
    (note,) = result.artifacts[0].notes
    assert "fall back" in note
    assert "Q5_0" in note
    assert note in result.card()


def test_plan_is_exact_and_writes_nothing(
    demo: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    planned = autoquant.plan(
        "gguf",
        "demo",
        types=["F16", "Q8_0", "Q4_K_M", "Q2_K"],
        pre_tokenizer="gpt-2",
        imatrix="builtin",
    )
    assert {item.type: item.bytes for item in planned.items} == {
        a.type: a.bytes for a in demo.artifacts if a.type != "IQ3_XXS"
    }
    assert planned.fits
    assert list(tmp_path.iterdir()) == []


def test_sizes_of_llama_8b_are_the_tables(tmp_path: Path) -> None:
    """Nominal bits per weight, by llama.cpp's dry run on a header with Llama-3.1-8B's shapes."""
    from autoquant.backends.llamacpp.types import TYPES

    names = [name for name, row in TYPES.items() if not row.special]
    found = in_llama_worker(
        "tests.helpers.gguf:bits_of_llama_8b", tmp_path, path=str(tmp_path / "8b.gguf"), types=names
    )
    assert {name: round(bits, 2) for name, (bits, _) in found.items()} == {
        name: TYPES[name].bits_per_weight for name in names
    }
    assert {name for name, (_, needs) in found.items() if needs} == {
        name for name in names if TYPES[name].imatrix == "needed"
    }


def test_every_file_type_of_the_library_is_listed() -> None:
    import llama_cpp.llama_cpp as library

    from autoquant.backends.llamacpp.types import NOT_OFFERED, TYPES

    numbers = {
        name.removeprefix("LLAMA_FTYPE_MOSTLY_")
        .removeprefix("LLAMA_FTYPE_ALL_")
        .removeprefix("LLAMA_FTYPE_"): value
        for name, value in vars(library).items()
        if name.startswith("LLAMA_FTYPE_")
    }
    assert {name: row.number for name, row in TYPES.items()} == {
        name: value for name, value in numbers.items() if name not in NOT_OFFERED
    }


def test_a_plan_says_how_long_it_takes_where_nothing_can_be_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Rates are measured, and then as good as those that are kept."""
    monkeypatch.setenv("AUTOQUANT_CACHE", str(tmp_path))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("autoquant.core.rates.write_atomically", full)
    planned = autoquant.plan("gguf", "demo", types="Q4_K_M")
    assert 0 < planned.seconds["quantize"] < 60
    assert "download" not in planned.seconds
    assert "to quantize" in str(planned)
    assert not (tmp_path / "rates.json").exists()

"""How sensitive a model is, without making a file: measured once for all that use it, shown by kind
and layer, and what files of any size would lose.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant import cli
from autoquant.core import gguf_head
from autoquant.core.errors import InputError
from autoquant.core.records import PREDICTED
from autoquant.display import sensitivity_plot
from autoquant.display.sensitivities import Grid, Point
from autoquant.fisher import summary, table
from autoquant.fisher.table import Row
from autoquant.sizing.sensitivities import Sensitivities

SAMPLES = 4
PNG = b"\x89PNG"


@pytest.fixture(scope="module", autouse=True)
def some_rows() -> Iterator[None]:
    """Some of the rows are quantized to each type: it is what is done with large tensors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autoquant.methods.gguf.sensitivity.SAMPLE", 1 << 13)
        yield


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, some_rows: None) -> Sensitivities:
    out = tmp_path_factory.mktemp("sensitive") / "run"
    made = autoquant.sensitivity("demo-small", out=out, sensitivity_samples=SAMPLES)
    assert isinstance(made, Sensitivities)
    return made


def rows(text: str) -> dict[str, list[str]]:
    """Of a printed table, by its first column."""
    cells = [re.split(r" {2,}", line) for line in text.splitlines() if "  " in line]
    return {one[0]: one[1:] for one in cells}


def test_the_table_alone_is_written(found: Sensitivities) -> None:
    there = {one.name for one in found.folder.iterdir()}
    assert there == {".autoquant", "sensitivity.json", "imatrix.gguf"}
    assert found.path == found.folder / "sensitivity.json"
    assert json.loads(found.path.read_text())["tensors"].keys() == found.table.tensors.keys()


def test_what_is_measured_serves_files_of_a_size_there(
    found: Sensitivities, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the other way round: nothing is measured twice."""
    monkeypatch.setattr("autoquant.methods.gguf.sensitivity.measure", None)
    before = found.path.stat().st_mtime_ns
    asked: dict[str, Any] = {"out": found.folder, "sensitivity_samples": SAMPLES}
    made = autoquant.gguf("demo-small", size="1.1MB", against="none", evaluate="off", **asked)
    (artifact,) = made.artifacts
    (predicted,) = found.frontier("1.1MB")
    assert artifact.type == predicted.type
    assert artifact.bytes == predicted.bytes
    assert artifact.facts[PREDICTED] == predicted.nats
    types = {name: one.type for name, one in gguf_head.read(made.path("")).tensors.items()}
    assert types == predicted.types
    again = autoquant.sensitivity("demo-small", **asked)
    assert again.table == found.table
    assert found.path.stat().st_mtime_ns == before
    assert made.path("").is_file(), "what was made there stays"


def test_other_options_are_another_measurement(
    found: Sensitivities, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Measured(Exception):
        pass

    def measure(*_: Any) -> None:
        raise Measured

    monkeypatch.setattr("autoquant.methods.gguf.sensitivity.measure", measure)
    asked: dict[str, Any] = {"out": found.folder, "sensitivity_samples": SAMPLES}
    autoquant.sensitivity("demo-small", imatrix="fisher", **asked)  # what is taken without it
    for other in ({"sensitivity_samples": 5}, {"candidates": "Q4_K"}):
        with pytest.raises(Measured):
            autoquant.sensitivity("demo-small", **{**asked, **other})


def test_it_prints_the_kinds_of_tensors_the_most_sensitive_first(found: Sensitivities) -> None:
    printed = rows(str(found))
    kinds = [one for one in printed if one not in ("kind", "all") and "─" not in one]
    assert {"attn_q", "attn_v", "ffn_down", "token_embd"} <= set(kinds)
    relative = [float(printed[kind][2].split()[0]) for kind in kinds]
    assert relative == sorted(relative, reverse=True)
    assert relative[0] > 1 > relative[-1]
    shares = [float(printed[kind][1].rstrip("%")) for kind in kinds]
    assert sum(shares) == pytest.approx(100, abs=1)
    head = printed["kind"]
    columns = [head.index(kind) for kind in ("Q8_0", "Q6_K", "Q4_K", "Q3_K", "Q2_K")]
    for kind in (*kinds, "all"):
        nats = [float(printed[kind][at].lstrip("<")) for at in columns]
        assert nats == sorted(nats), "fewer bits lose more"
    by_hand = [row.nats["Q4_K"] for n, row in found.table.tensors.items() if "ffn_down" in n]
    shown = float(printed["ffn_down"][head.index("Q4_K")])
    assert shown == pytest.approx(1000 * sum(by_hand), rel=0.1), "thousandths"
    worst, share = re.fullmatch(r"layer (\d+) \((\d+)%\)", printed["ffn_down"][-1]).groups()  # type: ignore[union-attr]
    assert by_hand[int(worst)] == max(by_hand)
    assert float(share) / 100 == pytest.approx(max(by_hand) / sum(by_hand), abs=0.006)
    assert printed["token_embd"][-1] == "–"
    assert str(found.path) in str(found)


def test_the_ladder_goes_from_the_smallest_to_q8_0(found: Sensitivities) -> None:
    ladder = found.frontier()
    assert 20 <= len(ladder) <= 24
    sizes, nats = [one.bytes for one in ladder], [one.nats for one in ladder]
    assert sizes == sorted(set(sizes))
    assert all(more < less * 1.001 for less, more in itertools.pairwise(nats))
    smallest = found.model.least(found.options, found.table)
    assert smallest <= sizes[0] <= 1.05 * smallest
    q8_0 = found.stock["Q8_0"]
    assert 0.97 * q8_0.bytes <= sizes[-1] <= q8_0.bytes
    for one in ladder:
        near = found.stock[one.near]
        if near.bytes >= one.bytes and near.type not in ("Q8_0", "Q6_K"):
            continue
        assert one.bytes < near.bytes or one.nats <= near.nats * 1.02, "not worse than a stock file"
    assert str(ladder).count("bpw") == len(ladder)
    assert "<table>" in ladder._repr_html_()


def test_sizes_are_written_as_for_gguf_or_are_bytes(found: Sensitivities) -> None:
    one, two, three = found.frontier(["1.2MB", 1_200_000, "Q4_K_M"])
    assert one.types == two.types
    assert 0.99 * 1_200_000 <= one.bytes <= 1_200_000
    assert three.bytes <= found.stock["Q4_K_M"].bytes
    assert three.nats < found.stock["Q4_K_M"].nats
    with pytest.raises(InputError, match="sizes: '1.2' is no size; write a number with GB"):
        found.frontier(["1.2"])
    with pytest.raises(InputError, match="the smallest file that can be made of this model"):
        found.frontier(100_000)


def test_the_picture_has_what_was_measured_too(found: Sensitivities, tmp_path: Path) -> None:
    assert found.write_picture(tmp_path / "p.png").read_bytes()[:4] == PNG
    assert "data:image/png;base64," in found._repr_html_()
    assert "layer" in found._repr_html_()
    run = autoquant.gguf(
        "demo-small",
        size="1.1MB",
        sensitivity=found.path,
        eval_chunks=2,
        out=tmp_path / "run",
    )
    assert found.beside(run).png() != found.png()
    recipe = run.recipe()
    assert run.offered[0].type in recipe
    assert "ffn_down" in recipe


@pytest.mark.parametrize("layers", [0, 1, 80])
def test_pictures_of_any_model(layers: int) -> None:
    """Without blocks or tensors outside of them, with kinds that some layers lack, and with what
    loses nothing.
    """
    kinds = {
        "attn_q": {i: 1e-3 * (i + 1) for i in range(layers)},
        "ffn_down_exps": {i: 0.0 if i % 2 else 1e-9 for i in range(1, layers)},
    }
    outside = {} if layers == 1 else {"token_embd": 1e-4, "output": 0.0}
    grid = Grid("Q4_K", {k: v for k, v in kinds.items() if v}, outside)
    points = [Point("A", 10**9, 4.0, 0.1), Point("B", 2 * 10**9, 8.0, 0.0)]
    assert sensitivity_plot.draw("model", grid, points, points)[:4] == PNG
    said = sensitivity_plot.described(grid, points)
    assert "from 0.1 at 1.00 GB to 0 at 2.00 GB" in said
    assert (f" ({f'attn_q, layer {layers - 1}'})." in said) == (layers > 0), "the most"


def test_rows_that_k_quants_do_not_fit_are_summed_up_by_legacy_types() -> None:
    def row(width: int, **nats: float) -> Row:
        return Row((width, 10), nats, 10, 10)

    found = table.Sensitivities(
        "",
        {
            "blk.0.attn_q.weight": row(576, Q8_0=1e-5, IQ4_NL=1e-3, Q5_0=5e-4, Q4_0=2e-3),
            "blk.1.attn_q.weight": row(576, Q8_0=1e-5, IQ4_NL=3e-3, Q5_0=5e-4, Q4_0=2e-3),
            "blk.0.ffn_down.weight": row(1536, Q8_0=1e-5, IQ4_NL=1e-3, Q4_K=1e-3, Q2_K=9e-3),
        },
    )
    assert summary.common(found) == "IQ4_NL", "the one that all have"
    assert summary.types(found) == ("Q8_0", "Q4_K", "Q2_K", "Q5_0", "Q4_0")
    first, second = summary.parts(found)
    assert (first.kind, first.worst, first.worst_share) == ("attn_q", 1, 0.75)
    assert first.nats == pytest.approx({"Q8_0": 2e-5, "Q5_0": 1e-3, "Q4_0": 4e-3})
    assert second.nats == {"Q8_0": 1e-5, "Q4_K": 1e-3, "Q2_K": 9e-3}
    weights = [first.share, second.share]
    assert sum(weights) == pytest.approx(1)
    assert math.isclose(
        sum(s * one.sensitive for s, one in zip(weights, (first, second), strict=True)), 1
    )


@pytest.mark.parametrize(
    ("name", "kind", "layer"),
    [
        ("blk.11.attn_q.weight", "attn_q", 11),
        ("blk.0.ffn_down_exps.weight", "ffn_down_exps", 0),
        ("token_embd.weight", "token_embd", None),
        ("output.weight", "output", None),
    ],
)
def test_kind_and_layer_of_a_name(name: str, kind: str, layer: int | None) -> None:
    assert summary.place(name) == (kind, layer)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": "1MB"}, "size: sensitivities do not depend on it; leave size out"),
        ({"upload": "a/b"}, "upload: sensitivities do not depend on it"),
        ({"sensitivity_sample": 3}, "no option is called 'sensitivity_sample'"),
        ({"sensitivity_samples": 1}, "1 is not allowed; allowed: 2 to"),
        ({"candidates": "Q9"}, "'Q9' is no tensor type; nearest"),
        ({"imatrix": "none.txt"}, "imatrix: no such file"),
        ({"calibration_samples": 4}, "has an effect only with imatrix='calibration'"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        autoquant.sensitivity("demo-small", **options, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_gguf_file_has_no_gradients(found: Sensitivities, tmp_path: Path) -> None:
    made = autoquant.gguf("demo-small", types=["Q8_0"], evaluate="off", out=tmp_path / "made")
    with pytest.raises(InputError, match=r"model: gradients are computed by transformers, and .*"):
        autoquant.sensitivity(made.path("Q8_0"), out=tmp_path / "out")


def test_the_command_prints_both_tables(
    found: Sensitivities,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("autoquant.methods.gguf.sensitivity.measure", None)
    words = ["sensitivity", "demo-small", "--out", str(found.folder), "--sensitivity-samples"]
    assert cli.main([*words, str(SAMPLES)]) == 0
    out = capsys.readouterr().out
    assert str(found) in out
    assert str(found.frontier()) in out
    assert cli.main(["sensitivity", "nowhere"]) == 2

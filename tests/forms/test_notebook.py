"""What a notebook meets beside its form: folders, Drive, stand-ins for models, questions, uploads,
and what results show.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.core.errors import InputError, Stopped
from autoquant.display import plot
from autoquant.notebook import forms, lesson
from autoquant.notebook import page as notebook
from tests.forms.conftest import settings_of


def test_drive_is_colabs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    form = forms.form("gptq", {**settings_of("gptq"), "model": "demo", "out": "drive"})
    with pytest.raises(InputError, match="out: drive means Google Drive as Colab mounts it"):
        form.folder("demo")
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-test")
    monkeypatch.setattr(notebook, "DRIVE", tmp_path / "drive")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "fakes"))
    for name in [one for one in sys.modules if one == "google" or one.startswith("google.")]:
        monkeypatch.delitem(sys.modules, name)
    assert (
        form.folder("demo")
        == tmp_path / "drive" / "MyDrive" / "AutoQuant" / "tiny-austen-4m-GPTQ-4bit-128g"
    )
    monkeypatch.setenv("FAKE_COLAB_DRIVE", "refused")
    with pytest.raises(InputError, match="Google Drive could not be mounted"):
        form.folder("demo")


def test_folders(tmp_path: Path) -> None:
    assert forms.form("gguf", settings_of("gguf")).folder("demo") is None, (
        "the method's own default"
    )
    assert (
        forms.form("gguf", {**settings_of("gguf"), "out": str(tmp_path)}).folder("demo") == tmp_path
    )
    compared = forms.form("compare", {**settings_of("compare"), "out": str(tmp_path)})
    assert compared.folder("demo", "gguf") == tmp_path / "tiny-austen-4m-GGUF"
    assert compared.folder("demo", "gptq", bits=3) == tmp_path / "tiny-austen-4m-GPTQ-3bit-128g"
    several = forms.form("all", {**settings_of("all"), "methods": "gguf,awq", "out": str(tmp_path)})
    assert several.folder("demo", "awq") == tmp_path / "tiny-austen-4m-AWQ-4bit-128g-autoround"


def test_only_a_notebooks_own_model_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    assert forms.reachable(forms.MODEL) == "demo"
    assert "Continuing with the bundled demo model" in caplog.text
    assert forms.reachable("somebody/something") == "somebody/something"


def test_models_to_compare_are_replaced_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert forms.reachable_pair(forms.SMALLER, forms.LARGER) == ("demo-small", "demo")
    assert forms.reachable_pair("somebody/something", forms.LARGER) == (
        "somebody/something",
        forms.LARGER,
    ), "one of each family would not compare"
    real = notebook.source.resolve
    # one is in the cache
    monkeypatch.setattr(
        notebook.source,
        "resolve",
        lambda model: real("demo") if model == forms.SMALLER else real(model),
    )
    assert forms.reachable_pair(forms.SMALLER, forms.LARGER) == ("demo-small", "demo")


@pytest.mark.parametrize(
    ("number", "right", "wrong"),
    [
        (1, (39.375, 39.4, "39.375", [39.38]), (35, 39, 36.67, "39,375", "x", {}, [1, 2])),
        (
            2,
            ([-76, 13, 51, 127], (-76.0, 13, 51, 127)),
            ([-76, 12, 51, 127], [-76, 13, 51], [None, 13, 51, 127], "?", [[1], [2, 3]]),
        ),
        (4, (64, 64.0), (63, 63.75, 65, object())),
        (5, (4.3125, 4.31, 4.3), (4.25, 4.5, 4, 4.35)),
    ],
)
def test_answers_may_be_rounded_and_anything_may_be_typed(
    number: int, right: tuple[Any, ...], wrong: tuple[Any, ...]
) -> None:
    assert [lesson.check(number, one).right for one in right] == [True] * len(right)
    assert [lesson.check(number, one).right for one in wrong] == [False] * len(wrong)
    assert lesson.check(number, None).right is None


def test_stopping_is_one_line() -> None:
    with (
        pytest.raises(Stopped, match="finished files are kept; run this cell again"),
        forms.stoppable(),
    ):
        raise KeyboardInterrupt
    assert InputError("bits: no")._render_traceback_() == ["InputError: bits: no"], (
        "what IPython shows"
    )


def test_nothing_is_uploaded_unasked(demo: Any) -> None:
    said = forms.form("gguf", settings_of("gguf")).upload(demo)
    assert "Nothing is uploaded" in str(said)
    assert (
        '<a href="https://x.y/z">https://x.y/z</a>'
        in forms.Note("see https://x.y/z now")._repr_html_()
    )


def test_the_model_that_stood_in_is_not_uploaded_under_anothers_name(demo: Any) -> None:
    with pytest.raises(
        InputError,
        match=("from the bundled demo model, which replaced Qwen/Qwen3-0.6B; nothing is sent"),
    ):
        forms.form("gguf", {**settings_of("gguf"), "upload": "me/it"}).upload(demo)
    with pytest.raises(InputError, match="from the bundled demo model"):
        forms.form("all", {**settings_of("all"), "owner": "me"}).upload(demo)


def test_a_result_shows_checks_card_and_a_layer(demo: Any) -> None:
    assert "opens" in str(demo.checks())
    assert "<table>" in demo.checks()._repr_html_()
    shown = demo.card()._repr_markdown_()
    assert shown.lstrip().startswith("### tiny-austen-4m"), "a notebook has headings of its own"
    assert shown.count("\n#### ") == 2
    assert shown.split("```")[1::2] == demo.card().split("```")[1::2], "code keeps its lines"
    assert "](data:image/png;base64,iVBOR" in shown, (
        "the plot is in it: a notebook would look for it beside itself"
    )
    finer, coarser = demo.look("Q8_0"), demo.look("Q2_K", "model.layers.1.mlp.gate_proj")
    assert finer.layer == "model.layers.2.mlp.up_proj"
    assert 0 < finer.relative_error < 0.01 < coarser.relative_error < 0.5
    assert sum(finer.before) == sum(finer.after) == 256 * 768
    assert coarser.levels < finer.levels <= 256
    assert finer.png().startswith(b"\x89PNG")
    with pytest.raises(
        InputError,
        match="layer: model.layers.1.self_attn.q_proj: llama.cpp stores its rows in another order",
    ):
        demo.look("Q8_0", "model.layers.1.self_attn.q_proj")
    with pytest.raises(
        InputError, match=r"layer: model.layers.9.x: there is no such layer. Layers: model.layers.0"
    ):
        demo.look("Q8_0", "model.layers.9.x")


def test_several_results_make_one_table_and_one_plot(demo: Any) -> None:
    both = autoquant.Comparison({"a": demo, "b": demo}, "run")
    assert [line.split()[1] for line in str(both).splitlines() if "unquantized   " in line] == [
        "unquantized"
    ], "once"
    assert both._repr_html_().count("<img") == 1
    assert str(both).splitlines()[2].startswith("run ")


def test_a_plot_of_nearly_equal_files_far_from_the_unquantized_model_can_be_read(demo: Any) -> None:
    two = tuple(
        dataclasses.replace(
            one,
            files=(dataclasses.replace(one.files[0], bytes=4_000_000 + i),),
            evaluation=dataclasses.replace(one.evaluation, perplexity=900 + i / 10),
        )
        for i, one in enumerate(demo.artifacts[:2])
    )
    figure = plot.figure({"a": dataclasses.replace(demo, artifacts=two)})
    figure.canvas.draw()
    left, right = figure.axes
    assert left.get_ylim()[0] < demo.reference.perplexity < 900 < left.get_ylim()[1], (
        "the line of the unquantized model is seen"
    )
    assert left.get_position().width > 0.3
    for axis in (left, right):
        low, high = axis.get_xlim()
        assert (low, high) == pytest.approx((3.6, 4.4), rel=0.01), (
            "a byte more is not drawn as a difference"
        )


def test_each_method_of_the_form_for_all_uploads_in_its_own_layout() -> None:
    form = forms.form("all", {**settings_of("all"), "methods": "gguf,exl2"})
    assert form._chosen("gguf")["layout"] == "one-repo"
    assert form._chosen("exl2")["layout"] == "branch-per-type", (
        "as EXL2 repositories usually have it"
    )

"""Forms: the cell, the widgets and the method's own function are one declaration; what a notebook meets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant import forms, notebook, options
from autoquant.errors import InputError, Stopped
from autoquant.methods import METHODS

each = pytest.mark.parametrize("name", METHODS)


@pytest.fixture
def widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a Jupyter notebook's kernel, where forms are widgets."""
    monkeypatch.setattr(forms, "in_notebook", lambda: True)


def _of(name: str) -> dict[str, Any]:
    space: dict[str, Any] = {}
    exec(forms.cell(name), space)  # as a kernel runs it
    space.pop("__builtins__")
    return space


@each
def test_the_cell_is_the_defaults(name: str) -> None:
    space = _of(name)
    form = forms.form(name, space)
    assert form.values() == {}
    cls = METHODS[name].options
    assert set(cls.model_fields) | {"model", "out"} == set(space) - {forms.KEPT}, "every option is in the cell"
    assert options.build(cls, {one: value for one, value in space.items() if one in cls.model_fields}) == cls()


def test_the_form_for_all_methods_gives_each_its_own() -> None:
    space = {**_of("all"), "methods": "gguf, gptq", "gptq_bits": 3, "gguf_types": "Q8_0,Q2_K", "owner": "me", "eval_chunks": 7}
    form = forms.form("all", space)
    assert form.methods == ("gguf", "gptq")
    assert form.values("gguf") == {"types": ("Q8_0", "Q2_K"), "eval_chunks": 7}
    assert form.values("gptq") == {"bits": 3, "eval_chunks": 7}
    with pytest.raises(InputError, match="methods: no method is called 'gptx'; there are: gguf, gptq, exl2, awq, hqq"):
        _ = forms.form("all", {**space, "methods": "gptx"}).methods


def test_every_face_says_the_same(tmp_path: Path) -> None:
    with pytest.raises(InputError) as of_function:
        autoquant.gptq("demo", bits=5, out=tmp_path / "out")
    with pytest.raises(InputError) as of_form:
        forms.form("gptq", {**_of("gptq"), "bits": 5}).values()
    assert str(of_form.value) == str(of_function.value)
    with pytest.raises(InputError, match="gptq_bits: 5 is not allowed"):
        forms.form("all", {**_of("all"), "methods": "gptq", "gptq_bits": 5}).values("gptq")


@pytest.mark.usefixtures("widgets")
class TestWidgets:
    def test_they_begin_with_the_cells_values_and_have_names_and_help(self) -> None:
        form = forms.form("gguf", {**_of("gguf"), "types": "Q8_0"})
        assert form._widgets["types"].value == "Q8_0"
        for name, widget in form._widgets.items():
            assert widget.description == name, "the label, which screen readers read"
            text = widget.tooltip if widget.has_trait("tooltip") else widget.description_tooltip
            assert text == forms.about(name, form.fields[name])

    def test_values_are_looked_at_as_they_are_typed(self) -> None:
        form = forms.form("gguf", _of("gguf"))
        assert "the values are valid" in form._said.value
        form._widgets["types"].value = "Q4_K_X"
        with pytest.raises(InputError) as said:
            options.build(METHODS["gguf"].options, {"types": "Q4_K_X"})
        assert 'role="alert"' in form._said.value
        assert str(said.value)[:40].replace("'", "&#x27;") in form._said.value
        form._widgets["types"].value = "Q8_0, Q2_K"
        assert form.values() == {"types": ("Q8_0", "Q2_K")}

    def test_what_has_no_meaning_is_greyed_out_and_does_not_count(self) -> None:
        form = forms.form("gptq", _of("gptq"))
        assert form._widgets["iterations"].disabled
        assert form._widgets["layout"].disabled
        form._widgets["algorithm"].value = "autoround"
        assert not form._widgets["iterations"].disabled
        assert form._widgets["damp_percent"].disabled
        form._widgets["iterations"].value = 50
        assert form.values() == {"algorithm": "autoround", "iterations": 50}
        form._widgets["algorithm"].value = "gptq"
        assert form.values() == {}, "typed before it was greyed out"
        form._widgets["upload"].value = "me/it"
        assert not form._widgets["layout"].disabled

    def test_values_stay_when_cells_run_again_and_the_cell_wins_when_it_changes(self) -> None:
        space = _of("gptq")
        forms.form("gptq", space)._widgets["bits"].value = 8
        again = forms.form("gptq", {**_of("gptq"), forms.KEPT: space[forms.KEPT]})
        assert again.values() == {"bits": 8}
        changed = forms.form("gptq", {**_of("gptq"), "bits": 3, forms.KEPT: space[forms.KEPT]})
        assert changed.values() == {"bits": 3}

    def test_it_says_whether_it_fits(self) -> None:
        form = forms.form("gptq", {**_of("gptq"), "model": "demo"})
        form._plan()
        assert "it fits" in form._planned.value
        form._widgets["group_size"].value = 64
        assert form._planned.value == "", "of other values"
        form._widgets["model"].value = "no/such/folder"
        form._plan()
        assert 'role="alert"' in form._planned.value

    def test_comparisons_have_a_form_too(self) -> None:
        form = forms.form("compare", {**_of("compare"), "small": "demo-small", "large": "demo"})
        form._widgets["gptq_bits"].value = "8,5"
        assert "gptq_bits: 5 is not allowed; allowed: 2, 3, 4, 8" in form._said.value
        form._widgets["gptq_bits"].value = ""
        assert form.options.gptq_bits == ()
        form._plan()
        assert form._planned.value.count("it fits") == 2


def test_in_colab_the_cell_is_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "in_notebook", lambda: True)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-test")
    form = forms.form("gguf", {**_of("gguf"), "types": "Q8_0"})
    assert form._widgets == {}
    assert form.values() == {"types": ("Q8_0",)}
    assert not forms.can_stop(), "a button would not be heard while a cell runs"


def test_drive_is_colabs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    form = forms.form("gptq", {**_of("gptq"), "model": "demo", "out": "drive"})
    with pytest.raises(InputError, match="out: drive means Google Drive as Colab mounts it"):
        form.folder("demo")
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-test")
    monkeypatch.setattr(notebook, "DRIVE", tmp_path / "drive")
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "fakes"))
    for name in [one for one in sys.modules if one == "google" or one.startswith("google.")]:
        monkeypatch.delitem(sys.modules, name)
    assert form.folder("demo") == tmp_path / "drive" / "MyDrive" / "AutoQuant" / "tiny-austen-4m-GPTQ-4bit-128g"
    monkeypatch.setenv("FAKE_COLAB_DRIVE", "refused")
    with pytest.raises(InputError, match="Google Drive could not be mounted"):
        form.folder("demo")


def test_folders(tmp_path: Path) -> None:
    assert forms.form("gguf", _of("gguf")).folder("demo") is None, "the method's own default"
    assert forms.form("gguf", {**_of("gguf"), "out": str(tmp_path)}).folder("demo") == tmp_path
    several = forms.form("all", {**_of("all"), "methods": "gguf,awq", "out": str(tmp_path)})
    assert several.folder("demo", "awq") == tmp_path / "tiny-austen-4m-AWQ-4bit-128g-autoround"


def test_only_a_notebooks_own_model_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    assert forms.reachable(forms.MODEL) == "demo"
    assert "Going on with the embedded model" in caplog.text
    assert forms.reachable("somebody/something") == "somebody/something"


def test_stopping_is_one_line() -> None:
    with pytest.raises(Stopped, match="finished files are kept; run this cell again"), forms.stoppable():
        raise KeyboardInterrupt
    assert InputError("bits: no")._render_traceback_() == ["InputError: bits: no"], "what IPython shows"


def test_nothing_is_uploaded_unasked(demo: Any) -> None:
    said = forms.form("gguf", _of("gguf")).upload(demo)
    assert "Nothing is uploaded" in str(said)
    assert '<a href="https://x.y/z">https://x.y/z</a>' in forms.Note("see https://x.y/z now")._repr_html_()


def test_the_model_that_stood_in_is_not_uploaded_under_anothers_name(demo: Any) -> None:
    with pytest.raises(InputError, match="of the embedded model, which stood in for HuggingFaceTB/SmolLM2-135M-Instruct; nothing is sent"):
        forms.form("gguf", {**_of("gguf"), "upload": "me/it"}).upload(demo)
    with pytest.raises(InputError, match="of the embedded model"):
        forms.form("all", {**_of("all"), "owner": "me"}).upload(demo)


@pytest.mark.usefixtures("widgets")
def test_texts_and_wrong_kinds_from_papermill_are_shown_as_they_are_and_looked_at() -> None:
    for name, value, said in (("calibration_samples", 2.5, "calibration_samples: 2.5 is not allowed"), ("bits", "four", "bits: four is not allowed"), ("sym", "maybe", "sym: ")):
        form = forms.form("gptq", {**_of("gptq"), name: value})
        with pytest.raises(InputError, match=said):
            form.values()
        assert said in form._said.value
    assert forms.form("gptq", {**_of("gptq"), "sym": "False", "bits": "8"}).values() == {"bits": 8, "sym": False}
    assert forms.form("gguf", {**_of("gguf"), "types": ["Q8_0", "Q2_K"]}).values() == {"types": ("Q8_0", "Q2_K")}


@pytest.mark.usefixtures("widgets")
def test_what_is_greyed_out_does_not_block_though_the_cell_says_it() -> None:
    form = forms.form("gptq", {**_of("gptq"), "algorithm": "autoround", "iterations": 50})
    assert form.values() == {"algorithm": "autoround", "iterations": 50}
    form._widgets["algorithm"].value = "gptq"
    assert form.values() == {}


# --- what results show --------------------------------------------------------------------------------------------------


def test_a_result_shows_checks_card_and_a_layer(demo: Any) -> None:
    assert "opens" in str(demo.checks())
    assert "<table>" in demo.checks()._repr_html_()
    shown = demo.card()._repr_markdown_()
    assert shown.lstrip().startswith("# tiny-austen-4m")
    assert "](data:image/png;base64,iVBOR" in shown, "the plot is in it: a notebook would look for it beside itself"
    finer, coarser = demo.look("Q8_0"), demo.look("Q2_K", "model.layers.1.mlp.gate_proj")
    assert finer.layer == "model.layers.2.mlp.up_proj"
    assert 0 < finer.relative_error < 0.01 < coarser.relative_error < 0.5
    assert sum(finer.before) == sum(finer.after) == 256 * 768
    assert coarser.levels < finer.levels <= 256
    assert finer.png().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="layer: model.layers.1.self_attn.q_proj: llama.cpp stores its rows in another order"):
        demo.look("Q8_0", "model.layers.1.self_attn.q_proj")
    with pytest.raises(InputError, match=r"layer: model.layers.9.x: there is no such layer. Layers: model.layers.0"):
        demo.look("Q8_0", "model.layers.9.x")


def test_several_results_make_one_table_and_one_plot(demo: Any) -> None:
    both = autoquant.Comparison({"a": demo, "b": demo}, "run")
    assert [line.split()[1] for line in str(both).splitlines() if line.startswith("tiny-austen-4m ")] == ["unquantized"], "once"
    assert both._repr_html_().count("<img") == 1
    assert str(both).splitlines()[2].startswith("run ")


def test_each_method_of_the_form_for_all_uploads_in_its_own_layout() -> None:
    form = forms.form("all", {**_of("all"), "methods": "gguf,exl2"})
    assert form._chosen("gguf")["layout"] == "one-repo"
    assert form._chosen("exl2")["layout"] == "branch-per-type", "as EXL2 repositories usually have it"

"""Forms: the cell, the widgets and the method's own function are one declaration; what a notebook
meets.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.core import options
from autoquant.core.errors import InputError, Stopped
from autoquant.display import plot
from autoquant.methods import METHODS
from autoquant.notebook import forms, lesson
from autoquant.notebook import page as notebook

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
    cls = METHODS[name].Options
    assert set(cls.model_fields) | {"model", "out"} == set(space) - {
        forms.KEPT,
        "compare",
    }, "every option is in the cell"
    assert (
        options.build(cls, {one: value for one, value in space.items() if one in cls.model_fields})
        == cls()
    )


@pytest.mark.parametrize("name", ["gguf", "gptq", "exl2", "awq", "hqq"])
def test_what_is_made_beside_the_run_can_be_chosen(name: str) -> None:
    """With a large model a cell that makes three more of it is not wanted."""
    space = _of(name)
    assert len(forms.form(name, space).options.compare) >= 2
    assert forms.form(name, {**space, "compare": ""}).options.compare == ()
    one = space["compare"].split(",")[-1]
    form = forms.form(name, {**space, "compare": f"{one}, {one}"})
    assert form.options.compare == (one,)
    assert form.values() == {}, "no option of the method"
    with pytest.raises(
        InputError, match=r"compare: '?9'? is n(ot allowed; allowed|o GGUF type; nearest): "
    ):
        _ = forms.form(name, {**space, "compare": "9"}).options


def test_the_form_for_all_methods_gives_each_its_own() -> None:
    space = {
        **_of("all"),
        "methods": "gguf, gptq",
        "gptq_bits": 3,
        "gguf_types": "Q8_0,Q2_K",
        "owner": "me",
        "eval_chunks": 7,
    }
    form = forms.form("all", space)
    assert form.methods == ("gguf", "gptq")
    assert form.values("gguf") == {"types": ("Q8_0", "Q2_K"), "eval_chunks": 7}
    assert form.values("gptq") == {"bits": 3, "eval_chunks": 7}
    with pytest.raises(
        InputError,
        match="methods: no method is called 'gptx'; there are: gguf, gptq, exl2, awq, hqq",
    ):
        _ = forms.form("all", {**space, "methods": "gptx"}).methods


def test_every_face_says_the_same(tmp_path: Path) -> None:
    with pytest.raises(InputError) as of_function:
        autoquant.gptq("demo", bits=5, out=tmp_path / "out")
    with pytest.raises(InputError) as of_form:
        forms.form("gptq", {**_of("gptq"), "bits": 5}).values()
    assert str(of_form.value) == str(of_function.value)
    with pytest.raises(InputError, match="gptq_bits: 5 is not allowed"):
        forms.form("all", {**_of("all"), "methods": "gptq", "gptq_bits": 5}).values("gptq")


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("gguf", {"types": "IQ3_XXS"}, "types: IQ3_XXS needs an importance matrix"),
        ("gguf", {"imatrix": "nofile.txt"}, "imatrix: no such file: nofile.txt"),
        (
            "gptq",
            {"calibration_split": "test"},
            "calibration_split: applies to datasets on the Hub only",
        ),
        ("gptq", {"calibration": "nofile.txt"}, "calibration: no such file: nofile.txt"),
        ("hqq", {"eval_text": "nope.txt"}, "eval_text: no such file: nope.txt"),
        ("hqq", {"eval_text": "~nobody-of-that-name/x"}, "a file cannot be looked for"),
        ("hqq", {"eval_text": "x" * 5000}, "a file cannot be looked for"),
        (
            "exl2",
            {"calibration_samples": 5},
            "calibration_samples: .* has no effect with calibration='exllamav2'",
        ),
        (
            "hqq",
            {"eval_text": "nope.txt", "evaluate": "off"},
            "eval_text: nope.txt has no effect with evaluate='off'",
        ),
        (
            "gguf",
            {"imatrix_chunks": 32},
            "imatrix_chunks: 32 has no effect with imatrix='none'",
        ),
        (
            "all",
            {
                "methods": "bitsandbytes",
                "bitsandbytes_quant_type": "int8",
                "bitsandbytes_double_quant": False,
            },
            "bitsandbytes_double_quant: off has no effect with quant_type='int8'",
        ),
        ("all", {"gguf_types": "IQ3_XXS"}, "gguf_types: IQ3_XXS needs an importance matrix"),
        (
            "all",
            {"methods": "awq", "calibration": "nofile.txt"},
            "calibration: no such file: nofile.txt",
        ),
        (
            "all",
            {"owner": "me/x"},
            "owner: 'me/x' is no name on the Hub; write your user or organization name only",
        ),
        ("all", {"owner": "me you"}, "owner: 'me you' is no name"),
        (
            "all",
            {"owner": "https://huggingface.co/me"},
            "owner: 'https://huggingface.co/me' is no name",
        ),
    ],
)
def test_what_no_model_is_needed_for_is_refused_by_the_form(
    name: str, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        forms.form(name, {**_of(name), **values}).check()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("gguf", {"types": "IQ3_XXS", "imatrix": "builtin"}),
        ("awq", {"algorithm": "awq", "group_size": -1}),
        ("hqq", {"bits": 3, "group_size": 256, "axis": 0}),
        ("gptq", {"bits": 3, "group_size": 32}),
        ("gptq", {"backend": "auto-gptq"}),
        ("exl2", {"measurement": "me/measured"}),
        ("all", {"methods": "w8a8,gguf", "calibration": "nofile.txt", "owner": "me.you-2"}),
    ],
)
def test_what_a_model_may_allow_is_left_to_the_run(name: str, values: dict[str, Any]) -> None:
    forms.form(name, {**_of(name), **values}).check()


def test_a_text_that_has_changed_is_read_again(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words")
    form = forms.form("gptq", {**_of("gptq"), "calibration": str(text)})
    form.check()
    text.write_bytes(b"\xff\xfe no utf-8")
    with pytest.raises(InputError, match="cannot be read"):
        form.check()


def test_one_calibration_text_serves_the_methods_that_look_at_one(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words")
    form = forms.form(
        "all", {**_of("all"), "methods": "gguf,gptq,exl2,awq,hqq,w8a8", "calibration": str(text)}
    )
    assert [
        method for method in form.methods if form.values(method).get("calibration") == str(text)
    ] == ["gptq", "exl2", "awq"]
    assert [form.values(method) for method in ("gguf", "hqq", "w8a8")] == [{}] * 3, (
        "they look at none"
    )
    form = forms.form(
        "all",
        {
            **_of("all"),
            "methods": "gguf,w8a8",
            "gguf_imatrix": "calibration",
            "w8a8_scheme": "int8-static",
            "calibration": str(text),
        },
    )
    assert form.values("gguf") == {"imatrix": "calibration", "calibration": str(text)}
    assert form.values("w8a8") == {"scheme": "int8-static", "calibration": str(text)}
    assert forms.form("all", {**_of("all"), "methods": "exl2"}).values("exl2") == {}, (
        "its own mixture stays"
    )


def test_a_notebooks_own_default_is_not_held_against_the_user() -> None:
    """05's cell says iterations = 50, which algorithm awq has no use for: chosen in Colab, it must
    not be refused for a value that nobody typed.
    """
    space = {**_of("awq"), **METHODS["awq"].notebook_defaults}
    assert forms.form("awq", space).values() == METHODS["awq"].notebook_defaults
    assert forms.form("awq", {**space, "algorithm": "awq"}).values() == {
        "algorithm": "awq",
        "calibration_samples": 32,
    }
    with pytest.raises(
        InputError, match="iterations: 60 has an effect only with algorithm='autoround'"
    ):
        forms.form("awq", {**space, "algorithm": "awq", "iterations": 60}).check()


@pytest.mark.usefixtures("widgets")
class TestWidgets:
    def test_they_begin_with_the_cells_values_and_have_names_and_help(self) -> None:
        form = forms.form("gguf", {**_of("gguf"), "types": "Q8_0"})
        assert form.widgets.by_name["types"].value == "Q8_0"
        for name, widget in form.widgets.by_name.items():
            assert widget.description == name, "the label, which screen readers read"
            text = widget.tooltip if widget.has_trait("tooltip") else widget.description_tooltip
            assert text == forms.about(name, form.fields[name])

    def test_values_are_looked_at_as_they_are_typed(self) -> None:
        form = forms.form("gguf", _of("gguf"))
        assert "the values are valid" in form.widgets.said.value
        form.widgets.by_name["types"].value = "Q4_K_X"
        with pytest.raises(InputError) as said:
            options.build(METHODS["gguf"].Options, {"types": "Q4_K_X"})
        assert 'role="alert"' in form.widgets.said.value
        assert str(said.value)[:40].replace("'", "&#x27;") in form.widgets.said.value
        form.widgets.by_name["types"].value = "Q8_0, Q2_K"
        assert form.values() == {"types": ("Q8_0", "Q2_K")}

    def test_what_has_no_meaning_is_greyed_out_and_does_not_count(self) -> None:
        form = forms.form("gptq", _of("gptq"))
        assert form.widgets.by_name["iterations"].disabled
        assert form.widgets.by_name["layout"].disabled
        form.widgets.by_name["algorithm"].value = "autoround"
        assert not form.widgets.by_name["iterations"].disabled
        assert form.widgets.by_name["damp_percent"].disabled
        form.widgets.by_name["iterations"].value = 50
        assert form.values() == {"algorithm": "autoround", "iterations": 50}
        form.widgets.by_name["algorithm"].value = "gptq"
        assert form.values() == {}, "typed before it was greyed out"
        form.widgets.by_name["upload"].value = "me/it"
        assert not form.widgets.by_name["layout"].disabled

    def test_in_the_form_for_all_methods_each_ones_own_rules_hold(self) -> None:
        form = forms.form("all", _of("all"))
        active = {name for name, widget in form.widgets.by_name.items() if not widget.disabled}
        assert {"gguf_types", "model"} <= active
        assert not {"gptq_bits", "bitsandbytes_double_quant", "calibration", "private"} & active
        form.widgets.by_name["methods"].value = "gptq, bitsandbytes"
        assert not form.widgets.by_name["calibration"].disabled
        assert not form.widgets.by_name["bitsandbytes_double_quant"].disabled
        form.widgets.by_name["bitsandbytes_quant_type"].value = "int8"
        assert form.widgets.by_name["bitsandbytes_double_quant"].disabled
        for methods, name, value, idle in (
            ("gguf", "gguf_imatrix", "calibration", False),
            ("gguf", "gguf_imatrix", "builtin", True),
            ("w8a8", "w8a8_scheme", "int8-static", False),
            ("w8a8", "w8a8_scheme", "int8-dynamic", True),
        ):
            form.widgets.by_name["methods"].value, form.widgets.by_name[name].value = methods, value
            assert form.widgets.by_name["calibration"].disabled is idle

    def test_how_a_text_is_read_is_asked_where_it_has_a_meaning(self, tmp_path: Path) -> None:
        form = forms.form("gptq", _of("gptq"))
        names = ("calibration_split", "calibration_subset", "calibration_column")
        for value, idle in (
            ("builtin", [True, True, True]),
            ("owner/name", [False, False, False]),
            (str(tmp_path / "a.txt"), [True, True, True]),
            (str(tmp_path / "a.jsonl"), [True, True, False]),
        ):
            if value.startswith("/"):
                Path(value).write_text('{"text": "words"}')
            form.widgets.by_name["calibration"].value = value
            assert [form.widgets.by_name[name].disabled for name in names] == idle
        form.widgets.by_name["calibration_column"].value = "other"
        form.widgets.by_name["calibration"].value = "builtin"
        assert form.values() == {}

    def test_values_stay_when_cells_run_again_and_the_cell_wins_when_it_changes(self) -> None:
        space = _of("gptq")
        forms.form("gptq", space).widgets.by_name["bits"].value = 8
        again = forms.form("gptq", {**_of("gptq"), forms.KEPT: space[forms.KEPT]})
        assert again.values() == {"bits": 8}
        changed = forms.form("gptq", {**_of("gptq"), "bits": 3, forms.KEPT: space[forms.KEPT]})
        assert changed.values() == {"bits": 3}

    def test_it_says_whether_it_fits(self) -> None:
        form = forms.form("gptq", {**_of("gptq"), "model": "demo"})
        form.widgets.plan()
        assert "it fits" in form.widgets.planned.value
        form.widgets.by_name["group_size"].value = 64
        assert form.widgets.planned.value == "", "of other values"
        form.widgets.by_name["model"].value = "no/such/folder"
        form.widgets.plan()
        assert 'role="alert"' in form.widgets.planned.value

    def test_comparisons_have_a_form_too(self) -> None:
        form = forms.form("compare", {**_of("compare"), "small": "demo-small", "large": "demo"})
        form.widgets.by_name["gptq_bits"].value = "8,5"
        assert "gptq_bits: 5 is not allowed; allowed: 2, 3, 4, 8" in form.widgets.said.value
        form.widgets.by_name["gptq_bits"].value = ""
        assert form.options.gptq_bits == ()
        form.widgets.plan()
        assert form.widgets.planned.value.count("it fits") == 2
        form.widgets.by_name["gptq_bits"].value = "8,4"
        form.widgets.plan()
        assert form.widgets.planned.value.count("it fits") == 4
        assert [
            type in form.widgets.planned.value.split("it fits")[1] for type in ("F16", "Q2_K")
        ] == [
            True,
            True,
        ], "of the larger model the types of both, as they are made"


def test_in_colab_the_cell_is_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "in_notebook", lambda: True)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-test")
    form = forms.form("gguf", {**_of("gguf"), "types": "Q8_0"})
    assert form.widgets is None
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
    assert (
        form.folder("demo")
        == tmp_path / "drive" / "MyDrive" / "AutoQuant" / "tiny-austen-4m-GPTQ-4bit-128g"
    )
    monkeypatch.setenv("FAKE_COLAB_DRIVE", "refused")
    with pytest.raises(InputError, match="Google Drive could not be mounted"):
        form.folder("demo")


def test_folders(tmp_path: Path) -> None:
    assert forms.form("gguf", _of("gguf")).folder("demo") is None, "the method's own default"
    assert forms.form("gguf", {**_of("gguf"), "out": str(tmp_path)}).folder("demo") == tmp_path
    compared = forms.form("compare", {**_of("compare"), "out": str(tmp_path)})
    assert compared.folder("demo", "gguf") == tmp_path / "tiny-austen-4m-GGUF"
    assert compared.folder("demo", "gptq", bits=3) == tmp_path / "tiny-austen-4m-GPTQ-3bit-128g"
    several = forms.form("all", {**_of("all"), "methods": "gguf,awq", "out": str(tmp_path)})
    assert several.folder("demo", "awq") == tmp_path / "tiny-austen-4m-AWQ-4bit-128g-autoround"


def test_only_a_notebooks_own_model_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    assert forms.reachable(forms.MODEL) == "demo"
    assert "Continuing with the bundled model" in caplog.text
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
        (3, (64, 64.0), (63, 63.75, 65, object())),
        (4, (4.3125, 4.31, 4.3), (4.25, 4.5, 4, 4.35)),
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
    said = forms.form("gguf", _of("gguf")).upload(demo)
    assert "Nothing is uploaded" in str(said)
    assert (
        '<a href="https://x.y/z">https://x.y/z</a>'
        in forms.Note("see https://x.y/z now")._repr_html_()
    )


def test_the_model_that_stood_in_is_not_uploaded_under_anothers_name(demo: Any) -> None:
    with pytest.raises(
        InputError,
        match=(
            "from the bundled model, which replaced HuggingFaceTB/SmolLM2-135M-Instruct; nothing"
            " is sent"
        ),
    ):
        forms.form("gguf", {**_of("gguf"), "upload": "me/it"}).upload(demo)
    with pytest.raises(InputError, match="from the bundled model"):
        forms.form("all", {**_of("all"), "owner": "me"}).upload(demo)


@pytest.mark.usefixtures("widgets")
def test_texts_and_wrong_kinds_from_papermill_are_shown_as_they_are_and_looked_at() -> None:
    for name, value, said in (
        ("calibration_samples", 2.5, "calibration_samples: 2.5 is not allowed"),
        ("bits", "four", "bits: four is not allowed"),
        ("sym", "maybe", "sym: "),
    ):
        form = forms.form("gptq", {**_of("gptq"), name: value})
        with pytest.raises(InputError, match=said):
            form.values()
        assert said in form.widgets.said.value
    assert forms.form("gptq", {**_of("gptq"), "sym": "False", "bits": "8"}).values() == {
        "bits": 8,
        "sym": False,
    }
    assert forms.form("gguf", {**_of("gguf"), "types": ["Q8_0", "Q2_K"]}).values() == {
        "types": ("Q8_0", "Q2_K")
    }


@pytest.mark.usefixtures("widgets")
def test_what_is_greyed_out_does_not_block_though_the_cell_says_it() -> None:
    form = forms.form("gptq", {**_of("gptq"), "algorithm": "autoround", "iterations": 50})
    assert form.values() == {"algorithm": "autoround", "iterations": 50}
    form.widgets.by_name["algorithm"].value = "gptq"
    assert form.values() == {}


# --- what results show ----------------------------------------------------------------------------


def test_a_result_shows_checks_card_and_a_layer(demo: Any) -> None:
    assert "opens" in str(demo.checks())
    assert "<table>" in demo.checks()._repr_html_()
    shown = demo.card()._repr_markdown_()
    assert shown.lstrip().startswith("# tiny-austen-4m")
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
    assert [
        line.split()[1] for line in str(both).splitlines() if line.startswith("tiny-austen-4m ")
    ] == ["unquantized"], "once"
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
    form = forms.form("all", {**_of("all"), "methods": "gguf,exl2"})
    assert form._chosen("gguf")["layout"] == "one-repo"
    assert form._chosen("exl2")["layout"] == "branch-per-type", (
        "as EXL2 repositories usually have it"
    )

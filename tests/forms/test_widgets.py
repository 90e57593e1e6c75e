"""Forms drawn by a notebook: as widgets in Jupyter, as the cell in Colab."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from autoquant.core import language, options
from autoquant.core.errors import InputError
from autoquant.methods import METHODS
from autoquant.notebook import fields, forms
from autoquant.notebook.choosing import looked_up
from tests.forms.conftest import settings_of
from tests.notebooks.running import FOLDER


@pytest.mark.usefixtures("widgets")
class TestWidgets:
    def test_they_begin_with_the_cells_values_and_have_names_and_help(self) -> None:
        form = forms.form("gguf", {**settings_of("gguf"), "types": "Q8_0"})
        assert form.widgets.by_name["types"].value == "Q8_0"
        for name, widget in form.widgets.by_name.items():
            assert widget.description == name, "the label, which screen readers read"
            beside = html.unescape(re.sub("<[^>]+>", " ", form.widgets.helps[name].value))
            words = re.findall(r"\w+", forms.about(name, form.fields[name]))
            assert re.findall(r"\w+", beside)[: len(words)] == words
            text = widget.tooltip if widget.has_trait("tooltip") else widget.description_tooltip
            assert text == forms.about(name, form.fields[name])

    def test_values_are_looked_at_as_they_are_typed(self) -> None:
        form = forms.form("gguf", settings_of("gguf"))
        assert "the values are valid" in form.widgets.said.value
        form.widgets.by_name["types"].value = "Q4_K_X"
        with pytest.raises(InputError) as said:
            options.build(METHODS["gguf"].Options, {"types": "Q4_K_X"})
        assert 'role="alert"' in form.widgets.said.value
        assert str(said.value)[:40].replace("'", "&#x27;") in form.widgets.said.value
        beside = {name: help.value for name, help in form.widgets.helps.items()}
        assert [name for name, text in beside.items() if 'role="alert"' in text] == ["types"], (
            "the field itself is marked"
        )
        form.widgets.by_name["types"].value = "Q8_0, Q2_K"
        assert form.values() == {"types": ("Q8_0", "Q2_K")}

    def test_what_has_no_meaning_is_greyed_out_and_does_not_count(self) -> None:
        form = forms.form("gptq", settings_of("gptq"))
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
        form = forms.form("all", settings_of("all"))
        active = {name for name, widget in form.widgets.by_name.items() if not widget.disabled}
        assert {"methods", "model", "device", "context"} <= active
        assert not {"gguf_types", "gptq_bits", "calibration", "private"} & active
        shown = [name for name, row in form.widgets.rows.items() if row.layout.display != "none"]
        assert [name for name in shown if name not in form.folded] == [
            "model",
            "device",
            "context",
            "methods",
            "evaluate",
            "owner",
        ], "what has no meaning is not there"
        form.widgets.by_name["methods"].value = "gptq; BITSANDBYTES"
        assert form.methods == ("gptq", "bitsandbytes")
        assert form.widgets.rows["gptq_bits"].layout.display != "none"
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
        form = forms.form("gptq", settings_of("gptq"))
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
        space = settings_of("gptq")
        forms.form("gptq", space).widgets.by_name["bits"].value = 8
        again = forms.form("gptq", {**settings_of("gptq"), forms.KEPT: space[forms.KEPT]})
        assert again.values() == {"bits": 8}
        changed = forms.form(
            "gptq", {**settings_of("gptq"), "bits": 3, forms.KEPT: space[forms.KEPT]}
        )
        assert changed.values() == {"bits": 3}

    def test_ticks_stay_when_the_form_runs_again_though_types_imply_a_method(self) -> None:
        space = {**settings_of("all"), "gguf_types": "Q8_0"}
        form = forms.form("all", space)
        assert form.widgets.by_name["methods"].value == "gguf"
        form.widgets.by_name["methods"].value = "gguf,hqq"
        assert forms.form("all", space).methods == ("gguf", "hqq")
        assert forms.form("all", {**space, "methods": "w8a8"}).methods == ("w8a8",)

    def test_a_kernel_that_has_not_run_the_cells_above_says_which(self) -> None:
        with pytest.raises(InputError, match=r"run the folded cell above \(Model, methods and opt"):
            forms.form("all", {"forms": forms})

    def test_it_says_whether_it_fits(self) -> None:
        form = forms.form("gptq", {**settings_of("gptq"), "model": "demo"})
        form.widgets.plan()
        assert "it fits" in form.widgets.planned.value
        form.widgets.by_name["group_size"].value = 64
        assert form.widgets.planned.value == "", "of other values"
        form.widgets.by_name["model"].value = "no/such/folder"
        form.widgets.plan()
        assert 'role="alert"' in form.widgets.planned.value

    def test_comparisons_have_a_form_too(self) -> None:
        form = forms.form(
            "compare", {**settings_of("compare"), "small": "demo-small", "large": "demo"}
        )
        form.widgets.by_name["gptq_bits"].value = "8,5"
        assert "gptq_bits: 5 is not allowed; allowed: 2, 3, 4, 8" in form.widgets.said.value
        form.widgets.by_name["gptq_bits"].value = ""
        assert form.options.gptq_bits == ()
        form.widgets.plan()
        planned = form.widgets.planned.value
        assert planned.count("all of it fits") == 1
        assert planned.count("<tr>") == 1 + len(form.options.small_types) + len(
            {*form.options.small_types, *form.options.large_types}
        ), "one table of both runs"
        form.widgets.by_name["gptq_bits"].value = "8,4"
        form.widgets.plan()
        assert form.widgets.planned.value.count("<tr>") == planned.count("<tr>") + 2
        larger = planned.rpartition("tiny-austen-2m")[2]
        assert [type in larger for type in ("F16", "Q2_K")] == [True, True], (
            "of the larger model the types of both, as they are made"
        )


def test_in_colab_the_cell_is_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "in_notebook", lambda: True)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-test")
    form = forms.form("gguf", {**settings_of("gguf"), "types": "Q8_0"})
    assert form.widgets is None
    assert form.values() == {"types": ("Q8_0",)}
    assert not forms.can_stop(), "a button would not be heard while a cell runs"
    said, shown = looked_up("gguf", "demo", form.options.model_copy(update={"device": "T4"}))
    assert "take gguf Q8_0" in str(said)
    assert "T4" in str(shown)
    assert "Q4_K_M" in str(shown), "what the button lists in Jupyter"
    (why,) = looked_up("gguf", "no/such/folder", form.options)
    assert "no/such/folder" in str(why)


@pytest.mark.usefixtures("widgets")
def test_texts_and_wrong_kinds_from_papermill_are_shown_as_they_are_and_looked_at() -> None:
    for name, value, said in (
        ("calibration_samples", 2.5, "calibration_samples: 2.5 is not allowed"),
        ("bits", "four", "bits: four is not allowed"),
        ("sym", "maybe", "sym: "),
    ):
        form = forms.form("gptq", {**settings_of("gptq"), name: value})
        with pytest.raises(InputError, match=said):
            form.values()
        assert said in form.widgets.said.value
    assert forms.form("gptq", {**settings_of("gptq"), "sym": "False", "bits": "8"}).values() == {
        "bits": 8,
        "sym": False,
    }
    assert forms.form("gguf", {**settings_of("gguf"), "types": ["Q8_0", "Q2_K"]}).values() == {
        "types": ("Q8_0", "Q2_K")
    }


@pytest.mark.usefixtures("widgets")
def test_what_is_greyed_out_does_not_block_though_the_cell_says_it() -> None:
    form = forms.form("gptq", {**settings_of("gptq"), "algorithm": "autoround", "iterations": 50})
    assert form.values() == {"algorithm": "autoround", "iterations": 50}
    form.widgets.by_name["algorithm"].value = "gptq"
    assert form.values() == {}


@pytest.mark.usefixtures("widgets")
@pytest.mark.parametrize("path", sorted(FOLDER.glob("0[2-6]*.ipynb")), ids=lambda path: path.stem)
def test_what_a_notebook_tells_of_options_is_in_its_form(path: Path) -> None:
    """Each name in its table of options is a field that is shown, or folded where the table says
    so; with a number in the cell that lacks its point, too.
    """
    cells = {cell.id: cell.source for cell in nbformat.read(path, as_version=4).cells}
    named = re.findall(r"^\| `(\w+)` \| (\(under \*More options\*\))?", cells["options"], re.M)
    assert len(named) > 3
    space: dict[str, Any] = {}
    exec(cells["parameters"], space)  # as a kernel runs it
    exec(cells["more"], space)
    (name,) = re.findall(r'forms\.form\("(\w+)"', cells["form"])
    form = forms.form(name, space)
    for option, folded in named:
        assert form.widgets.rows[option].layout.display != "none", option
        assert (option in form.folded) is bool(folded), option


@pytest.mark.usefixtures("widgets")
def test_a_long_help_opens_and_a_short_one_stands_there() -> None:
    form = forms.form("gguf", settings_of("gguf"))
    for name, field in form.fields.items():
        first, rest = fields.parted(forms.about(name, field))
        assert first + rest == forms.about(name, field)
        assert len(first) <= fields.SHORT, name
    assert form.widgets.helps["imatrix"].value.startswith("<details")
    assert "improves all types below Q8_0 …</summary>none, builtin" in (
        form.widgets.helps["imatrix"].value
    )
    assert "<details" not in form.widgets.helps["types"].value
    assert fields.parted("a" * 200) == ("a" * 200, "")
    outside = "of these (one: a; two: b (three. four)), the best" + 100 * "!" + "; more"
    assert fields.parted(outside) == (outside, ""), "brackets are not cut"


def test_an_option_with_one_value_is_no_field_but_a_wrong_value_is_refused() -> None:
    assert "bits" not in settings_of("awq")
    with pytest.raises(InputError, match="bits: 3 is not allowed; allowed: 4"):
        forms.form("awq", {**settings_of("awq"), "bits": 3}).values()
    assert forms.form("awq", {**settings_of("awq"), "bits": 4}).values() == {}


@pytest.mark.parametrize("name", [one for one, it in METHODS.items() if it.comparison_variants])
def test_a_run_beside_the_forms_own_leaves_out_what_would_contradict_it(name: str) -> None:
    """Where a size decides about the form's run, what is compared with it is named all the same."""
    sized = {"gguf": {"size": "Q3_K_M"}, "gptq": {"bpw": 4.5}}.get(name, {})
    if "size" in METHODS[name].Options.model_fields and not sized:
        sized = {"size": "4MB"}
    form = forms.form(name, {**settings_of(name), **sized})
    assert form.values().keys() == sized.keys()
    beside = {"gguf": {"types": ("Q2_K",)}, "gptq": {"bits": 3}}.get(name, {})
    if "bpw" in METHODS[name].Options.model_fields and not beside:
        beside = {"bpw": ("3.0",)}
    assert form.beside(**beside) == beside
    options.build(METHODS[name].Options, form.beside(**beside))


def test_another_method_beside_it_takes_the_texts_and_the_base() -> None:
    given = {"calibration": "prose", "calibration_samples": 7, "bpw": "3.0", "eval_chunks": 4}
    form = forms.form("exl2", {**settings_of("exl2"), **given, "measurement_samples": 5})
    shared = {"calibration": "prose", "calibration_samples": 7, "eval_chunks": 4}
    assert form.shared("exl3") == shared
    assert form.shared("bitsandbytes") == {"eval_chunks": 4}
    assert forms.form("exl2", settings_of("exl2")).shared("exl3") == {}, "each its own text"


@pytest.mark.parametrize("code", ["en", "tr"])
def test_a_field_that_is_shown_does_not_say_when_it_counts(code: str) -> None:
    field = forms.declared("all").model_fields["gguf_types"]
    with language.spoken(code):
        shown, whole = fields.help("gguf_types", field), forms.about("gguf_types", field)
    assert len(re.sub("<.*?>", "", shown)) < len(whole)
    assert "gguf" not in shown.lower().partition("gguf t")[0]
    assert "<code>autoquant types</code>" in shown

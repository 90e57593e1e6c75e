"""What a form's cell says is what the method gets; what can be refused without a model, the form
refuses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.core import options
from autoquant.core.errors import InputError
from autoquant.methods import METHODS
from autoquant.notebook import forms
from tests.forms.conftest import each, settings_of


@each
def test_the_cell_is_the_defaults(name: str) -> None:
    space = settings_of(name)
    form = forms.form(name, space)
    assert form.values() == {}
    cls = METHODS[name].Options
    settled = {  # one value only is no question
        one
        for one, field in cls.model_fields.items()
        if len(options.choices(field)[0]) == 1 and not options.choices(field)[1]
    }
    assert (set(cls.model_fields) - settled) | {"model", "out"} == set(space) - {
        forms.KEPT,
        "compare",
        "device",  # of which its notebook lists types
        *({"context"} - set(cls.model_fields)),
    }, "every option is in the cell"
    assert (
        options.build(cls, {one: value for one, value in space.items() if one in cls.model_fields})
        == cls()
    )


@pytest.mark.parametrize("name", ["gguf", "gptq", "exl2", "awq", "hqq"])
def test_what_is_made_beside_the_run_can_be_chosen(name: str) -> None:
    """With a large model a cell that makes three more of it is not wanted."""
    space = settings_of(name)
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
        **settings_of("all"),
        "methods": "gguf, gptq",
        "gptq_bits": 3,
        "gguf_types": "Q8_0,Q2_K",
        "owner": "me",
        "eval_chunks": 7,
    }
    form = forms.form("all", space)
    assert form.methods == ("gguf", "gptq")
    several = {"types": ("Q8_0", "Q2_K"), "eval_chunks": 7, "eval_by_weights": True}
    assert form.values("gguf") == several, "as the other method's folder is measured"
    for less in ({"methods": "gguf"}, {"evaluate": "off", "eval_chunks": 20}):
        assert "eval_by_weights" not in forms.form("all", {**space, **less}).values("gguf")
    assert form.values("gptq") == {"bits": 3, "eval_chunks": 7}
    with pytest.raises(
        InputError,
        match="methods: no method is called 'gptx'; there are: gguf, gptq, exl2, exl3, awq, hqq",
    ):
        _ = forms.form("all", {**space, "methods": "gptx"}).methods


def test_every_face_says_the_same(tmp_path: Path) -> None:
    with pytest.raises(InputError) as of_function:
        autoquant.gptq("demo", bits=5, out=tmp_path / "out")
    with pytest.raises(InputError) as of_form:
        forms.form("gptq", {**settings_of("gptq"), "bits": 5}).values()
    assert str(of_form.value) == str(of_function.value)
    with pytest.raises(InputError, match="gptq_bits: 5 is not allowed"):
        forms.form("all", {**settings_of("all"), "methods": "gptq", "gptq_bits": 5}).values("gptq")


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
        ("hqq", {"eval_text": "~nobody-of-that-name/x"}, "this is not a usable file name"),
        ("hqq", {"eval_text": "x" * 5000}, "this is not a usable file name"),
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
        forms.form(name, {**settings_of(name), **values}).check()


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
    forms.form(name, {**settings_of(name), **values}).check()


def test_a_text_that_has_changed_is_read_again(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words")
    form = forms.form("gptq", {**settings_of("gptq"), "calibration": str(text)})
    form.check()
    text.write_bytes(b"\xff\xfe no utf-8")
    with pytest.raises(InputError, match="cannot be read"):
        form.check()


def test_one_calibration_text_serves_the_methods_that_look_at_one(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words")
    form = forms.form(
        "all",
        {**settings_of("all"), "methods": "gguf,gptq,exl2,awq,hqq,w8a8", "calibration": str(text)},
    )
    assert [
        method for method in form.methods if form.values(method).get("calibration") == str(text)
    ] == ["gptq", "exl2", "awq"]
    alone = [{"eval_by_weights": True}, {}, {}]
    assert [form.values(method) for method in ("gguf", "hqq", "w8a8")] == alone, "they look at none"
    form = forms.form(
        "all",
        {
            **settings_of("all"),
            "methods": "gguf,w8a8",
            "gguf_imatrix": "calibration",
            "w8a8_scheme": "int8-static",
            "calibration": str(text),
        },
    )
    read = {"imatrix": "calibration", "calibration": str(text), "eval_by_weights": True}
    assert form.values("gguf") == read
    assert form.values("w8a8") == {"scheme": "int8-static", "calibration": str(text)}
    assert forms.form("all", {**settings_of("all"), "methods": "exl2"}).values("exl2") == {}, (
        "its own mixture stays"
    )


def test_a_notebooks_own_default_is_not_held_against_the_user() -> None:
    """05's cell says iterations = 50, which algorithm awq has no use for: chosen in Colab, it must
    not be refused for a value that nobody typed.
    """
    space = {**settings_of("awq"), **METHODS["awq"].notebook_defaults}
    assert forms.form("awq", space).values() == METHODS["awq"].notebook_defaults
    assert forms.form("awq", {**space, "algorithm": "awq"}).values() == {
        "algorithm": "awq",
        "calibration_samples": 32,
    }
    with pytest.raises(
        InputError, match="iterations: 60 has an effect only with algorithm='autoround'"
    ):
        forms.form("awq", {**space, "algorithm": "awq", "iterations": 60}).check()

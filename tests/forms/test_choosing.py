"""What a form makes that names a device and no method; methods that cannot run; the page's choice;
files and answers.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.core.bundled import MODEL
from autoquant.core.errors import InputError, ProcessFailed, Stopped
from autoquant.core.options import split
from autoquant.notebook import choosing, files, forms, page
from autoquant.notebook.comparing import SameMemory
from autoquant.notebook.page import Note
from autoquant.result import Result
from tests.forms.conftest import settings_of


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[Note]:
    """What a notebook is shown beside a cell's own output."""
    notes: list[Note] = []
    monkeypatch.setattr(choosing, "show", notes.append)
    return notes


def form_of(**values: Any) -> forms.Form:
    return forms.form("all", {**settings_of("all"), "model": "demo", **values})


def test_a_device_is_enough(said: list[Note]) -> None:
    form = form_of(device="8GB laptop")
    assert form.chosen("demo") == ("gguf",)
    assert form.values("gguf") == {"types": ("Q8_0",)}, "the most bits that fit whole"
    assert "tiny-austen-4m on 8GB laptop, for 256 tokens: gguf Q8_0 (4.53 MB" in repr(said[0])
    tight = form_of(device="0.008GB")
    assert tight.chosen("demo") == ("gguf",)
    (kind,) = tight.values("gguf")["types"]
    assert kind != "Q8_0"
    with pytest.raises(InputError, match="device: no GGUF type of tiny-austen-4m fits on 0.001GB"):
        form_of(device="0.001GB").chosen("demo")


def test_what_is_named_counts_in_any_spelling(said: list[Note]) -> None:
    form = form_of(methods="GGUF; hqq", gguf_types="q8_0 Q2_K")
    assert form.methods == ("gguf", "hqq")
    assert form.values("gguf") == {"types": ("Q8_0", "Q2_K"), "eval_by_weights": True}
    assert form_of(gguf_types="Q2_K").methods == ("gguf",), "who names types wants them made"
    assert said == []
    with pytest.raises(InputError, match="methods: no method is called 'ggml'"):
        form_of(methods="ggml").check()
    with pytest.raises(InputError, match="device: 'T5' is no device that is known; nearest: T4"):
        form_of(device="T5").check()


def test_lists_are_separated_by_commas_semicolons_or_blanks() -> None:
    assert split("Q4_K_M; Q8_0 q2_k,IQ4_XS") == ("Q4_K_M", "Q8_0", "q2_k", "IQ4_XS")
    assert split("5.5 GB 4 gib; 3MB,4.5 bpw") == ("5.5 GB", "4 gib", "3MB", "4.5 bpw")


def test_what_cannot_run_here_is_left_out_and_said(
    said: list[Note], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise InputError("exl2: no GPU here")

    monkeypatch.setattr(forms.METHODS["exl2"], "check_hardware", refused)
    form = form_of(methods="gguf,exl2,w8a8")
    assert form.chosen("demo") == ("gguf", "w8a8")
    assert [repr(one) for one in said] == ["EXL2 is left out: exl2: no GPU here"]
    alone = form_of(methods="exl2")
    assert alone.chosen("demo") == ("exl2",), "alone it says so itself, in the plan"


def test_one_that_fails_does_not_stop_the_others(said: list[Note]) -> None:
    one_by_one = choosing.OthersGoOn(2)
    with one_by_one("gguf"):
        raise ProcessFailed("it broke")
    with one_by_one("hqq"):
        pass
    assert [repr(one) for one in said] == ["GGUF (llama.cpp) failed: it broke"]
    alone = choosing.OthersGoOn(2)
    with alone("gguf"):
        raise ProcessFailed("it broke")
    with pytest.raises(ProcessFailed, match="that too"), alone("hqq"):
        raise ProcessFailed("that too")
    with pytest.raises(ProcessFailed, match="again"), alone("gguf"), alone("hqq"):
        raise ProcessFailed("again")  # the cell runs once more
    with pytest.raises(Stopped), choosing.OthersGoOn(2)("gguf"):
        raise Stopped("by the user")
    with pytest.raises(ZeroDivisionError), choosing.OthersGoOn(2)("gguf"):
        _ = 1 / 0  # a fault of ours is never passed over


@pytest.mark.usefixtures("widgets")
class TestPage:
    def test_the_form_of_gguf_lists_its_own_types_for_a_device(self) -> None:
        form = forms.form("gguf", {**settings_of("gguf"), "model": "demo", "device": "8GB laptop"})
        widgets = form.widgets
        assert widgets is not None
        widgets.advise()
        verdict, table = widgets.advised.children
        assert "If you tick nothing" not in verdict.value
        assert {row.children[0].description for row in table.children[1:]} == {"gguf"}
        boxes = {
            re.search(r">([A-Z0-9_]+)</span>", row.children[1].value)[1]: row.children[0]  # type: ignore[index]
            for row in table.children[1:]
        }
        assert (boxes["Q4_K_M"].value, boxes["Q8_0"].value) == (True, False), "the default is made"
        boxes["Q8_0"].value, boxes["Q4_K_M"].value = True, False
        assert form.values() == {"types": ("Q8_0",)}, "the device is no option of the run"

    @pytest.mark.parametrize(
        ("method", "device", "said", "types"),
        [
            ("gptq", "T4", "GPTQ 4bit-128g fits on T4.", ["4bit-128g"]),
            (
                "awq",
                "8GB laptop",
                "AWQ is for NVIDIA GPUs, and 8GB laptop has none. For it take gguf Q8_0",
                [],
            ),
            ("exl3", "RTX 4090", "EXL3 6.0bpw fits on RTX 4090.", ["6.0bpw", "5.0bpw"]),
        ],
    )
    def test_a_methods_form_says_what_it_has_for_a_device(
        self, method: str, device: str, said: str, types: list[str]
    ) -> None:
        form = forms.form(method, {**settings_of(method), "model": "demo", "device": device})
        widgets = form.widgets
        assert widgets is not None
        widgets.advise()
        shown, *table = widgets.advised.children
        assert said in shown.value
        assert bool(table) is bool(types)
        own, _ = choosing.own(choosing.advised("demo", device, 0), method)
        assert [one.type for one in own.choices][: len(types)] == types

    def test_types_are_picked_by_ticking(self) -> None:
        form = form_of(device="8GB laptop")
        widgets = form.widgets
        assert widgets is not None
        widgets.advise()
        verdict, table = widgets.advised.children
        assert "take gguf Q8_0" in verdict.value
        boxes = {
            re.search(r">([A-Z0-9_]+)</span>", row.children[1].value)[1]: row.children[0]  # type: ignore[index]
            for row in table.children[1:]
        }
        assert {"Q8_0", "Q4_K_M", "IQ3_XXS"} <= set(boxes)
        boxes["Q8_0"].value = boxes["IQ3_XXS"].value = True
        assert form.methods == ("gguf",)
        assert form.values("gguf") == {"types": ("Q8_0", "IQ3_XXS"), "imatrix": "builtin"}
        boxes["IQ3_XXS"].value = False
        assert form.options.gguf_types == ("Q8_0",)
        boxes["Q8_0"].value = False
        assert form.methods == (), "none: what is best for the device"
        widgets.by_name["device"].value = "RTX 4090"
        widgets.advise()
        of = {
            (row.children[0].description, row.children[1].value): row.children[0]
            for row in widgets.advised.children[1].children[1:]
        }
        int8, fp8 = (
            next(box for (method, said), box in of.items() if method == "w8a8" and kind in said)
            for kind in ("int8-dynamic", "fp8-dynamic")
        )
        fp8.value = True
        assert (form.methods, form.options.w8a8_scheme) == (("w8a8",), "fp8-dynamic")
        int8.value = True
        assert (form.options.w8a8_scheme, fp8.value) == ("int8-dynamic", False), "one at a time"
        int8.value = False
        assert form.methods == ()
        widgets.by_name["device"].value = "nothing such"
        widgets.advise()
        assert "nothing such" in widgets.advised.children[0].value

    def test_a_model_that_cannot_be_had_is_said_beside_its_field(self) -> None:
        form = form_of()
        assert form.widgets is not None
        form.widgets.look_at_models()
        assert "4 million weights" in form.widgets.helps["model"].value
        form.widgets.by_name["model"].value = "no/such/folder"
        assert 'role="alert"' in form.widgets.helps["model"].value
        assert "no/such/folder" in form.widgets.helps["model"].value

    def test_a_question_can_be_typed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(page, "in_notebook", lambda: True)
        question = forms.question("Who are you?", {})
        assert question.text == "Who are you?"
        question._box.value = "And now?"
        assert question.text == "And now?"
        assert forms.question("Who are you?", {"question": question}).text == "And now?"
        assert forms.question("Where?", {"question": question}).text == "Where?"


def test_files_say_where_they_lie_and_how_to_run_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = autoquant.gguf("demo", types=["Q8_0"], evaluate="off", out=tmp_path / "my files")
    path = tmp_path / "my files" / "tiny-austen-4m-Q8_0.gguf"
    listed = forms.Files({"gguf": result})
    assert str(listed).startswith(f"Q8_0: {path} (4.")
    assert f"llama-server -m '{path}'" in str(listed)
    shown = listed._repr_html_()
    assert f'href="my%20files/{path.name}"' in shown, "a link from where the notebook lies"
    assert 'href="my%20files/README.md"' in shown
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "href" not in forms.Files(result)._repr_html_(), "a page reaches only what is below it"
    assert str(forms.Files({})) in forms.Files({})._repr_html_(), "where all have failed"
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-test")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "fakes"))
    for name in [one for one in sys.modules if one == "google" or one.startswith("google.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("autoquant.notebook.page.DRIVE", tmp_path / "drive")
    row, told = listed.buttons().children
    for button in row.children:
        button.click()
    from google.colab import files as colab  # type: ignore[import-untyped]

    assert [str(path)] == colab.DOWNLOADED
    copied = tmp_path / "drive" / "MyDrive" / "AutoQuant" / "my files"
    assert (copied / path.name).read_bytes() == path.read_bytes()
    assert not (copied / ".autoquant").exists()
    assert "copied to" in told.value


def test_runs_that_were_compared_keep_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models' runs of 8 bits lie in folders of one name; their lists, copies and zip files
    name what tells them apart.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-test")
    monkeypatch.setattr("autoquant.notebook.page.DRIVE", tmp_path / "drive")
    (tmp_path / "drive" / "MyDrive").mkdir(parents=True)
    runs = {
        name: autoquant.w8a8(name, evaluate="off", out=tmp_path / f"{name}-compared" / "8bit")
        for name in ("demo", "demo-small")
    }
    listed = forms.Files(runs)
    page = listed._repr_html_()
    assert [page.count(f">{name}</td>") for name in runs] == [1, 1], "a row for each"
    assert "vllm serve" in page
    assert "These paths are Colab" in page
    row, _ = listed.buttons().children
    assert [one.description for one in row.children[:2]] == [
        "Download demo: int8-dynamic",
        "Download demo-small: int8-dynamic",
    ]
    row.children[-1].click()
    for name, run in runs.items():
        copied = tmp_path / "drive" / "MyDrive" / "AutoQuant" / f"{name}-compared" / "8bit"
        assert (copied / "config.json").is_file()
        assert files.packed(run.folder).name == f"{name}-compared-8bit.zip"
    monkeypatch.chdir(tmp_path / "drive")
    there = dataclasses.replace(runs["demo-small"], folder=copied)
    forms.Files(there).buttons().children[0].children[-1].click()
    assert not (copied.parents[1] / "MyDrive").exists(), "what lies there is not copied into itself"
    three = autoquant.Comparison(runs).answer("Who is it?", tokens=3)
    assert list(three.said) == [
        "tiny-austen-4m, unquantized",
        "tiny-austen-2m, unquantized",
        "demo int8-dynamic",
        "demo-small int8-dynamic",
    ]


def test_several_plans_are_added_up() -> None:
    """What is downloaded once counts once; what is written in between goes again."""
    planned = [
        autoquant.plan("gguf", "demo", types=["Q8_0", "Q2_K"], imatrix="builtin"),
        autoquant.plan("w8a8", "demo"),
    ]
    source = dataclasses.replace(planned[0].source, id="owner/model")
    load = {"download": 10**9, "source": source}
    for at, between in enumerate((10**8, 3 * 10**8)):
        made = sum(item.bytes for item in planned[at].items)
        seconds = {"download": 60.0, "quantize": 10.0}
        planned[at] = dataclasses.replace(
            planned[at], disk_needed=10**9 + made + between, seconds=seconds, **load
        )
    both = forms.Plans(planned)
    made = sum(item.bytes for one in planned for item in one.items)
    assert both.disk_needed == 10**9 + made + 3 * 10**8
    assert both.seconds == {"download": 60.0, "quantize": 20.0}
    assert str(both).endswith("all of it fits")
    assert str(both).count("owner/model") == 3
    assert forms.Plans(planned[:1])._repr_html_() == planned[0]._repr_html_()
    tight = dataclasses.replace(planned[0], disk_free=10**9 + made)
    assert both.verdict[0]
    assert not forms.Plans([tight, planned[1]]).verdict[0], "each fits alone, both do not"


def test_a_folder_is_packed_once_for_a_download(tmp_path: Path) -> None:
    result = autoquant.w8a8("demo", evaluate="off", out=tmp_path / "run")
    made = files.packed(result.folder)
    with zipfile.ZipFile(made) as file:
        names = set(file.namelist())
        assert {"run/model.safetensors", "run/config.json", "run/README.md"} <= names
        assert not any(".autoquant" in name for name in names)
        assert file.read("run/config.json") == (result.folder / "config.json").read_bytes()
    before = made.stat().st_mtime_ns
    assert files.packed(result.folder).stat().st_mtime_ns == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["run", "run.zip"]


def test_models_answer_a_prompt(tmp_path: Path) -> None:
    prompt = "It is a truth universally acknowledged, that"
    result = autoquant.gguf("demo", types=["Q8_0", "Q2_K"], evaluate="off", out=tmp_path / "gguf")
    answers = result.answer(prompt, tokens=12)
    assert list(answers.said) == ["unquantized", "Q8_0", "Q2_K"]
    assert answers.why == {}
    assert answers.said["Q8_0"].split()[:5] == answers.said["unquantized"].split()[:5]
    assert answers.said["unquantized"].strip() in answers._repr_html_()
    one = result.answer(prompt, type="Q2_K", tokens=12)
    assert one.said["Q2_K"] == answers.said["Q2_K"]
    folder = autoquant.w8a8("demo", evaluate="off", out=tmp_path / "w8a8").answer(prompt, tokens=12)
    assert folder.said["unquantized"] == answers.said["unquantized"]
    assert folder.said["int8-dynamic"].split()[:5] == folder.said["unquantized"].split()[:5]
    for wrong, says in (("", "prompt: it is empty"), (prompt, "tokens: 0 is not allowed")):
        with pytest.raises(InputError, match=says):
            result.answer(wrong, tokens=0)


def test_a_model_with_a_chat_template_is_asked_in_it(tmp_path: Path) -> None:
    """The bundled tokenizer with one; llama.cpp gets the same text, special tokens and all."""
    folder = tmp_path / "chatty"
    shutil.copytree(MODEL, folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<s>{{ m.content }}{% endfor %}{% if add_generation_prompt %} And"
        " she said{% endif %}"
    )
    options = {"types": ["Q8_0"], "evaluate": "off", "pre_tokenizer": "gpt-2"}
    result = autoquant.gguf(folder, out=tmp_path / "out", **options)
    answers = result.answer("She looked at him.", tokens=8)
    plain = autoquant.gguf("demo", types=["Q8_0"], evaluate="off", out=tmp_path / "plain")
    asked = plain.answer("She looked at him. And she said", tokens=8)
    assert answers.said["unquantized"] == asked.said["unquantized"]
    assert answers.said["Q8_0"] == asked.said["Q8_0"]
    assert answers.said["Q8_0"] != plain.answer("She looked at him.", tokens=8).said["Q8_0"]
    (folder / "model.safetensors").unlink()
    gone = result.answer("She looked at him.", tokens=8)
    assert gone.why["unquantized"] == "the unquantized model does not lie here any more"
    assert gone.said["Q8_0"] == answers.said["Q8_0"]


def test_what_cannot_be_compared_is_no_verdict(demo: Result) -> None:
    """Of models with different tokenizers no row says which is better, and none counts."""
    assert "undecided: " in str(SameMemory(demo, demo))
    other = tuple(
        dataclasses.replace(
            one, evaluation=dataclasses.replace(one.evaluation, tokens_sha256="another")
        )
        for one in demo.artifacts
        if one.evaluation is not None
    )
    said = str(SameMemory(demo, dataclasses.replace(demo, artifacts=other)))
    assert "different tokenizers" in said
    assert "comparisons in the same memory" not in said

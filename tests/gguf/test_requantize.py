"""A GGUF file for a model: which one of several, what is made of it, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.core import gguf_head
from autoquant.core.errors import InputError
from autoquant.core.files import sha256_of
from autoquant.methods import METHODS
from autoquant.pipeline import evaluate_files
from autoquant.result import Result
from autoquant.source import from_gguf, resolve
from tests.gguf.conftest import QUICK
from tests.workers import in_llama_worker, in_worker


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Files as somebody has published them, made of the checkpoint."""
    out = tmp_path_factory.mktemp("published") / "tiny-GGUF"
    return autoquant.gguf("demo", types="F16,Q8_0,Q4_K_M", out=out, **QUICK)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unquantized file in three shards."""
    out = tmp_path_factory.mktemp("shards") / "run"
    return autoquant.gguf("demo", types="F16", split_size="4M", out=out, **QUICK).folder


def hashes(result: Result) -> dict[str, str]:
    return {one.type: one.files[0].sha256 for one in result.artifacts}


def test_types_of_a_file_are_those_of_the_checkpoint_byte_for_byte(
    made: Result, shards: Path, tmp_path: Path
) -> None:
    of_file = autoquant.gguf(
        made.path("F16"), types="Q8_0,Q4_K_M", eval_chunks=2, out=tmp_path / "file"
    )
    wanted = {name: value for name, value in hashes(made).items() if name != "F16"}
    assert hashes(of_file) == wanted
    assert [path.name for path in sorted(of_file.folder.glob("*.gguf"))] == [
        "tiny-austen-4m-Q4_K_M.gguf",
        "tiny-austen-4m-Q8_0.gguf",
    ], "nothing beside them"
    reference, row = of_file.reference, of_file.artifacts[1].evaluation
    assert reference is not None
    assert row is not None
    assert (reference.engine, row.engine) == ("llama.cpp", "llama.cpp")
    assert 0 < row.kl_mean < 0.02
    card = of_file.card()
    assert "| made of | tiny-austen-4m-F16.gguf (F16) |" in card
    assert "against the unquantized model" in card
    assert "autoquant quantize gguf tiny-austen-4m-F16.gguf" in card

    # its shards, by the folder that they lie in; a run again makes nothing anew
    of_shards = autoquant.gguf(shards, types="Q4_K_M", evaluate="off", out=tmp_path / "shards")
    assert hashes(of_shards)["Q4_K_M"] == wanted["Q4_K_M"]
    planned = autoquant.plan("gguf", shards, types="Q4_K_M")
    assert planned.items[0].bytes == of_shards.artifacts[0].bytes
    before = of_shards.artifacts[0].path_in(of_shards.folder).stat().st_mtime_ns
    again = autoquant.gguf(shards, types="Q4_K_M", evaluate="off", out=tmp_path / "shards")
    assert again.artifacts[0].path_in(again.folder).stat().st_mtime_ns == before


def test_what_a_quantized_file_has_lost_stays_lost_and_that_is_said(
    made: Result, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = r"the source is quantized itself (Q8_0): what that has lost stays lost"
    note, takes = autoquant.plan("gguf", made.path("Q8_0"), types="Q4_K_M").notes
    assert said in note
    assert "it is measured by llama.cpp, which runs the whole model" in takes
    result = autoquant.gguf(
        made.path("Q8_0"), types="Q4_K_M", imatrix="builtin", imatrix_chunks=4, eval_chunks=2,
        out=tmp_path / "out",
    )  # fmt: skip
    assert said in caplog.text
    card = result.card()
    assert "tiny-austen-4m-Q8_0.gguf (Q8_0; what that has lost stays lost)" in card
    assert "against the Q8_0 file it is made of" in card
    assert "source, Q8_0" in str(result)
    assert result.evaluate(chunks=1).artifacts[0].evaluation is not None
    with pytest.raises(InputError, match="the source of this run is a GGUF file"):
        result.look("Q4_K_M")


def test_below_q8_0_only_if_that_is_asked_for(made: Result, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is Q4_K_M, which has lost too much .*allow_requantize"):
        autoquant.gguf(made.path("Q4_K_M"), types="Q3_K_M", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    smaller = autoquant.gguf(
        made.path("Q4_K_M"), types="Q3_K_M", allow_requantize=True, evaluate="off",
        out=tmp_path / "out",
    )  # fmt: skip
    assert smaller.artifacts[0].bytes < made.path("Q4_K_M").stat().st_size


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"types": "Q4_K_M", "precision": "f32"}, "precision: .* is a GGUF file, .* leave"),
        ({"types": "Q4_K_M", "pre_tokenizer": "gpt-2"}, "pre_tokenizer: .* is a GGUF file"),
        ({"types": "Q4_K_M", "mmproj": False}, "mmproj: .* is a GGUF file"),
        ({"types": "Q4_K_M", "imatrix": "calibration"}, "tokenizer of transformers"),
        ({"types": "Q4_K_M,Q8_0"}, "is Q8_0 already"),
        ({"types": "IQ2_XXS"}, "IQ2_XXS needs an importance matrix"),
        ({"types": "Q4_K_M", "base": "demo"}, "is a whole model; base is for LoRA"),
    ],
)
def test_options_that_do_not_go_with_a_file(
    values: dict[str, Any], said: str, made: Result, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        autoquant.gguf(made.path("Q8_0"), out=tmp_path / "out", **values)
    assert not (tmp_path / "out").exists()


def test_other_methods_and_other_files_are_refused_as_what_they_are(
    made: Result, shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="GPTQ begins with a checkpoint of transformers"):
        autoquant.gptq(made.path("F16"))
    with pytest.raises(InputError, match="is no GGUF file; leave allow_requantize out"):
        autoquant.plan("gguf", "demo", allow_requantize=True)
    cut = tmp_path / "cut-F16.gguf"
    cut.write_bytes(made.path("F16").read_bytes()[:-4096])
    with pytest.raises(InputError, match=r"cut-F16\.gguf is no whole GGUF file: it has .* bytes"):
        resolve(cut)
    (tmp_path / "other.gguf").write_bytes(b"PK" + bytes(99))
    with pytest.raises(InputError, match="it does not begin with GGUF"):
        resolve(tmp_path / "other.gguf")
    with pytest.raises(InputError, match=r"no such GGUF file: a/nonesuch-Q8_0\.gguf"):
        resolve("a/nonesuch-Q8_0.gguf")
    old = tmp_path / "old.gguf"
    old.write_bytes(b"GGUF" + (1).to_bytes(4, "little") + bytes(99))
    with pytest.raises(InputError, match="it is GGUF of version 1, which llama.cpp reads no more"):
        resolve(old)
    (first, second, *_) = sorted(shards.glob("*.gguf"))
    (tmp_path / first.name).symlink_to(first)
    with pytest.raises(InputError, match=f"lacks {second.name}, one of"):
        resolve(tmp_path / first.name)


NAMES = (
    "a-7B-Q4_K_M.gguf",
    "a-7B-Q8_0.gguf",
    "a-7B.IQ2_XXS.gguf",
    "F16/a-7B-F16-00001-of-00002.gguf",
    "F16/a-7B-F16-00002-of-00002.gguf",
    "mmproj-a-7B-BF16.gguf",
    "imatrix.gguf",
)


@pytest.mark.parametrize(
    ("names", "tag", "chosen"),
    [
        (NAMES, "", "F16/a-7B-F16-00001-of-00002.gguf"),
        (NAMES[:3], "", "a-7B-Q8_0.gguf"),
        (NAMES, "q4_k_m", "a-7B-Q4_K_M.gguf"),
        (NAMES, "iq2_xxs", "a-7B.IQ2_XXS.gguf"),
        (NAMES, "F16/a-7B-F16-00002-of-00002.gguf", "F16/a-7B-F16-00001-of-00002.gguf"),
        (("model.gguf", "mmproj.gguf"), "", "model.gguf"),
        (("p-fp16.gguf", "p-q4.gguf"), "", "p-fp16.gguf"),
        (("p-fp16.gguf", "p-q4_0.gguf"), "F16", "p-fp16.gguf"),
        (("m-F16.gguf", "lora-F16.gguf", "a-imatrix.gguf"), "", "m-F16.gguf"),
        (("a-imatrix-Q8_0.gguf", "imatrix.gguf"), "", "a-imatrix-Q8_0.gguf"),
        (("my model (v2)-F16.gguf", "b-F16.gguf"), "b-F16.gguf", "b-F16.gguf"),
        (("m-UD-Q4_K_XL.gguf", "m-Q4_K_M.gguf"), "UD-Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        (NAMES, "Q5_K_M", "has no GGUF file called Q5_K_M, nor one of that type; it has: F16/"),
        (("a-Q4_0.gguf", "a-Q4_1.gguf"), "", "has no GGUF file of the types BF16, F32, F16, Q8_0"),
        (("a-F16.gguf", "b-F16.gguf"), "", r"several GGUF files; .*Name one: o/n:a-F16\.gguf"),
    ],
)
def test_which_file(names: tuple[str, ...], tag: str, chosen: str) -> None:
    if chosen in names:
        assert from_gguf.choose(names, tag, "o/n")[0] == chosen
    else:
        with pytest.raises(InputError, match=chosen):
            from_gguf.choose(names, tag, "o/n")


def test_a_models_name_is_its_files_without_the_type() -> None:
    assert from_gguf.id_of("F16/a-7B-F16-00001-of-00002.gguf", "b") == "a-7B"
    assert from_gguf.id_of("a-7B.Q8_0.gguf", "b") == "a-7B"
    assert from_gguf.id_of("phi-3-fp16.gguf", "b") == "phi-3"
    assert from_gguf.id_of("ggml-model-f16.gguf", "b") == "b"
    assert from_gguf.id_of("Q8_0.gguf", "b") == "b"


def test_heads_are_read_as_ggml_reads_them(
    made: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In small pieces too, as a large head comes; and its types are those of llama.cpp."""
    monkeypatch.setattr(gguf_head, "FIRST", 1 << 10)
    path = made.path("Q4_K_M")
    head = gguf_head.read(path)
    seen = in_llama_worker("tests.helpers.gguf:head", tmp_path, path=str(path))
    mine = {name: [one.type, list(one.shape), one.bytes] for name, one in head.tensors.items()}
    assert seen["tensors"] == mine
    assert seen["data_offset"] == head.data_offset
    assert seen["types"] == [[number, *row] for number, row in gguf_head.TYPES.items()]
    named = {str(number): name for number, name in from_gguf.FILE_TYPES.items()}
    assert seen["file_types"] == named
    assert sha256_of(path) == hashes(made)["Q4_K_M"], "only looked at"


def test_every_type_is_planned_but_its_own(made: Result) -> None:
    """As the command line has it without types."""
    types = METHODS["gguf"].plan_defaults({})["types"]
    for kind in ("F16", "Q8_0", "Q4_K_M"):
        below = kind == "Q4_K_M"
        items = autoquant.plan("gguf", made.path(kind), types=types, allow_requantize=below).items
        assert len(items) > 20
        assert kind not in {item.type for item in items}


def test_what_lies_beside_a_named_file_is_not_taken_for_its_models(
    made: Result, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "some-F16.gguf").symlink_to(made.path("F16"))
    (project / "README.md").write_text("---\nbase_model: a/b\nlicense: mit\n---\n")
    (project / "LICENSE").write_text("of the project")
    result = autoquant.gguf(project / "some-F16.gguf", types="Q8_0", evaluate="off")
    assert result.source.base_model is None
    assert result.source.license != "mit"
    assert "LICENSE" not in result.extras
    # and the folder is that file still, with a run's own folder in it
    (project / "some-F16.gguf").rename(project / "kept.gguf")
    autoquant.gguf(project / "kept.gguf", types="Q8_0", evaluate="off", out=project / "run")
    assert resolve(project).gguf == "kept.gguf"
    (project / "kept.gguf").unlink()
    with pytest.raises(InputError, match="the model is gone: .*some-F16"):
        result.evaluate(chunks=1)


def test_files_are_measured_against_a_file(made: Result) -> None:
    (source, row) = evaluate_files([made.path("Q4_K_M")], str(made.path("Q8_0")), chunks=2)
    assert source[0] == "tiny-austen-4m (source, Q8_0)"
    assert 0 < row[1].kl_mean < 0.02


def test_what_a_model_sees_with_goes_along(tmp_path: Path) -> None:
    model = tmp_path / "gemma"
    in_worker("bench.cases.architectures:make", tmp_path, name="gemma3_vision", folder=str(model))
    quick: dict[str, Any] = {"pre_tokenizer": "gpt-2", "evaluate": "off"}
    first = autoquant.gguf(model, types="Q8_0", out=tmp_path / "first", **quick)
    tower = "mmproj-gemma-F16.gguf"
    # somebody's folder, without our journal
    folder = tmp_path / "gemma-GGUF"
    folder.mkdir()
    for name in ("gemma-Q8_0.gguf", tower):
        (folder / name).write_bytes((first.folder / name).read_bytes())

    made = autoquant.gguf(
        folder, types="Q4_K_M", modelfile=True, evaluate="off", out=tmp_path / "again"
    )
    (copied,) = made.folder.glob("mmproj-*.gguf")
    assert copied.read_bytes() == (folder / tower).read_bytes()
    assert f"--mmproj {copied.name} --image" in made.card()
    assert f"FROM ./{copied.name}" in (made.folder / "gemma-Q4_K_M.Modelfile").read_text()
    planned = autoquant.plan("gguf", folder, types="Q4_K_M")
    assert f"{tower}, what it sees or hears with, goes along" in " ".join(planned.notes)
    assert planned.disk_needed == sum(path.stat().st_size for path in made.folder.glob("*.gguf")), (
        "with the file that goes along"
    )

    without = autoquant.gguf(
        folder, types="Q4_K_M", mmproj=False, evaluate="off", out=tmp_path / "without"
    )
    assert [path.name for path in without.folder.glob("*.gguf")] == ["gemma-Q4_K_M.gguf"]
    assert f"left out, as asked: {tower}" in without.card()
    alone = autoquant.plan("gguf", folder / "gemma-Q8_0.gguf", types="Q4_K_M")
    assert f"{tower} in the same folder goes with the new files as it is" in " ".join(alone.notes)

"""GGUF end to end on the bundled model: real converter, real llama.cpp, real files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.backends.llamacpp import converter
from autoquant.core.errors import CheckFailed, InputError
from autoquant.core.files import sha256_of
from autoquant.result import Result
from autoquant.runtime import process

QUICK: dict[str, Any] = {"pre_tokenizer": "gpt-2", "evaluate": "off"}


def in_worker(target: str, tmp_path: Path, **kwargs: Any) -> Any:
    return process.call(
        target, log=tmp_path / "log", env=converter.environment(converter.locate()), **kwargs
    )


def test_quality_falls_with_the_bits(demo: Result) -> None:
    rows = {artifact.type: artifact for artifact in demo.artifacts}
    kl = [rows[name].evaluation.kl_mean for name in ("F16", "Q8_0", "Q4_K_M", "IQ3_XXS", "Q2_K")]  # type: ignore[union-attr]
    assert kl == sorted(kl)
    assert kl[0] < 1e-4, (
        "F16 through llama.cpp against float32 through transformers: conversion lost nothing"
    )
    assert kl[-1] < 0.3
    agreement = [rows[name].evaluation.agreement for name in ("F16", "Q8_0", "Q4_K_M", "Q2_K")]  # type: ignore[union-attr]
    assert agreement == sorted(agreement, reverse=True)
    assert demo.reference is not None
    assert rows["F16"].evaluation is not None
    assert math.isclose(rows["F16"].evaluation.perplexity, demo.reference.perplexity, rel_tol=1e-3)
    assert len({a.evaluation.tokens for a in demo.artifacts if a.evaluation}) == 1


def test_perplexity_is_what_llama_cpp_python_gives(demo: Result) -> None:
    """An independent computation: high-level API, its own tokenizer and log-probabilities."""
    import numpy as np
    from llama_cpp import Llama

    text = (
        Path(autoquant.__file__)
        .with_name("demo")
        .joinpath("austen_persuasion_heldout.txt")
        .read_text()
    )
    # as llama.cpp's tools do
    llm = Llama(
        str(demo.path("Q4_K_M")),
        n_ctx=256,
        n_batch=256,
        logits_all=True,
        flash_attn=True,
        verbose=False,
    )
    ids = llm.tokenize(text[:120_000].encode(), add_bos=False)
    nll = []
    for i in range(30):
        chunk = ids[i * 256 : (i + 1) * 256]
        llm.reset()
        llm.eval(chunk)
        scores = np.array(llm.scores[128:255], dtype=np.float64)
        scores -= scores.max(axis=1, keepdims=True)
        logp = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        nll += [-logp[k, chunk[129 + k]] for k in range(127)]
    found = next(a.evaluation for a in demo.artifacts if a.type == "Q4_K_M")
    assert found is not None
    assert found.tokens == len(nll)
    assert math.isclose(math.exp(np.mean(nll)), found.perplexity, rel_tol=1e-5)
    assert math.isclose(
        math.exp(np.mean(nll)) * np.std(nll) / math.sqrt(len(nll) - 1),
        found.perplexity_error,
        rel_tol=1e-3,
    )


def test_folder_is_tidy(demo: Result) -> None:
    names = {path.name for path in demo.folder.iterdir()}
    files = {f"tiny-austen-4m-{name}.gguf" for name in ("F16", "Q8_0", "Q4_K_M", "Q2_K", "IQ3_XXS")}
    assert names == files | {name.replace(".gguf", ".Modelfile") for name in files} | {
        "imatrix.gguf",
        "README.md",
        "size-against-quality.png",
        ".autoquant",
    }
    assert {path.name for path in (demo.folder / ".autoquant").iterdir()} == {
        "journal.json",
        "header.gguf",
        "lock",
    }
    assert (
        "FROM ./tiny-austen-4m-Q4_K_M.gguf"
        in (demo.folder / "tiny-austen-4m-Q4_K_M.Modelfile").read_text()
    )


def test_result_shows_itself(demo: Result) -> None:
    text, page = str(demo), demo._repr_html_()
    for name in ("unquantized", "Q4_K_M", "IQ3_XXS", "KL mean"):
        assert name in text
        assert name in page
    assert "data:image/png;base64," in page
    with pytest.raises(InputError, match="Q4_K_M"):
        demo.path("Q5_K_M")


def test_bad_types_are_refused_with_the_nearest_names() -> None:
    with pytest.raises(InputError, match=r"'Q4_KM' is no GGUF type; nearest: .*Q4_K_M"):
        autoquant.gguf("demo", types=["Q4_KM"])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"types": ["IQ2_M"]}, "IQ2_M needs an importance matrix"),
        ({"types": []}, "types"),
        ({"tensor_types": ["attn_v"]}, "is no rule"),
        ({"tensor_types": ["attn_(=Q8_0"]}, "no regular expression"),
        ({"output_type": "Q9_K"}, "no tensor type; nearest"),
        ({"split_size": "lots"}, "is no size"),
        ({"precision": "f8"}, "allowed: auto, f16, bf16, f32"),
        ({"types": ["F16"], "pure": True}, "unquantized"),
        ({"imatrix": "/nowhere/text.txt"}, "no such file"),
        ({"imatrix": "/nowhere/im.gguf"}, "no such file"),
        ({"eval_text": "/nowhere/text.txt"}, "no such file"),
        ({"converter": "/nowhere"}, "no such file or folder"),
    ],
)
def test_bad_options_leave_nothing_behind(
    values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        autoquant.gguf(
            "demo", out=tmp_path / "deep" / "out", **{"pre_tokenizer": "gpt-2", **values}
        )
    assert list(tmp_path.iterdir()) == []


def test_unknown_pre_tokenizer_is_refused_with_a_way_on(
    model: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(
        InputError,
        match=r"pre-tokenizer of own \(its tokenizer.json says: ByteLevel\).*--pre-tokenizer gpt-2",
    ):
        autoquant.gguf(model("own"), out=tmp_path / "out", evaluate="off")
    with pytest.raises(InputError, match=r"has none called 'gpt2x'"):
        autoquant.gguf("demo", out=tmp_path / "out", evaluate="off", pre_tokenizer="gpt2x")
    assert not (tmp_path / "out").exists()


def test_the_bundled_model_needs_no_pre_tokenizer(tmp_path: Path) -> None:
    result = autoquant.gguf("demo", types=["Q8_0"], evaluate="off", out=tmp_path / "out")
    assert "--pre-tokenizer gpt-2" in result.card(), "the card says what was assumed"


def test_a_wrong_pre_tokenizer_is_found_by_comparing_token_ids(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="token ids differ from the source tokenizer's at token"):
        autoquant.gguf("demo", out=tmp_path / "out", evaluate="off", pre_tokenizer="bloom")
    assert list(tmp_path.iterdir()) == []


def test_unknown_architecture_names_near_ones(model: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"'LlamaForCausalLMX'; nearest of the \d+ it knows: .*LlamaForCausalLM"
    ):
        autoquant.gguf(model(architectures=["LlamaForCausalLMX"]), out=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_nan_in_the_source_is_found_and_named(model: Callable[..., Path], tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    folder = model()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(autoquant.AutoQuantError, match=r"ffn_up|validation|invalid"):
        autoquant.gguf(folder, types=["Q4_K_M"], out=tmp_path / "out", **QUICK)
    assert {path.name for path in (tmp_path / "out").rglob("*")} == {
        ".autoquant",
        "header.gguf",
        "journal.json",
        "lock",
        "log.txt",
    }, "journal and log stay, no model file"


def test_types_may_be_one_text(tmp_path: Path) -> None:
    result = autoquant.gguf("demo", types="q2_k, Q3_K_S", out=tmp_path / "out", **QUICK)
    assert [artifact.type for artifact in result.artifacts] == ["Q2_K", "Q3_K_S"]


@pytest.mark.parametrize("name", ["Q8_0", "F16", "BF16"])
def test_one_plain_type_is_written_by_the_converter_itself(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    real = process.call
    monkeypatch.setattr(
        "autoquant.runtime.process.call",
        lambda target, /, **kwargs: asked.append(kwargs) or real(target, **kwargs),
    )
    result = autoquant.gguf("demo", types=[name], out=tmp_path / "out", **QUICK)
    assert result.artifacts[0].name == f"tiny-austen-4m-{name}.gguf"
    assert [kwargs["outtype"] for kwargs in asked if "outtype" in kwargs] == [name.lower()]
    assert all(job["ready"] for kwargs in asked for job in kwargs.get("jobs", []))


def test_options_reach_the_tensors(tmp_path: Path) -> None:
    result = autoquant.gguf(
        "demo",
        types=["Q4_K_M"],
        output_type="q8_0",
        embedding_type="Q5_0",
        tensor_types=["attn_v=Q6_K", "blk\\.0\\.ffn_down=F16"],
        out=tmp_path / "mixed",
        **QUICK,
    )
    kinds = in_worker("tests.helpers.gguf:tensor_types", tmp_path, path=str(result.path("Q4_K_M")))
    assert kinds["output.weight"] == "Q8_0"
    assert kinds["token_embd.weight"] == "Q5_0"
    assert {kinds[f"blk.{i}.attn_v.weight"] for i in range(4)} == {"Q6_K"}
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.1.ffn_up.weight"] == "Q4_K"
    pure = autoquant.gguf("demo", types=["Q4_K_M"], pure=True, out=tmp_path / "pure", **QUICK)
    kinds = in_worker("tests.helpers.gguf:tensor_types", tmp_path, path=str(pure.path("Q4_K_M")))
    assert {kind for name, kind in kinds.items() if "norm" not in name} == {"Q4_K"}


def test_a_rule_for_tensors_that_are_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=(
            r"tensor_types: 'nosuchtensor' matches none of the model's tensors; some of them:"
            r" .*token_embd.weight"
        ),
    ):
        autoquant.gguf(
            "demo",
            types=["Q4_K_M"],
            tensor_types=["attn_v=Q6_K", "nosuchtensor=Q8_0"],
            out=tmp_path / "out",
            **QUICK,
        )
    assert list(tmp_path.iterdir()) == []


def test_split_files_load_and_are_checked(tmp_path: Path) -> None:
    result = autoquant.gguf(
        "demo",
        types=["Q8_0", "F16"],
        split_size="2M",
        pre_tokenizer="gpt-2",
        evaluate="on",
        eval_chunks=2,
        out=tmp_path / "out",
    )
    for artifact in result.artifacts:
        assert len(artifact.files) > 1
        assert artifact.name.endswith(f"-00001-of-{len(artifact.files):05d}.gguf")
        assert artifact.evaluation is not None
        assert artifact.evaluation.kl_mean < 0.01
        assert all(
            (result.folder / stored.name).stat().st_size < 2_400_000 for stored in artifact.files
        )
    assert sorted(p.name for p in result.folder.glob("*.gguf")) == sorted(
        s.name for a in result.artifacts for s in a.files
    )
    assert "llama-gguf-split --merge" in result.card()
    assert "ollama run" not in result.card(), "which takes one file"


def test_keep_intermediate_and_add_a_type_later_without_converting_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = autoquant.gguf("demo", types=["Q4_K_M"], keep_intermediate=True, out=out, **QUICK)
    assert (out / "tiny-austen-4m-F16.gguf").is_file()
    started: list[str] = []
    real = process.call
    monkeypatch.setattr(
        "autoquant.runtime.process.call",
        lambda target, /, **kwargs: started.append(target) or real(target, **kwargs),
    )
    second = autoquant.gguf(
        "demo", types=["Q4_K_M", "Q5_K_M"], keep_intermediate=True, out=out, **QUICK
    )
    assert not any("convert:convert" in target for target in started)
    assert second.artifacts[0] == first.artifacts[0]
    assert [a.type for a in second.artifacts] == ["Q4_K_M", "Q5_K_M"]


def test_imatrix_is_reusable_and_belongs_to_its_model(
    demo: Result, tmp_path: Path, model: Callable[..., Path]
) -> None:
    again = autoquant.gguf(
        "demo",
        types=["IQ3_XXS"],
        imatrix=str(demo.folder / "imatrix.gguf"),
        out=tmp_path / "again",
        **QUICK,
    )
    assert sha256_of(again.path("IQ3_XXS")) == sha256_of(demo.path("IQ3_XXS"))
    other = in_worker(
        "tests.helpers.models:random_model",
        tmp_path,
        folder=str(tmp_path / "wide"),
        hidden_size=512,
    )
    with pytest.raises(InputError, match="made for another model"):
        autoquant.gguf(
            other,
            types=["IQ3_XXS"],
            imatrix=str(demo.folder / "imatrix.gguf"),
            out=tmp_path / "other",
            **QUICK,
        )
    with pytest.raises(InputError, match="no importance matrix"):
        autoquant.gguf(
            "demo",
            types=["Q4_K_M"],
            imatrix=str(demo.path("Q8_0")),
            out=tmp_path / "notone",
            **QUICK,
        )


def test_imatrix_has_llama_cpps_layout(demo: Result, tmp_path: Path) -> None:
    seen = in_worker(
        "tests.helpers.gguf:imatrix_layout", tmp_path, path=str(demo.folder / "imatrix.gguf")
    )
    assert seen["type"] == "imatrix"
    assert seen["chunks"] == 20
    assert seen["chunk_size"] == 256
    assert seen["datasets"] == ["austen_calibration.txt"]
    assert len(seen["tensors"]) == 2 * 7 * 4
    assert seen["tensors"]["blk.0.ffn_down.weight.in_sum2"] == [768, 1]
    assert seen["counts"]["blk.0.ffn_down.weight.counts"] == [20 * 256]


def test_imatrix_equals_the_activations_transformers_computes(demo: Result, tmp_path: Path) -> None:
    """The sums of squares, recomputed with forward hooks on the source model."""
    error = in_worker(
        "tests.helpers.gguf:imatrix_against_transformers",
        tmp_path,
        imatrix=str(demo.folder / "imatrix.gguf"),
        chunks=20,
    )
    assert error["tensors"] == 28
    assert error["worst"] < 0.01


def test_mixture_of_experts(tmp_path: Path) -> None:
    """Experts get a row of sums each; a quantized mixture loads and runs."""
    folder = in_worker(
        "tests.helpers.models:random_mixture", tmp_path, folder=str(tmp_path / "moe")
    )
    result = autoquant.gguf(
        folder,
        types=["Q4_K_M", "IQ3_XXS"],
        imatrix="builtin",
        imatrix_chunks=3,
        out=tmp_path / "out",
        **QUICK,
    )
    seen = in_worker(
        "tests.helpers.gguf:imatrix_layout", tmp_path, path=str(result.folder / "imatrix.gguf")
    )
    assert seen["tensors"]["blk.0.ffn_down_exps.weight.in_sum2"] == [512, 4]
    assert sum(seen["counts"]["blk.0.ffn_down_exps.weight.counts"]) == 3 * 256 * 2
    assert {a.type for a in result.artifacts} == {"Q4_K_M", "IQ3_XXS"}


def test_fallbacks_are_said(tmp_path: Path) -> None:
    folder = in_worker(
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


def test_a_run_that_will_not_fit_is_refused_before_converting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=5_000_000))
    with pytest.raises(
        InputError, match=r"not enough room on the disk: 0\.011 GB are needed .*0\.005 GB are free"
    ):
        autoquant.gguf("demo", types=["Q4_K_M"], out=tmp_path / "out", **QUICK)
    assert list(tmp_path.iterdir()) == []


def test_sizes_of_llama_8b_are_the_tables(tmp_path: Path) -> None:
    """Nominal bits per weight, by llama.cpp's dry run on a header with Llama-3.1-8B's shapes."""
    from autoquant.backends.llamacpp.types import TYPES

    names = [name for name, row in TYPES.items() if not row.special]
    found = in_worker(
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


def test_chat_template_is_kept(model: Callable[..., Path], tmp_path: Path) -> None:
    folder = model()
    template = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    result = autoquant.gguf(folder, types=["Q4_K_M"], out=tmp_path / "out", **QUICK)
    assert result.source.chat_template
    assert (
        in_worker(
            "tests.helpers.gguf:value",
            tmp_path,
            path=str(result.path("Q4_K_M")),
            key="tokenizer.chat_template",
        )
        == template
    )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("cut", "cut short|does not open"),
        ("flip", "NaN or Inf|repeated|opens"),
        ("kind", "planned was"),
    ],
)
def test_a_damaged_file_fails_its_checks(
    demo: Result, tmp_path: Path, damage: str, said: str
) -> None:
    plans = in_worker(
        "autoquant.backends.llamacpp.quantize:dry_run",
        tmp_path,
        header=str(demo.folder / ".autoquant" / "header.gguf"),
        types=["Q4_K_M", "Q8_0"],
    )
    copy = tmp_path / "copy.gguf"
    data = bytearray(demo.path("Q8_0").read_bytes())
    if damage == "cut":
        data = data[:-5000]
    elif damage == "flip":  # the scale of every block of the last tensors becomes NaN
        data[-34 * 20000 :] = (b"\xff\x7f" + bytes(32)) * 20000
    copy.write_bytes(data)
    plan = plans[0] if damage == "kind" else plans[1]
    with pytest.raises(CheckFailed, match=said):
        in_worker(
            "autoquant.backends.llamacpp.check:verify",
            tmp_path,
            path=str(copy),
            header=str(demo.folder / ".autoquant" / "header.gguf"),
            plan=plan,
            threads=1,
        )


def test_pickle_checkpoint_is_refused_and_works_when_opted_in(
    model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = model()
    in_worker("tests.helpers.models:to_pickle", tmp_path, folder=str(folder))
    with pytest.raises(
        InputError, match=r"only pickle weights.*allow_pickle=True \(--allow-pickle\)"
    ):
        autoquant.gguf(folder, out=tmp_path / "out", **QUICK)
    result = autoquant.gguf(
        folder,
        types=["Q8_0"],
        allow_pickle=True,
        pre_tokenizer="gpt-2",
        evaluate="on",
        eval_chunks=2,
        out=tmp_path / "out",
    )
    assert result.artifacts[0].evaluation is not None
    assert result.artifacts[0].evaluation.kl_mean < 0.01


def test_journal_names_no_secret_and_no_leftover(demo: Result) -> None:
    journal = json.loads((demo.folder / ".autoquant" / "journal.json").read_text())
    assert journal["identity"]["source"] == "tiny-austen-4m"
    assert set(journal["steps"]) >= {
        "convert",
        "imatrix",
        "quantize Q4_K_M",
        "evaluate Q4_K_M",
        "evaluate unquantized",
    }

"""What is in a GGUF file: the types asked for, in a tidy folder, as good as its bits allow, and
that a damaged one is found.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

import autoquant
from autoquant.core.errors import CheckFailed, InputError
from autoquant.result import Result
from autoquant.runtime import process
from tests.gguf.conftest import QUICK
from tests.workers import in_llama_worker


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
        "log-probabilities",
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


def test_types_may_be_one_text(tmp_path: Path) -> None:
    result = autoquant.gguf("demo", types="q2_k, Q3_K_S", out=tmp_path / "out", **QUICK)
    assert [artifact.type for artifact in result.artifacts] == ["Q2_K", "Q3_K_S"]


@pytest.mark.parametrize("name", ["Q8_0", "F16", "BF16"])
def test_a_type_alone_is_as_it_is_among_others(name: str, tmp_path: Path) -> None:
    """The unquantized types too, of which one is what the converter itself writes."""
    alone = autoquant.gguf("demo", types=[name], out=tmp_path / "alone", **QUICK)
    assert [path.name for path in alone.folder.glob("*.gguf")] == [f"tiny-austen-4m-{name}.gguf"]
    others = autoquant.gguf("demo", types=["Q4_K_M", name], out=tmp_path / "others", **QUICK)
    assert alone.artifacts[0].files == others.artifact(name).files


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
    kinds = in_llama_worker(
        "tests.helpers.gguf:tensor_types", tmp_path, path=str(result.path("Q4_K_M"))
    )
    assert kinds["output.weight"] == "Q8_0"
    assert kinds["token_embd.weight"] == "Q5_0"
    assert {kinds[f"blk.{i}.attn_v.weight"] for i in range(4)} == {"Q6_K"}
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.1.ffn_up.weight"] == "Q4_K"
    pure = autoquant.gguf("demo", types=["Q4_K_M"], pure=True, out=tmp_path / "pure", **QUICK)
    kinds = in_llama_worker(
        "tests.helpers.gguf:tensor_types", tmp_path, path=str(pure.path("Q4_K_M"))
    )
    assert {kind for name, kind in kinds.items() if "norm" not in name} == {"Q4_K"}


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


def test_chat_template_is_kept(model: Callable[..., Path], tmp_path: Path) -> None:
    folder = model()
    template = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    result = autoquant.gguf(folder, types=["Q4_K_M"], out=tmp_path / "out", **QUICK)
    assert result.source.chat_template
    assert (
        in_llama_worker(
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
    plans = in_llama_worker(
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
        in_llama_worker(
            "autoquant.backends.llamacpp.check:verify",
            tmp_path,
            path=str(copy),
            header=str(demo.folder / ".autoquant" / "header.gguf"),
            plan=plan,
            threads=1,
        )


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

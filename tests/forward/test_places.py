"""Where models run: on a GPU where there is room, else on the CPU; and there again where the GPU's
memory runs out all the same. The GPU is a stand-in.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant import pipeline
from autoquant.core.bundled import MODEL
from autoquant.core.errors import OutOfMemory
from autoquant.core.journal import RunFolder
from autoquant.evaluate import planning, sources
from autoquant.forward.places import Places
from autoquant.methods import gradients
from autoquant.result import Result
from autoquant.runtime import process
from autoquant.source import fetch, resolve
from tests.workers import in_worker

PLAN = {"part": 2, "ahead": True, "on_gpu": [[16, 9000], [4, 5000], [1, 2000]]}


@pytest.mark.parametrize(
    ("free", "plan", "device", "part"),
    [
        (0, PLAN, "cpu", 2),  # there is none
        (10_000, PLAN, "cuda", 16),
        (9000, PLAN, "cuda", 4),
        (2001, PLAN, "cuda", 1),
        (2000, PLAN, "cpu", 2),
        (1 << 40, {**PLAN, "device": "cpu"}, "cpu", 2),
        # a head alone
        (4_000_000_000, None, "cuda", None),
        (2_000_000_000, None, "cpu", None),
        (1 << 40, {"device": "cpu"}, "cpu", None),
    ],
)
def test_the_gpu_is_taken_where_it_has_room(
    free: int, plan: Any, device: str, part: int | None, tmp_path: Path
) -> None:
    seen = in_worker("tests.helpers.places:chosen", tmp_path, free=free, plan=plan)
    assert seen["device"] == device
    assert seen["how"].get("part") == part
    assert set(seen["how"]) <= {"part", "ahead"}, "Blockwise takes no others"
    short = free == 2000
    assert [one["note"] for one in seen["said"]] == [
        "the GPU has 0.0 GB free, and a block of the model takes 0.0 GB: it runs on the CPU"
    ] * short
    if device == "cuda":
        assert seen["exact"] == ["highest", False], "as exact as the CPU"


@pytest.fixture
def full_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every worker finds a GPU, without memory for a model. Gives what was called."""
    real, called = process.call, list[str]()

    def call(target: str, /, **kwargs: Any) -> Any:
        called.append(target.rpartition(":")[2])
        own = {"log", "progress", "on_part", "env", "children", "python", "fresh"}
        arguments = {name: value for name, value in kwargs.items() if name not in own}
        rest = {name: value for name, value in kwargs.items() if name in own}
        if not target.startswith(("autoquant.evaluate", "autoquant.fisher")):
            return real(target, **kwargs)
        helper = "tests.helpers.places:on_a_full_gpu"
        return real(helper, target=target, arguments=arguments, **rest)

    monkeypatch.setattr("autoquant.runtime.process.call", call)
    return called


def fallen(caplog: pytest.LogCaptureFixture) -> int:
    """How often it was said that the CPU takes over."""
    said = "out of memory on the GPU (1099.5 GB): the CPU does it instead, from the beginning"
    return sum(said in one for one in caplog.messages)


Work = Callable[[Path, Result], Any]


def measured(files: Callable[[Result], list[Path]]) -> Work:
    def work(out: Path, demo: Result) -> Any:
        rows = pipeline.evaluate_files(files(demo), "demo", chunks=2)
        return [(row.perplexity, row.kl_mean) for _, row in rows]

    return work


def made(out: Path, demo: Result) -> Any:
    """With an importance matrix by transformers, and measured."""
    run = autoquant.gguf(
        "demo", types=["Q2_K"], imatrix="builtin", imatrix_chunks=2, eval_chunks=2, out=out
    )
    return [
        (one.files[0].sha256, one.evaluation.kl_mean) for one in run.artifacts if one.evaluation
    ]


def sensitive(out: Path, demo: Result) -> Any:
    """Of one matrix: what methods call for all."""
    snapshot = fetch(resolve("demo"))
    out.mkdir()
    with RunFolder(out, method="gptq", source_id="demo", source_sha256=snapshot.sha256) as run:
        return sources.in_worker(
            snapshot,
            run,
            "autoquant.fisher.rounding:collect",
            log=run.logs,
            source=sources.told(snapshot),
            chunks=[list(range(40, 60))] * 2,
            tensors=["model.layers.0.mlp.up_proj.weight"],
            kinds=[(4, 128)],
            sym=True,
            damp=0.01,
            threads=1,
            plan=gradients.how(snapshot.source, 2, ""),
        )


@pytest.mark.parametrize(
    ("work", "small", "times", "once_more"),
    [
        (measured(lambda _: [MODEL]), None, 1, {"reference": 2, "by_blocks": 1}),
        (measured(lambda demo: [demo.path("Q8_0")]), 0, 1, {"reference": 2, "by_blocks": 1}),
        # the matrix, what is measured, and whether llama.cpp agrees
        (made, 0, 3, {"collect": 2, "reference": 2, "by_blocks": 1, "by_llama_cpp": 2}),
        (sensitive, None, 1, {"collect": 2}),
    ],
    ids=["folder", "weights", "imatrix", "sensitivities"],
)
def test_where_a_gpus_memory_runs_out_the_cpu_takes_over(
    work: Work,
    small: int | None,
    times: int,
    once_more: dict[str, int],
    demo: Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    """Whatever runs a model: it is said once for a run's measuring, and the result is the CPU's."""
    if small is not None:
        monkeypatch.setattr(planning, "SMALL", small)
    monkeypatch.setenv("AUTOQUANT_CACHE", str(tmp_path / "cache"))
    wanted = work(tmp_path / "cpu", demo)
    monkeypatch.setenv("AUTOQUANT_CACHE", str(tmp_path / "another"))
    called = request.getfixturevalue("full_gpu")
    assert work(tmp_path / "gpu", demo) == wanted
    assert fallen(caplog) == times
    assert {name: called.count(name) for name in once_more} == once_more


def test_after_the_reference_fell_back_a_file_finds_the_gpu_full_too(
    demo: Result, full_gpu: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The reference is known from before: the first to run out is the file."""
    paths = [demo.path("Q8_0")]
    pipeline.evaluate_files(paths, "demo", chunks=3)
    full_gpu.clear()
    caplog.clear()
    pipeline.evaluate_files(paths, "demo", chunks=3)
    assert full_gpu == ["by_llama_cpp", "by_llama_cpp"]
    assert fallen(caplog) == 1


def test_the_cpus_own_memory_is_not_taken_for_the_gpus() -> None:
    """What has run out there runs out there again."""
    plans: list[Any] = []

    def work(plan: Any) -> None:
        plans.append(plan)
        raise OutOfMemory("out of memory")

    with pytest.raises(OutOfMemory):
        Places().run(work, {"part": 1})
    assert plans == [{"part": 1}]

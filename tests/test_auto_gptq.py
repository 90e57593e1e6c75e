"""The AutoGPTQ backend: refused without CUDA before anything is installed; its real quantize path,
in its own environment, on a CPU by a stand-in.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant.backends import auto_gptq
from autoquant.core.bundled import MODEL as DEMO_FOLDER
from autoquant.core.cache import cache_folder
from autoquant.core.errors import InputError
from autoquant.formats import checkpoint
from autoquant.runtime import environments


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments of other tests lie elsewhere."""
    monkeypatch.setenv("AUTOQUANT_CACHE", str(tmp_path / "cache"))


def test_without_cuda_it_is_refused_and_nothing_is_installed(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=(
            r"backend: auto-gptq quantizes on an NVIDIA GPU only, and torch finds none here;"
            r" nothing was installed. Leave out backend"
        ),
    ):
        autoquant.gptq("demo", backend="auto-gptq", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (cache_folder() / "environments").exists()


def test_models_and_pythons_it_cannot_use_are_named(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        InputError,
        match="AutoGPTQ does not know the architecture 'arcee'; it knows: gemma, .*llama",
    ):
        autoquant.gptq(
            model("other", model_type="arcee", architectures=["ArceeForCausalLM"]),
            backend="auto-gptq",
            out=tmp_path / "out",
        )
    monkeypatch.setattr(environments, "PYTHON", (3, 1))
    monkeypatch.setattr(environments, "_uv", lambda: None)
    with pytest.raises(
        InputError,
        match=r"auto-gptq needs an environment with Python 3.1, and this is 3\.\d+: install uv",
    ):
        environments.refuse("auto-gptq")


def test_the_config_as_transformers_4_reads_it() -> None:
    """Release 4 knows nothing of rope_parameters and takes 10000 without a word; and AutoGPTQ
    trusts a model's code unasked.
    """
    new = {
        "model_type": "llama",
        "dtype": "bfloat16",
        "auto_map": {"AutoConfig": "evil.py"},
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
        },
    }
    old = checkpoint.legacy_config(new)
    assert old == {
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "rope_theta": 500000.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0},
    }
    assert checkpoint.legacy_config(
        {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}
    ) == {"rope_theta": 7.0, "rope_scaling": None}
    with pytest.raises(InputError, match="differ from layer to layer"):
        checkpoint.legacy_config({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}})


@pytest.mark.slow
@pytest.mark.timeout(1500)  # pip installs an environment
def test_its_real_quantize_path_and_a_folder_that_todays_transformers_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "CUDA_WORKER", "tests.fakes.auto_gptq_cpu:cuda")
    monkeypatch.setattr(environments, "AUTO_GPTQ_WORKER", "tests.fakes.auto_gptq_cpu:work")
    values: dict[str, Any] = {
        "backend": "auto-gptq",
        "group_size": 64,
        "sym": False,
        "calibration_samples": 8,
        "calibration_length": 128,
        "eval_chunks": 8,
    }
    result = autoquant.gptq("demo", **values, out=tmp_path / "out")
    artifact = result.artifacts[0]
    assert artifact.evaluation is not None
    assert artifact.evaluation.kl_mean < 0.02
    assert {stored.name for stored in artifact.files} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "quantize_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = json.loads((result.folder / "config.json").read_text())
    block = config["quantization_config"]
    assert (block["quant_method"], block["checkpoint_format"], block["bits"], block["sym"]) == (
        "gptq",
        "gptq",
        4,
        False,
    )
    assert not set(block) & set(auto_gptq.FOREIGN)
    assert (
        config["rope_parameters"]
        == json.loads((DEMO_FOLDER / "config.json").read_text())["rope_parameters"]
    ), "the source's own config, not release 4's"
    assert (
        str(tmp_path)
        not in (result.folder / "config.json").read_text()
        + (result.folder / "quantize_config.json").read_text()
        + result.card()
    )
    assert "| algorithm | GPTQ (AutoGPTQ 0.7.1) |" in result.card()
    assert (
        "- 4bit-64g-asym: GPTQModel's own loader rejects files with zero points unless it wrote"
        " them" in result.card()
    )
    assert "GPTQModel.load" not in result.card()

    (home,) = (path for path in (cache_folder() / "environments").iterdir() if path.is_dir())
    interpreter = environments.python("auto-gptq", tmp_path / "log")
    assert Path(interpreter).parent.parent == home, "made once"
    assert not (tmp_path / "log").exists()
    seen = subprocess.run(
        [
            interpreter,
            "-c",
            (
                "import transformers, numpy, autoquant.backends.auto_gptq as a;"
                " print(transformers.__version__, numpy.__version__, a.__file__)"
            ),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert seen[:2] == ["4.49.0", "1.26.4"]
    assert Path(seen[2]).resolve() == Path(auto_gptq.__file__).resolve(), (
        "this package, from wherever it is started"
    )
    # as after a kill while it was being made: a half-made environment is not used
    (home / "ready").unlink()
    monkeypatch.setattr(environments, "PINS", {"auto-gptq": {"auto-gptq": "0.0.0"}})
    with pytest.raises(
        autoquant.ProcessFailed,
        match=r"the environment for auto-gptq could not be made: .*auto-gptq==0.0.0",
    ):
        environments.python("auto-gptq", tmp_path / "log")

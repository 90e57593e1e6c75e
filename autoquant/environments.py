"""Python environments of their own, for libraries that cannot live beside the others. Made on first use under the cache folder, by uv if it is there."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import shutil
import sys
from pathlib import Path

from autoquant import process
from autoquant.cache import cache_folder
from autoquant.errors import InputError, ProcessFailed
from autoquant.journal import key_of
from autoquant.progress import hidden

log = logging.getLogger(__name__)
PYTHON = (3, 11)  # auto-gptq 0.7.1 has wheels for 3.8 to 3.11; numpy 1.26 has them up to 3.12
AUTO_GPTQ_WORKER = "autoquant.auto_gptq:work"
PINS: dict[str, dict[str, str]] = {
    # The set that imports and quantizes together. datasets 3 and pyarrow 20 are the last that take numpy 1.26; torch is added as the one that is installed here.
    "auto-gptq": {"auto-gptq": "0.7.1", "transformers": "4.49.0", "accelerate": "0.34.2", "peft": "0.12.0", "numpy": "1.26.4", "datasets": "3.5.0", "pyarrow": "20.0.0",
                  "pandas": "2.3.3", "huggingface_hub": "0.36.2", "tokenizers": "0.21.4", "fsspec": "2024.12.0"},
}


def cuda() -> bool:
    """Whether torch finds an NVIDIA GPU. Runs in a worker."""
    import torch

    return bool(torch.cuda.is_available())


def _uv() -> str | None:
    return shutil.which("uv")


def refuse(name: str) -> None:
    """Refuse an environment that cannot be made here. Nothing is installed."""
    if _uv() is None and sys.version_info[:2] != PYTHON and not (_folder(name) / "ready").is_file():
        wanted = ".".join(map(str, PYTHON))
        raise InputError(f"{name} needs an environment with Python {wanted}, and this is {sys.version_info[0]}.{sys.version_info[1]}: install uv, which fetches one "
                         f"(pip install uv), or start AutoQuant with Python {wanted}")


def _requirements(name: str) -> list[str]:
    torch = importlib.metadata.version("torch").split("+")[0]
    return [*(f"{package}=={version}" for package, version in PINS[name].items()), f"torch=={torch}"]


def _folder(name: str) -> Path:
    return cache_folder() / "environments" / f"{name}-{key_of(_requirements(name), list(PYTHON))[:12]}"


def python(name: str, logs: Path) -> str:
    """The interpreter of an environment, which is made if it is not there: some minutes, and with CUDA's libraries some GB.

    What pip says goes to ``logs``. Written are only files below the cache folder (``environments/``), which may be deleted at any time.
    Raises ProcessFailed with pip's last lines.
    """
    from filelock import FileLock
    from tqdm.auto import tqdm

    refuse(name)
    folder = _folder(name)
    interpreter = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "ready").is_file():
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed while making it
            log.warning("making an environment for %s in %s; this is done once and takes some minutes", name, folder)
            uv, wanted = _uv(), ".".join(map(str, PYTHON))
            steps = ([[uv, "venv", "--python", wanted, str(folder)], [uv, "pip", "install", "--python", str(interpreter), *_requirements(name)]] if uv else
                     [[sys.executable, "-m", "venv", str(folder)], [str(interpreter), "-m", "pip", "install", "--disable-pip-version-check", *_requirements(name)]])
            try:
                for argv in tqdm(steps, desc=f"environment for {name}", disable=hidden(), leave=False):
                    process.run(argv, log=logs, env={"BUILD_CUDA_EXT": "0"})  # AutoGPTQ's kernels only run models; quantizing is torch
            except ProcessFailed as failure:
                raise ProcessFailed(f"the environment for {name} could not be made: {failure}") from None
            (folder / "ready").write_text(json.dumps(_requirements(name)), encoding="utf-8")
        site = Path(_site(interpreter))
        link = site / "autoquant"  # this package, and nothing else of the environment it is in
        here = Path(__file__).resolve().parent
        if link.resolve() != here:
            link.unlink(missing_ok=True)
            link.symlink_to(here, target_is_directory=True)
    return str(interpreter)


def _site(interpreter: Path) -> str:
    """The folder of an environment's packages."""
    import subprocess

    return subprocess.run([str(interpreter), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True, text=True).stdout.strip()

"""Python environments of their own, for libraries that cannot live beside the others. Made on first
use under the cache folder.

Two kinds: a separate one with everything pinned (AutoGPTQ; by uv if it is there), and an overlay,
which sees the packages of this environment and adds to them what an extra of this package needs
(GPTQModel wants a newer numpy, protobuf and pyarrow than Colab ships: so they are changed for its
processes and for nobody else).
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import logging
import os
import shutil
import sys
import sysconfig
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from autoquant.core.cache import cache_folder
from autoquant.core.errors import InputError, ProcessFailed
from autoquant.core.files import key_of
from autoquant.core.progress import Bar
from autoquant.runtime import process

if TYPE_CHECKING:
    from packaging.requirements import Requirement

log = logging.getLogger(__name__)
PACKAGE = "autoquant-notebooks"
_reading = threading.Lock()
PYTHON = (3, 11)  # auto-gptq 0.7.1 has wheels for 3.8 to 3.11; numpy 1.26 has them up to 3.12
AUTO_GPTQ_WORKER = "autoquant.backends.auto_gptq:quantize"
CUDA_WORKER = "autoquant.runtime.environments:cuda"
PINS: dict[str, dict[str, str]] = {
    # The set that imports and quantizes together. datasets 3 and pyarrow 20 are the last that take
    # numpy 1.26; torch is added as the one that is installed here.
    "auto-gptq": {
        "auto-gptq": "0.7.1",
        "transformers": "4.49.0",
        "accelerate": "0.34.2",
        "peft": "0.12.0",
        "numpy": "1.26.4",
        "datasets": "3.5.0",
        "pyarrow": "20.0.0",
        "pandas": "2.3.3",
        "huggingface_hub": "0.36.2",
        "tokenizers": "0.21.4",
        "fsspec": "2024.12.0",
    },
}
# an overlay takes these from the environment below it, or cannot be made
SHARED = ("torch", "transformers", "tokenizers", "huggingface_hub", "safetensors")


def cuda() -> bool:
    """Whether torch finds an NVIDIA GPU. Runs in a worker."""
    import torch

    return bool(torch.cuda.is_available())


@functools.cache
def _wanted() -> list[Requirement]:
    """What this package's metadata ask for. Read once, and called under `_reading` only: packaging
    parses with `ast`, and Python before 3.11.8 may fail where two threads do that at a time
    (github.com/python/cpython/issues/106905).
    """
    from packaging.requirements import Requirement

    return [Requirement(text) for text in importlib.metadata.requires(PACKAGE) or ()]


def extra(name: str) -> dict[str, str]:
    """The packages of one of this package's extras, with what is asked of their versions
    ("==7.6.0").
    """
    with _reading:
        wanted = _wanted()
    return {
        one.name: str(one.specifier)
        for one in wanted
        if one.marker is not None and one.marker.evaluate({"extra": name})
    }


def extras() -> list[str]:
    """The names of this package's extras, whose packages may live in an overlay."""
    return importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra") or []


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _suits(package: str, wanted: str) -> bool:
    """Whether a package is installed in this environment in a version that is wanted."""
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(wanted).contains(_version(package) or "0", prereleases=True)


def here(name: str) -> bool:
    """Whether everything an extra needs is installed in this environment, in the versions it needs,
    so that no overlay is wanted.
    """
    return all(_suits(package, wanted) for package, wanted in extra(name).items())


def beside(name: str, logs: Path) -> str:
    """The interpreter that has an extra: of its own environment, or "" for this one."""
    return "" if here(name) else python(name, logs)


def there(name: str, logs: Path) -> str:
    """The same, but no environment is made for it: where there is none, this one."""
    return beside(name, logs) if (_folder(name) / "ready").is_file() else ""


def repository() -> str:
    """Where this package's source is, from its own metadata."""
    named = (
        one.partition(", ")
        for one in importlib.metadata.metadata(PACKAGE).get_all("Project-URL") or ()
    )
    return next((url for label, _, url in named if label == "Repository"), "")


def version(package: str) -> str:
    """The version of a package: of one in an overlay, the one that is there or will be (those that
    matter are pinned exactly). Empty if it is nowhere.
    """
    for name in extras():
        wanted = extra(name).get(package)
        # what suits here is taken from here
        if wanted is not None and not here(name) and not _suits(package, wanted):
            versions = [
                distribution.version
                for distribution in importlib.metadata.distributions(
                    name=package, path=[str(_site(name))]
                )
            ]
            return versions[0] if versions else wanted.removeprefix("==")
    return _version(package)


def _uv() -> str | None:
    return shutil.which("uv")


def refuse(name: str) -> None:
    """Refuse an environment that cannot be made here. Nothing is installed."""
    if name not in PINS and importlib.util.find_spec("pip") is None:
        raise InputError(
            f"{name} needs an environment of its own here, which pip makes, and this Python has"
            " none: `python -m ensurepip`, or `uv pip install pip`"
        )
    if (
        name in PINS
        and _uv() is None
        and sys.version_info[:2] != PYTHON
        and not (_folder(name) / "ready").is_file()
    ):
        wanted = ".".join(map(str, PYTHON))
        raise InputError(
            f"{name} needs an environment with Python {wanted}, and this is"
            f" {sys.version_info[0]}.{sys.version_info[1]}: install uv, which fetches one (pip"
            f" install uv), or start AutoQuant with Python {wanted}"
        )


def _requirements(name: str) -> list[str]:
    if name not in PINS:
        return [f"{package}{wanted}" for package, wanted in extra(name).items()]
    torch = importlib.metadata.version("torch").split("+")[0]
    return [
        *(f"{package}=={version}" for package, version in PINS[name].items()),
        f"torch=={torch}",
    ]


def _python_version(name: str) -> tuple[int, int]:
    return PYTHON if name in PINS else sys.version_info[:2]


def _shared(name: str) -> list[str]:
    return [] if name in PINS else [f"{package}=={_version(package)}" for package in SHARED]


def _folder(name: str) -> Path:
    key = key_of(
        _requirements(name),
        list(_python_version(name)),
        *([_shared(name), sys.prefix] if name not in PINS else []),
    )
    return cache_folder() / "environments" / f"{name}-{key[:12]}"


def _site(name: str) -> Path:
    """The folder of an environment's packages."""
    folder, python = str(_folder(name)), ".".join(map(str, _python_version(name)))
    return Path(
        sysconfig.get_path(
            "purelib",
            "venv",
            vars={
                "base": folder,
                "platbase": folder,
                "installed_base": folder,
                "py_version_short": python,
            },
        )
    )


def python(name: str, logs: Path) -> str:
    """The interpreter of an environment, which is made if it is not there: some minutes, and
    AutoGPTQ's with CUDA's libraries some GB.

    What pip says goes to ``logs``. Written are only files below the cache folder
    (``environments/``), which may be deleted at any time. Raises ProcessFailed with pip's last
    lines.
    """
    from filelock import FileLock

    refuse(name)
    folder = _folder(name)
    interpreter = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "ready").is_file():
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed while making it
            log.warning(
                "making an environment for %s in %s; this is done once and takes some minutes",
                name,
                folder,
            )
            create, install = _commands(name, folder, interpreter)
            try:
                with Bar(f"environment for {name}") as progress:
                    process.run(create, log=logs)
                    if name not in PINS:
                        _see_below(name)
                    progress(1, 10)
                    # AutoGPTQ's kernels only run models; quantizing is torch
                    process.run(install, log=logs, env={"BUILD_CUDA_EXT": "0"})
            except ProcessFailed as failure:
                raise ProcessFailed(
                    f"the environment for {name} could not be made: {failure}"
                ) from None
            (folder / "ready").write_text(json.dumps(_requirements(name)), encoding="utf-8")
        # this package; a separate environment sees nothing else of the environment it is in
        link = _site(name) / "autoquant"
        package = Path(__file__).resolve().parent.parent
        if link.resolve() != package:
            link.unlink(missing_ok=True)
            link.symlink_to(package, target_is_directory=True)
    return str(interpreter)


def _see_below(name: str) -> None:
    """Let an overlay see the packages of this environment, those of Debian's dist-packages and of
    .pth files too; its own go before them.
    """
    # in the order in which this interpreter looks
    known = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    below = dict.fromkeys([*known, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    # but not where pip builds a package, in an environment of its own: what lies here, such as an
    # older setuptools, would go before what the package asks for
    building = "'pip-build-env-' in os.environ.get('PYTHONPATH', '')"
    lines = [
        f"import os, site; {building} or site.addsitedir({path!r})\n"
        for path in below
        if Path(path).is_dir()
    ]
    (_site(name) / "below.pth").write_text("".join(lines), encoding="utf-8")


def _commands(name: str, folder: Path, interpreter: Path) -> tuple[list[str], list[str]]:
    """What makes an environment, and what installs into it."""
    # this environment's pip, which sees what is below: Debian's Python has no ensurepip
    if name not in PINS:
        kept = folder.with_suffix(".constraints")
        kept.write_text("\n".join(_shared(name)) + "\n", encoding="utf-8")
        return (
            [sys.executable, "-m", "venv", "--without-pip", str(folder)],
            [
                sys.executable,
                "-m",
                "pip",
                "--python",
                str(interpreter),
                "install",
                "--disable-pip-version-check",
                "--constraint",
                str(kept),
                *_requirements(name),
            ],
        )
    uv, wanted = _uv(), ".".join(map(str, PYTHON))
    if uv:
        return [uv, "venv", "--python", wanted, str(folder)], [
            uv,
            "pip",
            "install",
            "--python",
            str(interpreter),
            *_requirements(name),
        ]
    return (
        [sys.executable, "-m", "venv", str(folder)],
        [
            str(interpreter),
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            *_requirements(name),
        ],
    )

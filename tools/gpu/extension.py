"""Compiled extensions: kernels of exllamav2, exllamav3 and GPTQModel, compiled while stages run.

exllamav2's is taken from among the wheels if it lies there. The others are started early only to
save time: GPTQModel compiles what it needs by itself, and waits for one that is being compiled.
"""

from __future__ import annotations

import gzip
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gpu.children import end, tail

NAME = "exllamav2_ext.so"
EXLLAMA3 = "import exllamav3.ext; print(exllamav3.ext.exllamav3_ext.__file__)"
EXLLAMA = "import exllamav2.ext; print(exllamav2.ext.exllamav2_ext.__file__)"
GPTQMODEL = "from gptqmodel import extension; print(extension.load({!r}))"
CODE = {
    "exl2": {"exllamav2": EXLLAMA},
    "exl3": {"exllamav3": EXLLAMA3},
    "gptq": {
        name: GPTQMODEL.format(name)
        for name in ("marlin_fp16", "exllamav2", "exllamav2_awq", "awq")
    },
}  # by stage
HEADER = "cublas_v2.h"  # torch's own headers include it; not every toolkit has it


def variables(work: Path, facts: dict[str, Any]) -> dict[str, str]:
    """What compiling, and all that is to find what was compiled, needs in the environment."""
    more = {}
    if facts["headers"]:
        more = {
            "CPLUS_INCLUDE_PATH": os.pathsep.join(facts["headers"]),
            "LIBRARY_PATH": os.pathsep.join(
                str(Path(one).parent / "lib") for one in facts["headers"]
            ),
        }
    return {
        "TORCH_EXTENSIONS_DIR": str(work / "torch_extensions"),
        "EXLLAMA_NO_SDPA": "1",
        "GPTQMODEL_TORCH_EXTENSIONS_DIR": str(work / "gptqmodel_extensions"),
        "TORCH_CUDA_ARCH_LIST": facts["capability"],
        **more,
    }


def headers(home: str) -> list[str]:
    """Folders of NVIDIA's packages with headers that the CUDA toolkit at ``home`` has not."""
    if not home or (Path(home) / "include" / HEADER).is_file():
        return []
    found = importlib.util.find_spec("nvidia")
    places = [Path(one) for one in (found.submodule_search_locations or ())] if found else []
    return sorted(
        {str(path.parent) for place in places for path in place.glob(f"*/include/{HEADER}")}
    )


def place(work: Path) -> Path:
    """Where torch puts exllamav2's."""
    return work / "torch_extensions" / "exllamav2_ext" / NAME


class Build:
    """One compilation, in a process of its own. ``seconds`` is what it took, once it has ended."""

    def __init__(self, name: str, code: str, work: Path, env: dict[str, str], jobs: int) -> None:
        self.log = work / f"compiling-{name}.log"
        self.begin = time.monotonic()
        self.seconds = 0.0
        with open(self.log, "wb") as sink:
            self.child: subprocess.Popen[Any] = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env={**os.environ, **env, "MAX_JOBS": str(jobs)},
                start_new_session=True,
            )

    def wait(self, limit: float) -> str:
        """Wait for its end; why it failed, or nothing."""
        try:
            status = self.child.wait(max(1.0, limit))
        except subprocess.TimeoutExpired:
            return f"not compiled after {time.monotonic() - self.begin:.0f} s: {tail(self.log)}"
        self.seconds = self.seconds or time.monotonic() - self.begin
        return "" if status == 0 else f"not compiled (status {status}): {tail(self.log)}"

    def close(self) -> None:
        """End it, if it still runs."""
        if self.child.poll() is None:
            end(self.child)


def start(stages: Collection[str], work: Path, env: dict[str, str]) -> dict[str, dict[str, Build]]:
    """Start to compile what stages need: stage -> name -> compilation."""
    wanted = [(stage, name) for stage in CODE if stage in stages for name in CODE[stage]]
    jobs = max(2, ((os.cpu_count() or 2) - 2) // min(2, max(1, len(wanted))))
    made: dict[str, dict[str, Build]] = {}
    for stage, name in wanted:
        build = Build(f"{stage}-{name}", CODE[stage][name], work, env, jobs)
        made.setdefault(stage, {})[name] = build
    return made


def bring_back(work: Path, out: Path, most: int = 15 << 20) -> None:
    """Pack exllamav2's into the output, without its symbols, if it is small enough to be kept."""
    built = place(work)
    if not built.is_file():
        return
    plain, packed = work / NAME, out / f"{NAME}.gz"
    shutil.copyfile(built, plain)
    if shutil.which("strip"):
        subprocess.run(["strip", "--strip-unneeded", str(plain)], check=False)
    with open(plain, "rb") as source, gzip.open(packed, "wb", compresslevel=6) as target:
        shutil.copyfileobj(source, target)
    if packed.stat().st_size > most:
        packed.unlink()


def unpack(folder: Path, site: Path) -> None:
    """Put one that :func:`bring_back` has packed where Python finds it."""
    for packed in folder.rglob(f"{NAME}.gz"):
        with gzip.open(packed, "rb") as source, open(site / NAME, "wb") as target:
            shutil.copyfileobj(source, target)

"""What EXL3 needs of a machine: a GPU that exllamav3 knows, and a torch and CUDA that are new
enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from autoquant.backends import exllama

# of exllamav3 1.6.5: its metadata ask for this torch, its README for this CUDA; the oldest cards
# its kernels have a path for are Turing's (exllamav3_ext/arch.cuh)
TORCH, CUDA, CAPABILITY = (2, 6), (12, 4), (7, 5)
RELEASES = "https://github.com/turboderp-org/exllamav3/releases"


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


class Environment(exllama.Environment):
    """Of exllamav3."""

    library: ClassVar[str] = "exllamav3"
    method: ClassVar[str] = "exl3"
    room: ClassVar[int] = 4 << 30
    variables: ClassVar[Mapping[str, str]] = {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }

    def lacks(self, machine: Mapping[str, Any]) -> str:
        """A card, a CUDA or a torch that is too old."""
        if not machine["hip"]:
            if tuple(machine["capability"]) < CAPABILITY:
                wanted, seen = (
                    ".".join(map(str, one)) for one in (CAPABILITY, machine["capability"])
                )
                return (
                    f"exl3: exllamav3's kernels need an NVIDIA GPU of compute capability {wanted}"
                    f" (Turing: T4, RTX 20) or newer, and {machine['name']} has {seen}. Take gguf"
                    " or gptq"
                )
            if machine["cuda"] and _release(machine["cuda"]) < CUDA:
                return (
                    f"exl3: exllamav3 needs CUDA {'.'.join(map(str, CUDA))} or newer, and torch"
                    f" {machine['torch']} here is built for {machine['cuda']}: install a torch of a"
                    " newer CUDA (pytorch.org)"
                )
        if _release(machine["torch"]) < TORCH:
            return (
                f"exl3: exllamav3 needs torch {'.'.join(map(str, TORCH))} or newer, and this"
                f" machine has {machine['torch']}: pip install -U torch"
            )
        return ""

    def otherwise(self, machine: Mapping[str, Any]) -> str:
        """The releases have wheels for some."""
        return (
            f", or a wheel of exllamav3 for torch {machine['torch']} and CUDA"
            f" {machine['cuda'] or '(none)'} from {RELEASES}, if there is one"
        )

    def compiling(self, machine: Mapping[str, Any]) -> str:
        """Minutes."""
        return (
            f"exllamav3 compiles its CUDA extension first, once: minutes ({RELEASES} has prebuilt"
            " wheels for some releases of torch and CUDA)"
        )


EXLLAMAV3 = Environment()

"""Devices that models run on, and how much of their memory a model can have.

The table is ``devices.json``, one line a device: ``name``, other names (``aliases``), ``kind``,
memory as it is sold (``gib``), for NVIDIA's cards their compute capability and whether their
memory gives up a sixteenth to error correction (``ecc``), and the page of the maker (``source``).
How much of that can be used follows from the kind (:data:`KINDS`).
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autoquant.backends.llamacpp.types import nearest
from autoquant.core.errors import InputError
from autoquant.core.machine import memory_available, nvidia_gpu

Kind = Literal["gpu", "unified", "laptop", "small", "phone", "free"]
TABLE = Path(__file__).with_name("devices.json")
GIB = 1 << 30
# of a card with GDDR memory and ECC: CUDA C++ Best Practices Guide, 10.2 (effective bandwidth),
# https://docs.nvidia.com/cuda/cuda-c-best-practices-guide/
ECC = 1 / 16
# Metal's recommendedMaxWorkingSetSize, as llama.cpp logs it: 11453 MB of 16 GB, 22907 MB of 32 GB,
# 28991 MB of 36 GB, 51540 MB of 64 GB; macOS 26 gives somewhat more
WIRED, WIRED_FROM_36 = 2 / 3, 3 / 4


@dataclass(frozen=True)
class Usable:
    """How much of a kind of device's memory a model can have: a sentence, and where it is from;
    ``runs`` is what loads a model there.
    """

    said: str
    source: str
    runs: tuple[str, ...]


KINDS: dict[Kind, Usable] = {
    "gpu": Usable(
        "all but 1 GiB, the margin that llama.cpp's --fit leaves: CUDA's context, the desktop",
        "https://github.com/ggml-org/llama.cpp/blob/master/common/common.h",
        ("llama.cpp", "Ollama", "transformers"),
    ),
    "unified": Usable(
        "what macOS lets the GPU have by default: two thirds, from 36 GB on three quarters",
        "https://developer.apple.com/documentation/metal/mtldevice/recommendedmaxworkingsetsize",
        ("llama.cpp", "Ollama", "LM Studio"),
    ),
    "laptop": Usable(
        "all but 4 GiB, which Windows 11 asks for itself",
        "https://www.microsoft.com/windows/windows-11-specifications",
        ("llama.cpp", "Ollama", "LM Studio"),
    ),
    "small": Usable(
        "all but 1 GiB for the system, an assumption",
        "https://www.raspberrypi.com/documentation/computers/os.html",
        ("llama.cpp", "Ollama"),
    ),
    "phone": Usable(
        "half, an assumption: the system ends apps that take much more",
        "https://source.android.com/docs/core/perf/lmkd",
        ("llama.cpp",),
    ),
    "free": Usable(
        "all of it: the memory that is named is free for the model",
        "",
        ("llama.cpp", "Ollama"),
    ),
}
# from this compute capability on: https://docs.vllm.ai/en/latest/features/quantization/
VLLM, EXLLAMA = 7.0, 6.0
AMOUNT = r"(\d+(?:\.\d+)?)(?:gb|gib|g)"
# parts of names that people leave out, or say in another way
DROPPED = re.compile(r"nvidia|geforce|quadro|tesla|rtx|gtx|gpu|apple|sxm\d?|pcie|[\s_,()-]+")
MAC = re.compile(r"mac(?:book)?(?:pro|air|mini|studio)?|imac")
LAPTOP = re.compile(r"laptop|notebook|pc|desktop|computer|ram")


@dataclass(frozen=True)
class Device:
    """A device. ``memory`` and ``usable`` are bytes: all there is, and what a model can have;
    ``why`` says how the second follows from the first. ``beside`` are bytes of the machine's own
    memory that layers can go to which a card has no room for, 0 if that is not known.
    ``capability`` is CUDA's, of NVIDIA's cards.
    """

    name: str
    kind: Kind
    memory: int
    usable: int
    why: str
    runs: tuple[str, ...]
    source: str = ""
    capability: float = 0.0
    beside: int = 0
    aliases: tuple[str, ...] = ()

    @property
    def cuda(self) -> bool:
        """Whether it is a card that CUDA runs on."""
        return self.capability > 0


def _make(name: str, kind: Kind, memory: int, **more: Any) -> Device:
    """A device of a kind, of which ``memory`` bytes can be addressed."""
    capability = float(more.get("capability", 0.0))
    also = ("vLLM",) * (capability >= VLLM) + ("exllamav2",) * (capability >= EXLLAMA)
    return Device(
        name,
        kind,
        memory,
        usable=max(0, _usable(kind, memory)),
        why=more.pop("why", KINDS[kind].said),
        runs=KINDS[kind].runs + also,
        **more,
    )


def _usable(kind: Kind, memory: int) -> int:
    """Bytes that a model can have."""
    if kind == "unified":
        return int(memory * (WIRED_FROM_36 if memory >= 36 * GIB else WIRED))
    kept = {"gpu": GIB, "laptop": 4 * GIB, "small": GIB, "phone": memory // 2, "free": 0}
    return memory - kept[kind]


@functools.cache
def table() -> tuple[Device, ...]:
    """All devices that have a name."""
    return tuple(
        _make(
            row["name"],
            row["kind"],
            int(row["gib"] * GIB * (1 - ECC if row.get("ecc") else 1)),
            capability=row.get("capability", 0.0),
            aliases=tuple(row["aliases"]),
            source=row["source"],
        )
        for row in json.loads(TABLE.read_text(encoding="utf-8"))
    )


def device(name: str) -> Device:
    """A device by its name, written in any way: "RTX 4090", "rtx4090", "4090"; "MacBook 16GB"; "8GB
    laptop" for a computer without a GPU; "24GB" for so much memory (10⁹ bytes each; "24 GiB": 2³⁰)
    that is free for the model alone. Raises InputError for one that is not known, with the nearest.
    """
    key = _key(name)
    known = {_key(one): device for device in table() for one in (device.name, *device.aliases)}
    if (same := key.replace("gib", "gb")) in known:
        return known[same]
    if match := re.fullmatch(AMOUNT, key):
        unit = GIB if key.endswith("gib") else 10**9
        return _sized(name, _make(name.strip(), "free", int(float(match[1]) * unit)))
    for words, kind, called in (
        (MAC, "unified", "MacBook {}GB"),
        (LAPTOP, "laptop", "{}GB laptop"),
    ):
        if words.search(key) and (match := re.fullmatch(AMOUNT, words.sub("", key))):
            amount = float(match[1])
            made = _make(called.format(match[1]), kind, int(amount * GIB))  # type: ignore[arg-type]
            return _sized(name, made)
    names = {_key(one.name): one.name for one in table()}
    close = [names[one] for one in nearest(key, tuple(names))]
    raise InputError(
        f"fits: {name!r} is no device that is known; nearest: {', '.join(close)}. `autoquant"
        " devices` lists all; or give an amount: 16GB laptop, MacBook 24GB, or 24GB for so much"
        " memory that is free"
    )


def _sized(name: str, made: Device) -> Device:
    """The device, unless nothing of its memory is left."""
    if made.usable <= 0:
        raise InputError(
            f"fits: {name!r} leaves no memory for a model ({made.why}). Name a larger device, or"
            " the memory that is free, e.g. 3GB"
        )
    return made


def _key(name: str) -> str:
    """A name without what people write in several ways."""
    return MAC.sub("mac", DROPPED.sub("", name.lower()))


def here() -> Device:
    """This machine: its first NVIDIA GPU, by nvidia-smi; a Mac's memory; or the memory that is
    available now. Raises InputError where the system does not tell.
    """
    if nvidia_gpu() and (card := _nvidia()):
        return card
    if sys.platform == "darwin":
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        arm = os.uname().machine == "arm64"
        return _make("this Mac", "unified" if arm else "laptop", total)
    if not Path("/proc/meminfo").is_file():
        raise InputError(
            "fits: this system does not tell its memory; name the device, e.g. --fits '16GB laptop'"
        )
    now = "the memory that is available now"
    return _make("this machine", "free", memory_available(), why=now)


def _nvidia() -> Device | None:
    """The first card that nvidia-smi shows, by the memory that is free on it now; None without
    nvidia-smi.
    """
    asked = "name,memory.free,compute_cap"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        name, free, capability = (part.strip() for part in said.stdout.splitlines()[0].split(","))
        return _make(
            f"this machine's {name}",
            "gpu",
            int(free) << 20,
            why=f"of what is free now, {KINDS['gpu'].said}",
            capability=float(capability),
            beside=memory_available(),
        )
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None  # no driver, or one that says it in another way: the processor remains


def overview() -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The table of devices: head and rows. Sizes are in GiB, 2³⁰ bytes each."""
    head = ("device", "other names", "runs", "CUDA capability", "memory, GiB", "usable, GiB")
    return head, [
        (
            one.name,
            ", ".join(one.aliases),
            ", ".join(one.runs),
            f"{one.capability:.1f}" if one.cuda else "",
            f"{one.memory / GIB:.1f}",
            f"{one.usable / GIB:.1f}",
        )
        for one in table()
    ]


def rules() -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """How much of its memory a model can have on each kind of device: head and rows."""
    return ("kind", "usable", "source"), [
        (kind, one.said, one.source) for kind, one in KINDS.items()
    ]

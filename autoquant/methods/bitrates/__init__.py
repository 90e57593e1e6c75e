"""What EXL2 and EXL3 share: folders of any average of bits per weight, each made by a library's own
converter on a GPU.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from autoquant.backends.exllama import Environment
from autoquant.core import journal
from autoquant.core.errors import InputError
from autoquant.core.files import free_bytes
from autoquant.core.machine import memory_available
from autoquant.core.plans import Plan, PlanItem
from autoquant.core.records import Source
from autoquant.display.tables import size as in_words
from autoquant.hub.fetch import same_disk
from autoquant.methods.base import Method
from autoquant.methods.bitrates.options import BitrateOptions, bitrate
from autoquant.methods.size import Size
from autoquant.source import bytes_to_fetch

O = TypeVar("O", bound=BitrateOptions)
Layers = Mapping[str, tuple[int, int]]


class Bitrates(Method[O]):
    """A method that makes folders of averages of bits per weight."""

    start: ClassVar[str] = "python main.py --model-dir {folder} --model-name {name}"  # TabbyAPI
    requires_calibration: ClassVar[str] = "yes"
    runs_on: ClassVar[tuple[str, ...]] = ("cuda",)
    gpu_to_run: ClassVar[str] = "yes"
    tested_on: ClassVar[str] = "CPU, with CUDA kernels mocked"
    # assumed, and measured nowhere
    pace: ClassVar[Mapping[str, float]] = {"": 400.0}

    machine: ClassVar[Environment]
    """What its library needs."""
    costs: ClassVar[str]
    """What is said of time and memory in plans."""
    usual_bits: ClassVar[tuple[str, ...]]
    """The bitrates of a plan that names none."""

    @abstractmethod
    def refuse(self, source: Source, options: O) -> Layers:
        """Refuse a source or options that cannot work, but for the machine; return the blocks'
        matrices, name -> (outputs, inputs). Raises InputError.
        """

    @abstractmethod
    def size(self, source: Source, layers: Layers, bpw: float, head_bits: int) -> int:
        """The bytes of a folder's weights to be, nearly."""

    @abstractmethod
    def states(self, source: Source, options: O, layers: Layers) -> int:
        """Bytes of the samples' states between two blocks."""

    def averages(self, options: O) -> tuple[str, ...]:
        """The bits per weight of each of its variants."""
        return options.bpw

    def memory(self, source: Source, options: O, states: int) -> int:
        """Main memory that its programs take beside what is loaded anyway."""
        return states + 2 * source.largest_tensor

    def notes(self, options: O) -> tuple[str, ...]:
        """What a plan says."""
        return (self.costs,)

    def variants(self, options: O) -> tuple[str, ...]:
        """One for each average."""
        return options.types

    def resolve_defaults(self, source: Source, options: O) -> O:
        """Sizes as the bits that they allow."""
        if not options.size:
            return options
        if options.bpw != type(options).model_fields["bpw"].default:
            raise InputError("size: bpw says the same in bits; leave one of them out")
        bits = tuple(dict.fromkeys(self.bits_for(source, options, one) for one in options.size))
        return options.model_copy(update={"bpw": bits, "size": ()})

    def bits_for(self, source: Source, options: O, asked: str) -> str:
        """The most bits per weight with which a model's weights take no more than a size. Raises
        InputError for a size that no bits reach.
        """
        wanted, layers = Size.parse(asked).bytes(0), self.refuse(source, options)
        fewest = float(options.least)
        least, most = (self.size(source, layers, bits, options.head_bits) for bits in (fewest, 8.0))
        bits = fewest + (8.0 - fewest) * (wanted - least) / (most - least)
        if not least <= wanted <= most * 1.01:
            raise InputError(
                f"size: {asked} is {in_words(wanted)}, and with {options.least} to 8 bits this"
                f" model has {in_words(least)} to {in_words(most)}. Ask for a size in between"
            )
        return bitrate(math.floor(100 * min(8.0, bits)) / 100, options.least)

    def folder_suffix(self, options: O) -> str:
        """One folder for all bitrates."""
        return self.title

    def environment(self, options: O) -> dict[str, str]:
        """Variables that its library reads."""
        return dict(self.machine.variables)

    def prepare(self, logs: Path) -> str:
        """Install its library and compile its extension, where there is a GPU."""
        return self.machine.prepare(logs)

    def check(self, source: Source, options: O) -> None:
        """What can be refused before anything is downloaded, but for the machine."""
        self.refuse(source, options)

    def check_hardware(self, options: O, folder: Path) -> None:
        """Refuse a machine that cannot, unless all bitrates are in the folder already: they can be
        measured and uploaded anywhere.
        """
        steps = journal.read(folder)[1]
        if not all(f"quantize {type}" in steps for type in options.types):
            self.machine.check()

    def plan_defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The usual bitrates."""
        return {} if given.get("size") else {"bpw": self.usual_bits}

    def plan(self, source: Source, options: O, out: Path) -> Plan:
        """Sizes from the headers alone. ``refused`` if this machine has no GPU for it."""
        layers = self.refuse(source, options)
        sizes = {
            name: self.size(source, layers, float(bits), options.head_bits)
            for name, bits in zip(options.types, self.averages(options), strict=True)
        }
        download, free = bytes_to_fetch(source), free_bytes(out)
        states = self.states(source, options, layers)
        # the quantized layers once as the converter's own files and once in the folder; the
        # samples' states, and their copy while they are written
        needed = sum(sizes.values()) + max(sizes.values()) + 2 * states
        needed += download if download and same_disk(out) else 0
        refused = self.machine.refusal(self.machine.look())
        if needed > free and not refused:
            refused = (
                f"not enough room on the disk: {needed / 1e9:.3f} GB are needed,"
                f" {free / 1e9:.3f} GB are free"
            )
        return Plan(
            self.name,
            source,
            tuple(
                PlanItem(name, bytes, 8 * bytes / source.parameters, False, "")
                for name, bytes in sizes.items()
            ),
            states,
            disk_needed=needed,
            disk_free=free,
            memory_needed=2_500_000_000 + self.memory(source, options, states),
            memory_available=memory_available(),
            download=download,
            refused=refused,
            notes=self.notes(options),
        )

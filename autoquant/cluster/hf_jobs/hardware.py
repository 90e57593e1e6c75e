"""The machines that Hugging Face Jobs offers, with what they have and cost."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autoquant.core.errors import AutoQuantError
from autoquant.hub.client import Client, with_retries

log = logging.getLogger(__name__)
GB = 10**9
UNKNOWN_DISK = 50 * GB  # of a machine whose disk is not listed: what the smallest ones have
MINUTES = {"minute": 1, "hour": 60, "second": 1 / 60}


@dataclass(frozen=True)
class Flavor:
    """A machine: processors as the provider counts them (threads), bytes of memory and disk, its
    GPUs' model, number and memory in all, and dollars a minute.
    """

    name: str
    cpus: int
    memory: int
    disk: int
    minute: float
    gpu: str = ""
    gpus: int = 0
    gpu_memory: int = 0

    @property
    def hour(self) -> float:
        """Dollars an hour."""
        return 60 * self.minute

    def __str__(self) -> str:
        cards = f", {self.gpus} × {self.gpu}" if self.gpus > 1 else f", {self.gpu}"
        return (
            f"{self.name} ({self.cpus} CPUs, {self.memory // GB} GB of memory,"
            f" {self.disk // GB} GB of disk{cards if self.gpus else ''}, ${self.hour:.2f} an hour)"
        )


SOURCE = "huggingface.co/docs/hub/jobs-pricing as of 2026-11-28"
# name, CPUs, GB of memory and disk, dollars an hour, and of GPUs model, number, GB of one.
# Names: JobHardware of huggingface_hub 2.4.
TABLE = tuple(
    Flavor(name, cpus, memory * GB, disk * GB, hour / 60, gpu, number, number * each * GB)
    for name, cpus, memory, disk, hour, gpu, number, each in (
        ("cpu-basic", 2, 16, 50, 0.01, "", 0, 0),
        ("cpu-upgrade", 8, 32, 50, 0.03, "", 0, 0),
        ("cpu-xl", 16, 124, 1000, 1.00, "", 0, 0),
        ("cpu-performance", 32, 256, 1024, 1.90, "", 0, 0),
        ("t4-small", 4, 15, 50, 0.40, "T4", 1, 16),
        ("t4-medium", 8, 30, 100, 0.60, "T4", 1, 16),
        ("l4x1", 8, 30, 400, 0.80, "L4", 1, 24),
        ("l4x4", 48, 186, 3200, 3.80, "L4", 4, 24),
        ("l40sx1", 8, 62, 380, 1.80, "L40S", 1, 48),
        ("l40sx4", 48, 382, 3200, 8.30, "L40S", 4, 48),
        ("l40sx8", 192, 1534, 6500, 23.50, "L40S", 8, 48),
        ("a10g-small", 4, 15, 110, 1.00, "A10G", 1, 24),
        ("a10g-large", 12, 46, 200, 1.50, "A10G", 1, 24),
        ("a10g-largex2", 24, 92, 1000, 3.00, "A10G", 2, 24),
        ("a10g-largex4", 48, 184, 2000, 5.00, "A10G", 4, 24),
        ("a100-large", 12, 142, 1000, 2.50, "A100", 1, 80),
        ("a100x4", 48, 568, 4000, 10.00, "A100", 4, 80),
        ("a100x8", 96, 1136, 8000, 20.00, "A100", 8, 80),
        ("h200", 23, 256, 3000, 5.00, "H200", 1, 141),
        ("h200x2", 46, 512, 6000, 10.00, "H200", 2, 141),
        ("h200x4", 92, 1024, 12000, 20.00, "H200", 4, 141),
        ("h200x8", 184, 2048, 24000, 40.00, "H200", 8, 141),
        ("rtx-pro-6000", 23, 256, 475, 2.75, "RTX PRO 6000", 1, 96),
        ("rtx-pro-6000x2", 46, 512, 950, 5.50, "RTX PRO 6000", 2, 96),
        ("rtx-pro-6000x4", 92, 1024, 1900, 11.00, "RTX PRO 6000", 4, 96),
        ("rtx-pro-6000x8", 184, 2048, 3800, 22.00, "RTX PRO 6000", 8, 96),
    )
)


def listed(client: Client) -> tuple[tuple[Flavor, ...], str]:
    """The machines with their prices now, as the Hub lists them; where it does not, those of the
    table above. And where they come from, in words.
    """
    try:
        found = with_retries(
            lambda: client.api.list_jobs_hardware(), "looking at the machines for jobs", client
        )
        machines = tuple(one for info in found if (one := _flavor(info)) is not None)
    except (AutoQuantError, KeyError, TypeError, ValueError) as error:
        log.info("%s", error)
        machines = ()
    if machines:
        return machines, f"the Hub's own list ({client.endpoint}/api/jobs/hardware)"
    return TABLE, (
        f"a table in this package ({SOURCE}), for the Hub's own list could not be read: prices and"
        " machines may be others by now"
    )


def _flavor(info: Any) -> Flavor | None:
    """A machine of huggingface_hub's list; None for one whose accelerator is no NVIDIA GPU, or that
    is not paid by time.
    """
    card = info.accelerator
    if info.unit_label not in MINUTES or (
        card is not None and (card.type != "gpu" or card.manufacturer.lower() != "nvidia")
    ):
        return None
    return Flavor(
        str(info.name),
        int(_number(info.cpu)) or 1,
        int(_number(info.ram) * GB),
        int(_number(info.ephemeral_storage) * GB) or UNKNOWN_DISK,
        info.unit_cost_usd / MINUTES[info.unit_label],
        *(
            (card.model, int(_number(card.quantity)) or 1, int(_number(card.vram) * GB))
            if card
            else ()
        ),
    )


def _number(text: str) -> float:
    """The number that a text begins with ("16 GB", "1.5 TB" in GB); 0 if there is none."""
    found = re.match(r"\s*([\d.]+)\s*([A-Za-z]*)", str(text))
    if not found:
        return 0.0
    return float(found[1]) * (1000 if found[2].upper().startswith("T") else 1)


def named(name: str, machines: Sequence[Flavor]) -> Flavor | None:
    """The machine of a name."""
    return next((one for one in machines if one.name == name), None)

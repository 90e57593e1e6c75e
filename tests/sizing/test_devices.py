"""Devices by their names, and this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoquant.core.errors import InputError
from autoquant.core.machine import memory_available
from autoquant.sizing import devices
from autoquant.sizing.devices import GIB, device


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("T4", "T4"),
        ("nvidia tesla t4", "T4"),
        ("rtx4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("GeForce RTX 4060 Ti 16 GB", "RTX 4060 Ti 16GB"),
        ("4060 ti", "RTX 4060 Ti 8GB"),
        ("A100", "A100 40GB"),
        ("a100-80gb", "A100 80GB"),
        ("A100-SXM4-80GB", "A100 80GB"),
        ("H100", "H100 80GB"),
        ("macbook 16gb", "MacBook 16GB"),
        ("MacBook Pro 16 GB", "MacBook 16GB"),
        ("16GB MacBook Air", "MacBook 16GB"),
        ("Mac Studio 512GB", "MacBook 512GB"),
        ("iMac 24GB", "MacBook 24GB"),
        ("8 GB laptop", "8GB laptop"),
        ("laptop 8gb", "8GB laptop"),
        ("raspberry pi 5", "Raspberry Pi 5 8GB"),
        ("iPhone 8GB", "phone 8GB"),
    ],
)
def test_names_are_read_as_people_write_them(written: str, name: str) -> None:
    assert device(written).name == name


def test_what_can_be_used_is_less_than_what_is_sold() -> None:
    t4 = device("T4")
    assert (t4.memory, t4.usable) == (15 * GIB, 14 * GIB), "error correction takes a sixteenth"
    assert device("RTX 3090").usable == 23 * GIB
    # recommendedMaxWorkingSetSize as llama.cpp logs it, in MB
    for size, logged in (
        (8, 5726.63),
        (16, 11453.25),
        (32, 22906.5),
        (36, 28991.03),
        (64, 51539.6),
    ):
        assert device(f"MacBook {size}GB").usable == pytest.approx(logged * 1e6, rel=1e-3)
    assert device("8GB laptop").usable == 4 * GIB
    assert device("24GB").usable == 24_000_000_000
    assert device("24 GiB").usable == 24 * GIB
    assert device("1.5GB").usable == 1_500_000_000


def test_no_two_devices_share_a_name() -> None:
    table = devices.table()
    keys = [devices._key(name) for one in table for name in (one.name, *one.aliases)]
    assert len(set(keys)) == len(keys)
    for one in table:
        assert 0 < one.usable < one.memory
        assert one.source.startswith("https://")
        assert one.cuda == (one.kind == "gpu")
    assert "vLLM" not in device("P100").runs, "vLLM begins with Volta"


@pytest.mark.parametrize("name", ["RTX 4091", "toaster", "", "gb", "8 cores", "laptop"])
def test_an_unknown_device_is_named_with_the_nearest(name: str) -> None:
    with pytest.raises(InputError, match="is no device that is known; nearest: ") as caught:
        device(name)
    assert "`autoquant devices` lists all" in str(caught.value)
    assert ("RTX 4090" in str(caught.value)) == (name == "RTX 4091")


def test_one_that_leaves_nothing_is_refused() -> None:
    for name in ("4GB laptop", "0GB"):
        with pytest.raises(InputError, match="leaves no memory for a model"):
            device(name)


def test_this_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "nvidia_gpu", lambda: False)
    here = devices.here()
    assert (here.kind, here.cuda) == ("free", False)
    assert here.usable == pytest.approx(memory_available(), rel=0.3)


@pytest.mark.parametrize(
    ("says", "usable"),
    [
        ("NVIDIA L4, 22000, 8.9\nNVIDIA L4, 22500, 8.9", 22000 * 2**20 - GIB),
        ("NVIDIA-SMI has failed", None),
        ("", None),
    ],
)
def test_this_machine_with_a_gpu(
    says: str, usable: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stand-in for nvidia-smi; one that tells nothing leaves the processor."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat <<END\n{says}\nEND\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(devices, "nvidia_gpu", lambda: True)
    here = devices.here()
    if usable is None:
        assert here.kind == "free"
        return
    assert (here.name, here.usable, here.capability) == ("this machine's NVIDIA L4", usable, 8.9)
    assert here.beside > 0
    assert "vLLM" in here.runs

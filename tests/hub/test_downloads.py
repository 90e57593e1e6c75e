"""Downloads that are cut, killed, refused or too large for the disk: what has arrived is kept, and
what is not what the Hub lists is not used.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autoquant.core.bundled import MODEL as DEMO_FOLDER
from tests.fakes.hub import Hub
from tests.hub.conftest import MODEL, QUICK, User

FETCH = """
import json
from autoquant import source
print(json.dumps(str(source.fetch(source.resolve("maker/big")).folder)))"""


def big(hub: Hub) -> bytes:
    """A repository with 40 MB of weights: the client keeps whole pieces of 10 MiB, so the embedded
    model is too small to see it going on.
    """
    import numpy as np
    from safetensors.numpy import save

    weights = save({"w": np.random.default_rng(0).integers(0, 255, 40_000_000, dtype=np.uint8)})
    hub.seed(
        "maker/big", {"config.json": b'{"architectures": ["X"]}', "model.safetensors": weights}
    )
    return weights


def test_a_cut_download_is_resumed(user: User, hub: Hub) -> None:
    weights = big(hub)
    hub.fail("GET /_cdn/", cut=23_000_000, skip=1)  # after the header
    folder = user.python(FETCH)
    assert (Path(folder) / "model.safetensors").read_bytes() == weights
    assert [request.range for request in hub.requests("GET /_cdn/")][1:] == [
        "",
        f"bytes={20 << 20}-",
    ]


def test_a_killed_download_of_a_large_file_goes_on(user: User, hub: Hub) -> None:
    """Also by a signed address that has expired meanwhile (403), and without sending the token to
    where it points.
    """
    weights = big(hub)
    sha = hub.repos["maker/big"].at("main").files["model.safetensors"].sha256
    part = user.home / "hf" / "hub" / "models--maker--big" / "blobs" / f"{sha}.part"
    hub.bandwidth = 20e6
    process = user.start_python(FETCH)
    deadline = time.monotonic() + 60
    while not (part.is_file() and part.stat().st_size >= 20 << 20):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.communicate()
    arrived = part.stat().st_size
    hub.bandwidth = 0
    time.sleep(0.3)
    before = len(hub.log)
    hub.fail(f"GET /_cdn/{sha}", 403)
    folder = user.python(FETCH)
    assert (Path(folder) / "model.safetensors").read_bytes() == weights
    assert [request.range for request in hub.log[before:] if request.path == f"/_cdn/{sha}"] == [
        f"bytes={arrived}-"
    ] * 2
    assert not part.exists()
    before = len(hub.log)
    user.python(FETCH)
    assert not [request for request in hub.log[before:] if "/_cdn/" in request.path], (
        "it is in the cache now"
    )


def test_what_is_not_what_the_hub_lists_is_not_used(user: User, hub: Hub) -> None:
    blob = hub.blob(hub.repos[MODEL].at("main").files["model.safetensors"].sha256)
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    err = user.quantize(status=1).stderr
    assert "model.safetensors has arrived with 8,397,360 bytes and sha256 " in err
    assert "It was removed; run again" in err
    assert not list(user.cwd.iterdir())
    blob.write_bytes(whole)
    user.quantize()


def test_rate_limits_and_server_errors_are_waited_out(user: User, hub: Hub) -> None:
    hub.fail("GET /api/models/maker/tiny$", 429, times=2, headers={"Retry-After": "1"})
    hub.fail("GET /api/models/maker/tiny/revision/", 503, times=2)
    hub.fail("GET /_cdn/", 503, times=1)
    start = time.monotonic()
    err = user.quantize().stderr
    assert time.monotonic() - start > 2
    assert err.count("the Hub limits the rate of requests (HTTP 429); trying again in 1 s") == 2


def test_one_server_error_does_not_bring_an_old_commit(user: User, hub: Hub) -> None:
    user.quantize("--out", "first")
    newer = hub.seed(MODEL, {"LICENSE": b"another text"})
    hub.fail("GET /api/models/maker/tiny$", 503)
    user.quantize("--out", "second")
    assert newer in (user.cwd / "second" / "README.md").read_text()


def test_a_nearly_finished_download_needs_only_the_rest(
    user: User, hub: Hub, small_disk: Callable[[int], Path]
) -> None:
    weights = big(hub)
    disk = small_disk(45)
    sha = hub.repos["maker/big"].at("main").files["model.safetensors"].sha256
    blobs = disk / "hf" / "hub" / "models--maker--big" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha}.part").write_bytes(weights[: 30 << 20])
    folder = user.python(FETCH, HF_HOME=str(disk / "hf"))
    assert (Path(folder) / "model.safetensors").read_bytes() == weights


def two_shards() -> dict[str, bytes | Path]:
    """The bundled model in two files."""
    from safetensors.numpy import load_file, save

    tensors = load_file(DEMO_FOLDER / "model.safetensors")
    names = sorted(tensors)
    files: dict[str, bytes | Path] = {
        path.name: path for path in DEMO_FOLDER.iterdir() if path.suffix != ".safetensors"
    }
    weight_map = {}
    for i, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-{i:05d}-of-00002.safetensors"
        files[file] = save({name: tensors[name] for name in part}, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    return {
        **files,
        "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
    }


@pytest.mark.slow
def test_killed_while_downloading(user: User, hub: Hub) -> None:
    """What has arrived is not fetched again, and what the dead process has left is removed."""
    hub.seed("maker/shards", two_shards())
    sums = [
        hub.repos["maker/shards"].at("main").files[f"model-0000{i}-of-00002.safetensors"].sha256
        for i in (1, 2)
    ]
    blobs = user.home / "hf" / "hub" / "models--maker--shards" / "blobs"
    hub.bandwidth = 4e6
    process = user.start("quantize", "gguf", "maker/shards", *QUICK)
    deadline = time.monotonic() + 60
    while not (any((blobs / sha).exists() for sha in sums) and list(blobs.glob("*.incomplete"))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.communicate()
    arrived = {sha for sha in sums if (blobs / sha).exists()}
    assert len(arrived) == 1
    assert list(blobs.glob("*.incomplete"))
    hub.bandwidth = 0
    time.sleep(0.3)
    before = len(hub.log)
    user.quantize(model="maker/shards")
    again = {
        request.path.split("/")[-1]
        for request in hub.log[before:]
        if request.method == "GET" and "/_cdn/" in request.path and not request.range
    }
    assert again & set(sums) == set(sums) - arrived
    assert not list(blobs.glob("*.incomplete"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    folder = tmp_path / "small"
    folder.mkdir()

    def mount(megabytes: int) -> Path:
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}M", "tmpfs", str(folder)],
            capture_output=True,
            check=False,
        ).returncode:
            pytest.skip("mounting needs root")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


def test_a_disk_too_small_for_the_download(
    user: User, hub: Hub, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(6)
    err = user.quantize("--download", "whole", status=2, HF_HOME=str(disk / "hf")).stderr
    assert "downloading maker/tiny needs 0.01 GB in " in err
    assert "Free some space or set HF_HOME to a larger disk" in err
    assert hub.served < 400_000


def test_a_disk_that_fills_up_while_downloading(
    user: User, hub: Hub, small_disk: Callable[[int], Path]
) -> None:
    """Another program takes the room once the weights are on their way."""
    disk = small_disk(12)
    sha = hub.repos[MODEL].at("main").files["model.safetensors"].sha256

    def fill() -> None:
        (disk / "other").write_bytes(bytes(9_000_000))

    # the first request is for the header
    hub.on(f"GET /_cdn/{sha}$", lambda: hub.on(f"GET /_cdn/{sha}$", fill))
    err = user.quantize(status=2, HF_HOME=str(disk / "hf")).stderr
    assert "no space left on the disk" in err
    assert not list(disk.rglob("*.incomplete"))
    (disk / "other").unlink()
    user.quantize(HF_HOME=str(disk / "hf"))

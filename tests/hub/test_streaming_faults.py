"""What goes wrong while weights come and go: a process killed between any two steps, a disk that
fills up, a repository that moves on, a second run, weights that are no numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autoquant.core.bundled import MODEL as DEMO_FOLDER
from bench.cases import sources
from tests.fakes.hub import Hub
from tests.hub.conftest import User
from tests.hub.test_downloads import small_disk  # noqa: F401 (a fixture)
from tests.hub.test_streaming import (  # noqa: F401 (wanted is a fixture)
    REPO,
    STREAM,
    downloads,
    in_shards,
    made_in,
    wanted,
    weights,
)

JOBS = Path("out/.autoquant/jobs")
FIRST, LAST = "model-00001-of-00004.safetensors", "model-00004-of-00004.safetensors"


def lines(user: User) -> list[str]:
    """The tensors that are written, after two lines."""
    journal = user.cwd / JOBS / "one-pass.txt"
    return journal.read_text().splitlines() if journal.is_file() else []


Seen = Callable[[User, Hub], bool]
MOMENTS: dict[str, Seen] = {
    "a file is on its way": lambda user, _: any((user.cwd / JOBS).glob("shards/*.part")),
    "a file has arrived": lambda user, _: (user.cwd / JOBS / "shards" / FIRST).is_file(),
    "a tensor is written": lambda user, _: len(lines(user)) > 2,
    "a file is deleted": lambda user, _: (
        len(lines(user)) > 2 and not (user.cwd / JOBS / "shards" / FIRST).exists()
    ),
    "the last file is there": lambda user, _: (user.cwd / JOBS / "shards" / LAST).is_file(),
    "a type is finished": lambda user, _: any((user.cwd / "out").glob("*.gguf")),
    "something is sent": lambda _, hub: hub.sent() > 0,
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_sigkill_and_again(moment: str, user: User, hub: Hub, wanted: dict[str, str]) -> None:  # noqa: F811
    hub.seed(REPO, in_shards(DEMO_FOLDER, 4))
    hub.bandwidth = 6e6
    words = (*STREAM, "--upload", "tester/streamed")
    first = user.start(*words)
    deadline = time.monotonic() + 60
    while not MOMENTS[moment](user, hub):
        assert first.poll() is None, first.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    first.kill()
    first.wait()
    hub.bandwidth = 0
    time.sleep(0.5)  # its worker dies of the same
    fetched = set(downloads(hub))
    user.run(*words)
    assert made_in(user.cwd / "out") == wanted
    files = {name for name in hub.files("tester/streamed") if name.endswith(".gguf")}
    assert files == {path.name for path in (user.cwd / "out").glob("*.gguf")}
    for name in files:
        assert hub.content("tester/streamed", name) == (user.cwd / "out" / name).read_bytes()
    assert weights(user.home) == []
    assert not (user.cwd / JOBS).exists()
    if moment in ("a file is deleted", "the last file is there"):
        first_file = hub.repos[REPO].at("main").files[FIRST].sha256
        assert first_file in fetched
        assert downloads(hub).count(first_file) == 1, "its tensors were written"
    if moment in ("a type is finished", "something is sent"):
        assert len(downloads(hub)) == 4, "nothing came again"


def test_the_disk_fills_up_in_the_middle(
    hub: Hub,
    small_disk: Callable[[int], Path],  # noqa: F811
    wanted: dict[str, str],  # noqa: F811
) -> None:
    hub.seed(REPO, in_shards(DEMO_FOLDER, 6))
    disk = small_disk(14)
    user = User(hub, disk / "home")
    hub.bandwidth = 4e6
    process = user.start(*STREAM)
    while len(lines(user)) < 4:
        assert process.poll() is None
        time.sleep(0.005)
    full = disk / "somebody-elses"
    with open(full, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert "no space left on the disk" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert list(user.cwd.rglob("out/*.gguf")) == [], "nothing under a final name"
    assert not (user.cwd / JOBS).exists(), "and what was begun is not in the way"
    full.unlink()
    hub.bandwidth = 0
    user.run(*STREAM)
    assert made_in(user.cwd / "out") == wanted


def test_the_repository_moves_on_between_two_runs(
    user: User,
    hub: Hub,
    wanted: dict[str, str],  # noqa: F811
) -> None:
    """Bytes of two commits are never mixed; a commit that is named is the one that is taken."""
    hub.seed(REPO, in_shards(DEMO_FOLDER, 4))
    commit = hub.repos[REPO].branches["main"]
    hub.bandwidth = 4e6
    first = user.start(*STREAM)
    while len(lines(user)) < 4:
        assert first.poll() is None
        time.sleep(0.005)
    first.kill()
    first.wait()
    hub.bandwidth = 0
    time.sleep(0.5)
    moved = in_shards(DEMO_FOLDER, 4)
    data = moved[LAST]
    assert isinstance(data, bytes)
    moved[LAST] = data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]
    hub.seed(REPO, moved)
    user.run(*STREAM)
    newer = made_in(user.cwd / "out")
    assert newer.keys() == wanted.keys()
    assert newer != wanted
    refused = user.run(*[word.replace(REPO, f"{REPO}@{commit}") for word in STREAM], status=2)
    assert "other contents of the same name" in refused.stderr
    words = [word.replace(REPO, f"{REPO}@{commit}") for word in STREAM]
    user.run(*words[:-1], "older")
    assert made_in(user.cwd / "older") == wanted


def test_a_second_run_is_told_of_the_first(user: User, hub: Hub) -> None:
    hub.seed(REPO, in_shards(DEMO_FOLDER, 4))
    hub.bandwidth = 3e6
    first = user.start(*STREAM)
    while not lines(user):
        assert first.poll() is None
        time.sleep(0.005)
    said = user.run(*STREAM, status=2).stderr
    assert "another run is writing into" in said
    hub.bandwidth = 0
    assert first.wait() == 0
    assert len(downloads(hub)) == 4, "by the first one alone"


def test_weights_that_are_no_numbers(user: User, hub: Hub, tmp_path: Path) -> None:
    hub.seed(REPO, in_shards(sources.make("not_finite", tmp_path / "nan"), 4))
    said = user.run(*STREAM, status=2).stderr
    assert "embed_tokens.weight has NaN or Inf values (first in row 2001" in said
    assert not (user.cwd / "out").exists()
    assert weights(user.home) == []


def test_a_failing_read_of_parts_ends_measuring_in_one_line(user: User, hub: Hub) -> None:
    """Run again it goes on, and leaves nothing of what it read in the cache."""
    hub.seed(REPO, in_shards(DEMO_FOLDER, 4))
    words = ("quantize", "gguf", REPO, "--types", "Q8_0", "--pre-tokenizer", "gpt-2", "--out", "o")
    user.run(*words, "--download", "stream", "--evaluate", "off")
    more = ("--download", "stream", "--evaluate", "on", "--eval-chunks", "1")
    hub.fail("GET /maker/shards/resolve/.*safetensors", status=403, times=1000)
    said = user.run(*words, *more, status=2).stderr
    assert "maker/shards" in said.splitlines()[-1]
    assert "Traceback" not in said
    hub._faults.clear()
    before = len(downloads(hub))
    assert "KL mean" in user.run(*words, *more).stdout
    assert len(downloads(hub)) == before, "no file came again as a whole"
    assert not list(user.home.rglob("coming-*"))

"""Shards that go up while others are still being made, and those that are deleted here then: so
that not even the results need fit on the disk.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import autoquant
from autoquant.core.bundled import MODEL as DEMO_FOLDER
from autoquant.core.errors import InputError
from tests.fakes.hub import Hub
from tests.hub.conftest import User
from tests.hub.test_downloads import small_disk  # noqa: F401 (a fixture)
from tests.hub.test_streaming import downloads, in_shards, weights

REPO, TARGET = "maker/shards", "tester/shards-GGUF"
TYPES = ("--types", "Q8_0,Q4_K_M", "--split-size", "1M", "--pre-tokenizer", "gpt-2")
WORDS = ("quantize", "gguf", REPO, *TYPES, "--out", "out", "--upload", TARGET)
DELETE = (*WORDS, "--evaluate", "off", "--delete-uploaded")


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The shards that a run makes whose results stay."""
    folder = tmp_path_factory.mktemp("model") / "shards"
    shutil.copytree(DEMO_FOLDER, folder)
    made = autoquant.gguf(
        folder,
        types="Q8_0,Q4_K_M",
        split_size="1M",
        pre_tokenizer="gpt-2",
        evaluate="off",
        out=tmp_path_factory.mktemp("shards") / "out",
    )
    return {path.name: path.read_bytes() for path in made.folder.glob("*.gguf")}


def uploaded(hub: Hub) -> dict[str, bytes]:
    names = [name for name in hub.files(TARGET) if name.endswith(".gguf")]
    return {name: hub.content(TARGET, name) for name in names}


def data(files: dict[str, bytes]) -> dict[str, str]:
    """Hashes of the files but for the first shards, whose metadata name the model's origin."""
    return {
        name: hashlib.sha256(value).hexdigest()
        for name, value in files.items()
        if "-00001-of-" not in name
    }


def test_shards_go_up_while_others_are_made(user: User, hub: Hub, wanted: dict[str, bytes]) -> None:
    hub.seed(REPO, in_shards(DEMO_FOLDER, 4))
    hub.bandwidth = 3e6
    process = user.start(*WORDS, "--evaluate", "off", "--download", "stream")
    first = None
    while process.poll() is None and first is None:
        first = hub.sent() or None
        time.sleep(0.01)
    made = list((user.cwd / "out").glob("*.gguf"))
    hub.bandwidth = 0
    assert process.wait() == 0
    assert first, "something was sent"
    assert made == [], "before any type was finished"
    assert data(uploaded(hub)) == data(wanted)
    assert hub.sent() == sum(map(len, uploaded(hub).values())), "each once"
    assert len(hub.requests("POST .*/commit/")) == 1
    here = {path.name: path.read_bytes() for path in (user.cwd / "out").glob("*.gguf")}
    assert here == uploaded(hub)


def test_what_is_sent_is_deleted_and_nothing_of_it_need_fit(
    hub: Hub,
    small_disk: Callable[[int], Path],  # noqa: F811
    wanted: dict[str, bytes],
) -> None:
    """7.2 MB of results and 8.4 MB of weights on 9 MB."""
    hub.seed(REPO, in_shards(DEMO_FOLDER, 8))
    user = User(hub, small_disk(10) / "home")
    user.run(*DELETE)
    assert data(uploaded(hub)) == data(wanted)
    assert list((user.cwd / "out").rglob("*.gguf")) == [user.cwd / "out/.autoquant/header.gguf"]
    assert weights(user.home) == []
    card = hub.content(TARGET, "README.md").decode()
    for name, value in uploaded(hub).items():
        assert f"{hashlib.sha256(value).hexdigest()}  {name}" in card

    # again, nothing is made, sent or fetched
    before = hub.served, hub.sent(), len(hub.requests("POST .*/commit/"))
    user.run(*DELETE)
    assert (hub.sent(), len(hub.requests("POST .*/commit/"))) == before[1:]
    assert hub.served - before[0] < 300_000
    result = autoquant.load(user.cwd / "out")
    assert "not tried: its shards were deleted here as they were sent" in " ".join(
        str(result.checks()).split()
    )
    with pytest.raises(InputError, match=f"deleted here as it was uploaded.*{TARGET}"):
        result.path("Q4_K_M")
    with pytest.raises(InputError, match=f"can only be measured where it is downloaded.*{TARGET}"):
        result.evaluate()


def gone_of(user: User) -> list[str]:
    """The shards that a run's journal knows as sent and deleted."""
    there = (user.cwd / "out" / ".autoquant" / "journal.json").is_file()
    return [step for step in user.journal("out") if step.startswith("sent ")] if there else []


@pytest.mark.slow
def test_sigkill_after_some_are_gone(user: User, hub: Hub, wanted: dict[str, bytes]) -> None:
    hub.seed(REPO, in_shards(DEMO_FOLDER, 4))
    hub.bandwidth = 2e6
    first = user.start(*DELETE, "--download", "stream")
    while len(gone_of(user)) < 3:
        assert first.poll() is None
        time.sleep(0.01)
    first.kill()
    first.wait()
    hub.bandwidth = 0
    time.sleep(0.5)
    gone = gone_of(user)
    fetched = downloads(hub)
    user.run(*DELETE, "--download", "stream")
    assert data(uploaded(hub)) == data(wanted)
    again = [one for one in downloads(hub)[len(fetched) :] if one == fetched[0]]
    assert again == [], "the first file's tensors were all written"
    assert len(gone) < len(wanted)
    assert weights(user.home) == []


def test_the_hub_is_away_and_comes_back(user: User, hub: Hub, wanted: dict[str, bytes]) -> None:
    """What is sent stays sent, what is fetched is not fetched again."""
    hub.seed(REPO, in_shards(DEMO_FOLDER, 4))
    hub.fail("PUT /_lfs/", 403, skip=3)
    said = user.run(*DELETE, "--download", "stream", status=2).stderr
    assert "token" in said
    sent = hub.sent()
    assert sent
    user.run(*DELETE, "--download", "stream")
    assert data(uploaded(hub)) == data(wanted)
    sizes = [len(value) for value in uploaded(hub).values()]
    assert hub.sent() <= sum(sizes) + max(sizes), "the one that was refused came twice"


def test_the_hub_has_lost_what_was_sent(user: User, hub: Hub, wanted: dict[str, bytes]) -> None:
    """Before the commit: it is said, and the same command makes it again."""
    hub.seed(REPO, in_shards(DEMO_FOLDER, 4))
    lost = hashlib.sha256(wanted["shards-Q8_0-00003-of-00006.gguf"]).hexdigest()
    hub.fail("POST .*/commit/", 400, message="a bad day")
    user.run(*DELETE, status=1)
    hub.blob(lost).unlink()
    said = user.run(*DELETE, status=1).stderr
    assert f"{TARGET} has lost 1 of the files that were sent and deleted here" in said
    user.run(*DELETE)
    assert data(uploaded(hub)) == data(wanted)


def test_another_repository_or_none_gets_files_made_anew(
    user: User, hub: Hub, wanted: dict[str, bytes]
) -> None:
    hub.seed(REPO, in_shards(DEMO_FOLDER, 4))
    user.run(*DELETE)
    user.run(*[word.replace(TARGET, "tester/second") for word in DELETE])
    names = {name for name in hub.files("tester/second") if name.endswith(".gguf")}
    assert names == set(wanted)
    user.run(*WORDS, "--evaluate", "off")
    assert {path.name for path in (user.cwd / "out").glob("*.gguf")} == set(wanted)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "delete_uploaded: nothing is uploaded; add upload"),
        (("--upload", TARGET, "--evaluate", "on"), "are deleted here as soon as the Hub has them"),
    ],
)
def test_what_does_not_go_with_deleting(
    user: User, hub: Hub, more: tuple[str, ...], said: str
) -> None:
    hub.seed(REPO, in_shards(DEMO_FOLDER, 2))
    words = ("quantize", "gguf", REPO, *TYPES, "--delete-uploaded", "--out", "out", *more)
    assert said in user.run(*words, status=2).stderr
    assert not (user.cwd / "out").exists()

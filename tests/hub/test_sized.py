"""A file of a size from a model on the Hub, uploaded with what it was chosen by; and that taken
from there for another size.
"""

from __future__ import annotations

from tests.fakes.hub import Hub
from tests.hub.conftest import MODEL, User

QUICK = ("--pre-tokenizer", "gpt-2", "--sensitivity-samples", "2", "--eval-chunks", "4")
FAST = ("--candidates", "Q8_0,Q6_K,Q4_K,Q3_K,Q2_K")


def test_it_goes_up_with_its_table_which_serves_from_there(user: User, hub: Hub) -> None:
    user.run("quantize", "gguf", MODEL, "--size", "2MB", *QUICK, *FAST, "--upload", "tester/sized")
    there = hub.files("tester/sized")
    (name,) = [one for one in there if one.endswith("bpw.gguf")]
    assert there == {
        name, "README.md", "LICENSE", "imatrix.gguf", "sensitivity.json",
        "size-against-quality.png",
    }, "what it is compared with stays here"  # fmt: skip
    assert len(list((user.cwd / "tiny-GGUF").glob("tiny-*.gguf"))) == 2
    card = hub.content("tester/sized", "README.md").decode()
    tag = name.removeprefix("tiny-").removesuffix(".gguf")
    assert f"llama-cli -hf tester/sized:{tag}" in card
    assert "(not here: made to compare with)" in card

    out = ("--sensitivity", "tester/sized", "--against", "none", "--evaluate", "off")
    user.run("quantize", "gguf", MODEL, "--bpw", "3.2", *QUICK[:2], *out, "--out", "second")
    assert len(list((user.cwd / "second").glob("*_AQ-3.2*bpw.gguf"))) == 1
    refused = user.run(
        "quantize", "gguf", MODEL, "--size", "2MB", "--sensitivity", "maker/tiny", status=2
    )
    assert "sensitivity: maker/tiny has no sensitivity.json" in refused.stderr


def test_shards_of_what_is_compared_with_are_not_sent(user: User, hub: Hub) -> None:
    words = ("--size", "2MB", *QUICK[:4], *FAST, "--eval-chunks", "2", "--split-size", "1M")
    user.run("quantize", "gguf", MODEL, *words, "--upload", "tester/cut")
    there = {one for one in hub.files("tester/cut") if one.endswith(".gguf")}
    assert len(there - {"imatrix.gguf"}) == 2
    assert all("bpw-0000" in one for one in there - {"imatrix.gguf"})
    here = {path.name for path in (user.cwd / "tiny-GGUF").glob("tiny-*.gguf")}
    assert len(here - there) >= 2, "of the other one"
    uploaded = sum((user.cwd / "tiny-GGUF" / one).stat().st_size for one in there)
    assert uploaded <= hub.sent() < uploaded + 400_000, "card, plot, table; no other shard"


def test_the_table_alone_of_a_model_whose_files_come_and_go(user: User) -> None:
    """A file of a size that is asked for afterwards finds it."""
    given = (*QUICK[:4], *FAST, "--download", "stream")
    said = user.run("sensitivity", MODEL, *given).stdout
    assert "suffers most" in said
    table = user.cwd / "tiny-GGUF" / "sensitivity.json"
    assert not list(table.parent.glob("tiny-*"))
    before = table.stat().st_mtime_ns
    made = ("--size", "2MB", "--against", "none", "--evaluate", "off")
    user.run("quantize", "gguf", MODEL, *given, *made)
    assert len(list(table.parent.glob("tiny-*bpw.gguf"))) == 1
    assert table.stat().st_mtime_ns == before, "not measured again"


def test_a_repository_for_each_file_of_a_size(user: User, hub: Hub) -> None:
    words = ("--size", "2MB", *QUICK, *FAST, "--layout", "repo-per-type")
    user.run("quantize", "gguf", MODEL, *words, "--upload", "tester/sized")
    (repo,) = [name for name in hub.repos if name.startswith("tester/")]
    assert repo.startswith("tester/sized-")
    assert repo.endswith("bpw")

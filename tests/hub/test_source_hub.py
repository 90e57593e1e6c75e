"""From a name on the Hub to files at hand: what is fetched, what is not, and what is said when it
does not work.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from autoquant.core.bundled import MODEL as DEMO_FOLDER
from autoquant.core.files import sha256_of
from autoquant.hub.look import parse
from autoquant.publish.card import metadata
from tests.fakes.hub import Hub
from tests.hub.conftest import MODEL, QUICK, User, checkpoint

STRANGER = "hf_" + "StrangerStrangerStrangerStranger01"


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("owner/name", ("owner/name", None, "")),
        ("owner/name@v1.0", ("owner/name", "v1.0", "")),
        ("owner/name@refs/pr/1", ("owner/name", "refs/pr/1", "")),
        ("https://huggingface.co/owner/name", ("owner/name", None, "")),
        ("https://huggingface.co/owner/name/tree/dev", ("owner/name", "dev", "")),
        ("https://hf.co/owner/name/", ("owner/name", None, "")),
        ("http://127.0.0.1:8800/owner/name/blob/main/config.json?x=1", ("owner/name", "main", "")),
        ("https://huggingface.co/owner/name/tree/refs%2Fpr%2F1", ("owner/name", "refs/pr/1", "")),
        ("https://huggingface.co/owner/name/commit/abc", ("owner/name", "abc", "")),
        ("hf.co/owner/name", ("owner/name", None, "")),
        ("huggingface.co/owner/name/tree/dev", ("owner/name", "dev", "")),
        ("https://hf.co/owner/name/tree/main/Q4_K_M", ("owner/name", "main", "Q4_K_M/")),
        ("owner/name:Q8_0", ("owner/name", None, "Q8_0")),
        ("owner/name@v1.0:sub/x-Q8_0.gguf", ("owner/name", "v1.0", "sub/x-Q8_0.gguf")),
        ("owner/name:my model (v2).gguf", ("owner/name", None, "my model (v2).gguf")),
        (
            "https://huggingface.co/owner/name?show_file_info=x-Q8_0.gguf",
            ("owner/name", None, "x-Q8_0.gguf"),
        ),
        ("hf.co/owner/name:Q4_K_M", ("owner/name", None, "Q4_K_M")),
        (
            "https://huggingface.co/owner/name/blob/main/sub/x-Q8_0.gguf?download=true",
            ("owner/name", "main", "sub/x-Q8_0.gguf"),
        ),
        ("https://github.com/owner/name", None),
        ("owner/na--me", None),
        ("owner/name.git", None),
        ("owner/" + "n" * 100, None),
        ("gpt2", None),
        ("./folder/name", None),
        ("/abs/folder", None),
        ("a/b/c", None),
        ("", None),
    ],
)
def test_names(
    text: str, parsed: tuple[str, str | None, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:8800")
    assert parse(text) == parsed


def test_a_plan_is_exact_and_fetches_no_weight(user: User, hub: Hub) -> None:
    out = user.run(
        "plan", "gguf", MODEL, "--pre-tokenizer", "gpt-2", "--types", "Q8_0,Q4_K_M"
    ).stdout
    assert "maker/tiny: LlamaForCausalLM, 4.2 million parameters, F16, 8.40 MB" in out
    assert "to download: 8.40 MB" in out
    assert hub.served < 400_000, "config, tokenizer, card and the header of the weights"
    assert all(
        request.range
        for request in hub.requests("GET /_cdn/")
        if hub.repos[MODEL].at("main").files["model.safetensors"].sha256 in request.path
    )
    local = user.run(
        "plan", "gguf", "demo", "--pre-tokenizer", "gpt-2", "--types", "Q8_0,Q4_K_M"
    ).stdout
    rows = [line for line in out.splitlines() if line.startswith(("Q8_0", "Q4_K_M"))]
    assert rows == [line for line in local.splitlines() if line.startswith(("Q8_0", "Q4_K_M"))], (
        "the same sizes as with the weights at hand"
    )


def test_only_needed_files_are_fetched_and_the_result_is_that_of_the_folder(
    user: User, hub: Hub
) -> None:
    user.quantize()
    fetched = {
        request.path.split("/")[-1].split("?")[0]
        for request in hub.requests(r"(GET|HEAD) /maker/tiny/resolve")
    }
    assert "model.safetensors" in fetched
    assert not fetched & {
        "pytorch_model.bin",
        "consolidated.00.pth",
        "flax_model.msgpack",
        "model.onnx",
    }
    user.run("quantize", "gguf", str(DEMO_FOLDER), *QUICK, "--out", "local")
    for name in ("Q8_0", "Q4_K_M"):
        hub_file, local_file = (
            user.cwd / "tiny-GGUF" / f"tiny-{name}.gguf",
            user.cwd / "local" / f"tiny-austen-4m-{name}.gguf",
        )
        assert abs(hub_file.stat().st_size - local_file.stat().st_size) <= 64, (
            "they differ in the model's name only"
        )
    card = (user.cwd / "tiny-GGUF" / "README.md").read_text()
    assert "base_model: maker/tiny" in card
    assert f"| source commit | {hub.repos[MODEL].branches['main']} |" in card
    assert f"autoquant quantize gguf maker/tiny@{hub.repos[MODEL].branches['main']}" in card
    assert (user.cwd / "tiny-GGUF" / "LICENSE").read_bytes() == b"the text of the licence"


def test_a_revision_is_pinned(user: User, hub: Hub) -> None:
    """A branch is resolved to its commit once; the weights of another branch are other weights."""
    other = bytearray((DEMO_FOLDER / "model.safetensors").read_bytes())
    other[-2000:] = other[-4000:-2000]
    commit = hub.seed(MODEL, {"model.safetensors": bytes(other)}, branch="dev")
    user.quantize("--out", "main")
    user.quantize("--out", "dev", model=f"{MODEL}@dev")
    user.quantize("--out", "pinned", model=f"{hub.url}/{MODEL}/tree/{commit}")
    sums = [sha256_of(user.cwd / name / "tiny-Q8_0.gguf") for name in ("main", "dev", "pinned")]
    assert sums[0] != sums[1] == sums[2]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("maker/none", "there is no repository maker/none at http://127.0.0.1:"),
        (f"{MODEL}@none", "maker/tiny has no such revision"),
        (
            "maker/gated",
            (
                "maker/gated is gated, and the token from the environment variable HF_TOKEN has no"
                " access to it (the Hub says: Access to model "
            ),
        ),
        ("maker/pickled", "maker/pickled has only pickle weights"),
        (
            "maker/gguf",
            "maker/gguf: m.gguf ends within its own head",
        ),
        ("maker/shards", "lacks 1 of its 2 shards: model-00002-of-00002.safetensors"),
        ("maker/cut", "model.safetensors has no valid safetensors header"),
        ("maker/index", "is not valid JSON"),
        ("nowhere", "no such folder: nowhere. Give a folder"),
    ],
)
def test_refusals_are_one_line_before_anything_is_fetched(
    model: str, said: str, user: User, hub: Hub
) -> None:
    small = {
        name: content
        for name, content in checkpoint().items()
        if "/" not in name and name not in ("pytorch_model.bin", "model.safetensors")
    }
    whole = (DEMO_FOLDER / "model.safetensors").read_bytes()
    index = json.dumps(
        {
            "weight_map": {
                "model.norm.weight": "model-00001-of-00002.safetensors",
                "lm_head.weight": "model-00002-of-00002.safetensors",
            }
        }
    ).encode()
    hub.seed("maker/gated", checkpoint(), gated=True)
    hub.seed("maker/pickled", {**small, "pytorch_model.bin": b"b" * 1000})
    hub.seed("maker/gguf", {"m.gguf": b"GGUF"})
    hub.seed(
        "maker/shards",
        {**small, "model.safetensors.index.json": index, "model-00001-of-00002.safetensors": whole},
    )
    hub.seed("maker/cut", {**small, "model.safetensors": b"\xff" * 1000})
    hub.seed(
        "maker/index",
        {**small, "model.safetensors.index.json": b"{", "model-00001-of-00002.safetensors": whole},
    )
    err = user.quantize(model=model, status=2).stderr
    assert said in err
    assert "huggingface.co" not in err, "it is not where the model was looked for"
    assert not list(user.cwd.iterdir())
    assert hub.served < 800_000


def test_gated_without_a_token_says_how_to_get_one(user: User, hub: Hub) -> None:
    hub.seed("maker/gated", checkpoint(), gated=True)
    err = user.quantize(model="maker/gated", status=2, HF_TOKEN="").stderr
    assert (
        f"accept its terms at {hub.url}/maker/gated, make a token with read access at"
        f" {hub.url}/settings/tokens, and set HF_TOKEN or run `hf auth login`" in err
    )
    hub.repos["maker/gated"].allowed.add("tester")
    user.quantize(model="maker/gated")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("", "llama.cpp does not know the pre-tokenizer of tiny"),
        (
            ', pre_tokenizer="gpt-2", tensor_types="ffn=IQ2_XXS"',
            "Q4_K_M needs an importance matrix for this model",
        ),
    ],
)
def test_a_large_model_is_planned_before_its_weights_are_fetched(
    more: str, said: str, user: User, hub: Hub
) -> None:
    """The limit is set to nothing, so that the bundled model counts as large."""
    process = user.start_python(f"""
from autoquant import pipeline
import autoquant
pipeline.PLAN_FIRST = 0
autoquant.gguf("{MODEL}", types="Q4_K_M"{more})""")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said in err
    assert hub.served < 400_000, "no weight was fetched"
    assert not list(user.cwd.iterdir())


def test_a_pickle_checkpoint_works_when_opted_in(user: User, hub: Hub, tmp_path: Path) -> None:
    from autoquant.runtime import process

    folder = tmp_path / "pickled"
    subprocess.run(["cp", "-r", str(DEMO_FOLDER), str(folder)], check=True)
    process.call("tests.helpers.models:to_pickle", log=tmp_path / "log", folder=str(folder))
    hub.seed("maker/pickled", {path.name: path for path in folder.iterdir()})
    user.quantize("--allow-pickle", model="maker/pickled")
    assert (user.cwd / "pickled-GGUF" / "pickled-Q8_0.gguf").is_file()


@pytest.mark.slow
def test_the_cache_is_enough_without_a_network(user: User, hub: Hub) -> None:
    user.quantize("--out", "first")
    hub.stop()
    user.quantize("--out", "offline", HF_HUB_OFFLINE="1")
    done = user.quantize("--out", "down")
    assert (
        f"{hub.url} cannot be reached; using maker/tiny from the cache, commit"
        f" {hub.repos[MODEL].branches['main'][:10]}" in done.stderr
    )
    assert (
        sha256_of(user.cwd / "offline" / "tiny-Q8_0.gguf")
        == sha256_of(user.cwd / "first" / "tiny-Q8_0.gguf")
        == sha256_of(user.cwd / "down" / "tiny-Q8_0.gguf")
    )
    for status, more in ((2, {"HF_HUB_OFFLINE": "1"}), (1, {})):
        err = user.quantize(model="maker/other", status=status, **more).stderr
        assert "cannot be reached" in err
        assert "maker/other is not in the cache. Connect to the network, or give a folder" in err


def test_a_folder_of_the_hubs_cache_knows_where_it_is_from(user: User, hub: Hub) -> None:
    user.quantize()
    (snapshot,) = (user.home / "hf" / "hub" / "models--maker--tiny" / "snapshots").iterdir()
    user.quantize("--out", "again", model=str(snapshot))
    assert "base_model: maker/tiny" in (user.cwd / "again" / "README.md").read_text()


def test_what_a_card_says_wrongly_is_not_inherited(user: User, hub: Hub) -> None:
    """Norwegian, which YAML takes for false; no language at all; a licence name with spaces."""
    hub.seed(
        MODEL,
        {
            "README.md": (
                b"---\nlicense: other\nlicense_name: My Own Terms!\nlanguage: [en, no,"
                b" Klingon]\n---\n"
            )
        },
    )
    user.quantize("--upload", "tester/t")
    card = metadata(hub.content("tester/t", "README.md").decode())
    assert (card["language"], card["license_name"]) == (["en", "no"], "my-own-terms")
    hub.seed(MODEL, {"README.md": b"---\nlicense: foo: bar\n---\n"})
    assert "the model's card cannot be read" in user.quantize("--out", "again").stderr

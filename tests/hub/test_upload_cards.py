"""Cards on the Hub: what they say of their source, what the Hub would refuse, what a person has
edited.
"""

from __future__ import annotations

import hashlib

from autoquant.publish.card import metadata
from tests.fakes.hub import Hub
from tests.hub.conftest import MODEL, User, changing, checkpoint


def test_a_card_the_hub_would_refuse_is_refused_before(done: User, hub: Hub) -> None:
    card = done.cwd / "tiny-GGUF" / "README.md"
    card.write_text(
        card.read_text()
        .replace("license: apache-2.0", "license: my-own")
        .replace("base_model: maker/tiny", "base_model: tiny")
    )
    err = done.run("upload", "tiny-GGUF", "tester/t", status=2).stderr
    assert "license: 'my-own' is none of the Hub's identifiers" in err
    assert "base_model: 'tiny' is no Hub repository" in err
    assert changing(hub) == []
    card.write_text("---\nlicense: foo: bar\n---\n# My words")
    assert "cannot be read as YAML" in done.run("upload", "tiny-GGUF", "tester/t", status=2).stderr
    card.write_text("---\nlicense: apache-2.0\n---\n# My words")
    done.run("upload", "tiny-GGUF", "tester/t")
    assert hub.content("tester/t", "README.md") == card.read_bytes(), (
        "a card edited by hand is taken as it is"
    )


def test_a_gated_source_makes_a_private_repository_and_its_terms_are_pointed_out(
    user: User, hub: Hub
) -> None:
    readme = (
        b"---\nlicense: other\nlicense_name: my-terms\nlicense_link:"
        b" https://example.org/terms\nlanguage: tr\n---\n"
    )
    hub.seed(
        "maker/gated",
        {
            **checkpoint(),
            "README.md": readme,
            "USE_POLICY.md": b"be kind",
            "NOTICE": b"Built with tiny",
        },
        gated=True,
    )
    hub.repos["maker/gated"].allowed.add("tester")
    err = user.quantize("--upload", "tester/g", model="maker/gated").stderr
    assert "the source is gated" in err
    assert "licence my-terms (other): has conditions" in err
    assert "a new repository will be private, because the source is gated" in err
    assert hub.repos["tester/g"].private
    assert {"LICENSE", "USE_POLICY.md", "NOTICE"} < hub.files("tester/g")
    card = metadata(hub.content("tester/g", "README.md").decode())
    assert (card["license"], card["license_name"], card["license_link"], card["language"]) == (
        "other",
        "my-terms",
        "https://example.org/terms",
        ["tr"],
    )
    user.run("upload", "gated-GGUF", "tester/open", "--private", "no")
    assert not hub.repos["tester/open"].private


def test_a_folder_says_what_it_is_quantized_from(user: User, hub: Hub) -> None:
    err = user.quantize("--upload", "tester/d", model="demo").stderr
    assert "the card will name no base model" in err
    assert "base_model" not in metadata(hub.content("tester/d", "README.md").decode())
    err = user.run("upload", "tiny-austen-4m-GGUF", "tester/d", "--base-model", "maker/tiny").stderr
    assert "no base model" not in err
    card = metadata(hub.content("tester/d", "README.md").decode())
    assert (card["base_model"], card["base_model_relation"]) == ("maker/tiny", "quantized")
    readme = user.cwd / "tiny-austen-4m-GGUF" / "README.md"
    readme.write_text(readme.read_text() + "\nMy own words.\n")
    user.run("upload", "tiny-austen-4m-GGUF", "tester/d", "--base-model", "maker/other")
    text = hub.content("tester/d", "README.md").decode()
    assert "base_model: maker/other" in text
    assert "My own words." in text


def test_an_edited_card_survives_the_same_run(done: User, hub: Hub) -> None:
    words = (
        "quantize",
        "gguf",
        MODEL,
        "--pre-tokenizer",
        "gpt-2",
        "--types",
        "Q8_0,Q4_K_M",
        "--evaluate",
        "off",
        "--imatrix",
        "builtin",
        "--imatrix-chunks",
        "4",
    )
    readme = done.cwd / "tiny-GGUF" / "README.md"
    readme.write_text(readme.read_text() + "\nMy own introduction.\n")
    done.run(*words, "--upload", "tester/t")
    assert "My own introduction." in readme.read_text()
    assert "My own introduction." in hub.content("tester/t", "README.md").decode()
    done.run(*("Q8_0" if word == "Q8_0,Q4_K_M" else word for word in words))
    assert "My own introduction." not in readme.read_text()
    assert "My own introduction." in (done.cwd / "tiny-GGUF" / "README.edited.md").read_text()
    readme.write_text(readme.read_text() + "\nMy second introduction.\n")
    done.run(*words)
    assert "My own introduction." in (done.cwd / "tiny-GGUF" / "README.edited.md").read_text(), (
        "the first one is not overwritten"
    )
    assert "My second introduction." in (done.cwd / "tiny-GGUF" / "README.edited-2.md").read_text()


def test_a_dry_run_with_a_base_model_shows_the_card_that_is_sent(user: User, hub: Hub) -> None:
    user.quantize(model="demo")
    shown = user.run(
        "upload", "tiny-austen-4m-GGUF", "tester/b", "--base-model", "maker/tiny", "--dry-run"
    ).stdout
    user.run("upload", "tiny-austen-4m-GGUF", "tester/b", "--base-model", "maker/tiny")
    assert hashlib.sha256(hub.content("tester/b", "README.md")).hexdigest()[:12] in shown
    (user.cwd / "tiny-austen-4m-GGUF" / "README.md").unlink()
    assert (
        "has no README.md any more"
        in user.run("upload", "tiny-austen-4m-GGUF", "tester/b", status=2).stderr
    )

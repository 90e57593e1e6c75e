"""The contract every method keeps, over all of METHODS."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

import pytest

import autoquant
from autoquant import result
from autoquant.core import options, rendering
from autoquant.core.errors import InputError
from autoquant.core.files import sha256_of
from autoquant.methods import METHODS
from autoquant.methods.base import AnyMethod
from autoquant.runtime import process
from tests.conftest import STAND_IN

each_method = pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))


def test_the_package_offers_every_method() -> None:
    assert set(METHODS) <= set(dir(autoquant))
    assert all(callable(getattr(autoquant, name)) for name in METHODS)
    with pytest.raises(AttributeError, match="has no attribute 'nonesuch'"):
        autoquant.nonesuch  # noqa: B018


@each_method
def test_defaults_build_and_are_the_same_from_python_command_line_and_signature(
    method: AnyMethod,
) -> None:
    parser = argparse.ArgumentParser()
    rendering.add_arguments(parser, method.Options)
    built = options.build(method.Options, {})
    assert rendering.from_arguments(parser.parse_args([]), method.Options) == built
    shown = inspect.signature(getattr(autoquant, method.name)).parameters
    assert {name: shown[name].default for name in method.Options.model_fields} == built.model_dump()


@each_method
def test_every_option_has_help_and_is_frozen(method: AnyMethod) -> None:
    for name, field in method.Options.model_fields.items():
        assert field.description, name
        assert len(field.description) > 20, name
    with pytest.raises(Exception, match="frozen"):
        method.Options().eval_chunks = 3  # type: ignore[misc]


@each_method
@pytest.mark.parametrize("value", [0, -1, "many", 10**9])
def test_an_out_of_range_value_says_the_same_from_python_and_command_line(
    method: AnyMethod, value: Any
) -> None:
    parser = argparse.ArgumentParser()
    rendering.add_arguments(parser, method.Options)
    messages = []
    with pytest.raises(InputError) as from_python:
        getattr(autoquant, method.name)("demo", eval_chunks=value)
    messages.append(str(from_python.value))
    with pytest.raises(InputError) as from_shell:
        rendering.from_arguments(parser.parse_args([f"--eval-chunks={value}"]), method.Options)
    messages.append(str(from_shell.value))
    assert messages[0] == messages[1]
    assert str(value) in messages[0]
    assert "1 to 100000" in messages[0]
    assert "\n" not in messages[0]


@each_method
def test_an_unknown_option_names_the_nearest(method: AnyMethod) -> None:
    with pytest.raises(InputError, match="eval_chunks"):
        getattr(autoquant, method.name)("demo", eval_chunk=3)


@pytest.mark.slow
@each_method
def test_demo_run_checks_measures_resumes_and_writes_its_card(
    method: AnyMethod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", STAND_IN)  # EXL2 and EXL3 want a GPU; nobody else notices
    out = tmp_path / "out"
    made = result.quantize(
        method,
        "demo",
        out=out,
        values={**method.demo_options, "eval_chunks": 4, "base_model": "maker/tiny-austen"},
    )
    files = {
        stored.name: sha256_of(out / stored.name)
        for artifact in made.artifacts
        for stored in artifact.files
    }
    for artifact in made.artifacts:
        assert artifact.checks
        assert {stored.name: stored.sha256 for stored in artifact.files}.items() <= files.items()
        assert artifact.evaluation is not None
        assert artifact.evaluation.agreement > 0.5
    card = made.card()
    for wanted in (
        "base_model: maker/tiny-austen",
        "base_model_relation: quantized",
        "quantized_by: AutoQuant",
        "license: apache-2.0",
        "- en",
    ):
        assert wanted in card
    assert all(name in card for name in files)
    assert str(tmp_path) not in card, "the card must not name a path of this machine"

    started: list[str] = []
    real = process.call
    monkeypatch.setattr(
        "autoquant.runtime.process.call",
        lambda target, /, **kwargs: started.append(target) or real(target, **kwargs),
    )
    again = result.quantize(
        method, "demo", out=out, values={**method.demo_options, "eval_chunks": 4}
    )
    assert started == [], "a finished run starts no process"
    assert again.artifacts == made.artifacts
    assert {name: sha256_of(out / name) for name in files} == files

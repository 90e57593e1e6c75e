"""Calls of functions by their names, ``process.call("package.module:function", log=…, a=1)``, read
from source text, since not every module can be imported everywhere: what each gives to its
function, through helpers that pass names and arguments on, and what the function takes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"autoquant": ROOT, "bench": ROOT, "gpu": ROOT / "tools"}  # where packages lie
NAME = re.compile(rf"(?:{'|'.join(FOLDERS)})(?:\.\w+)*:\w+")
# where calls end, and what is added there if the function takes it (runtime/worker.py)
BASES = {
    ("autoquant.runtime.process", "call"): frozenset({"report", "emit"}),
    ("gpu.machine", "call"): frozenset[str](),
}
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Given:
    """Names of arguments; ``whole``: there are no others."""

    names: frozenset[str] = frozenset()
    whole: bool = True

    def __or__(self, other: Given) -> Given:
        return Given(self.names | other.names, self.whole and other.whole)


NOTHING, ANYTHING = Given(), Given(whole=False)


class Module:
    """A module's text, as a tree."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.tree = name, ast.parse(text)
        self.nodes = list(ast.walk(self.tree))

    @cached_property
    def _parents(self) -> dict[ast.AST, ast.AST]:
        return {child: node for node in self.nodes for child in ast.iter_child_nodes(node)}

    def around(self, node: ast.AST) -> Iterator[Function | ast.Module]:
        """The functions that a node stands in, from the inside, and the module."""
        while node in self._parents:
            node = self._parents[node]
            if isinstance(node, Function | ast.Module):
                yield node

    def in_pieces(self, node: ast.AST) -> bool:
        """Whether a text is only part of one."""
        return isinstance(self._parents[node], ast.JoinedStr)

    @cached_property
    def imports(self) -> dict[str, tuple[str, str]]:
        """What was imported from ours, by the name it has here: a module, and a name in it (empty:
        the module itself).
        """
        found = {}
        for node in self.nodes:
            if isinstance(node, ast.ImportFrom) and node.module:
                for one in node.names:
                    whole = f"{node.module}.{one.name}"
                    place = (whole, "") if of_name(whole) else (node.module, one.name)
                    if of_name(place[0]):
                        found[one.asname or one.name] = place
        return found

    @cached_property
    def constants(self) -> dict[str, str]:
        """Texts that have names at the top level."""
        return {
            target.id: node.value.value
            for node in self.tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name) and isinstance(node.value.value, str)
        }


@cache
def of_name(name: str) -> Module | None:
    """A module of ours by its dotted name; None if there is none."""
    base = FOLDERS.get(name.partition(".")[0])
    path = (base or ROOT).joinpath(*name.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if base and file.is_file():
            return Module(name, file.read_text(encoding="utf-8"))
    return None


def every() -> Iterator[Module]:
    """All modules of autoquant/, bench/ and tools/."""
    for folder, base in (("autoquant", ROOT), ("bench", ROOT), ("", ROOT / "tools")):
        for file in sorted((base / folder).rglob("*.py")):
            parts = file.relative_to(base).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            yield of_name(name) or Module(name, file.read_text(encoding="utf-8"))


def defined(module: Module, name: str) -> tuple[Module, ast.AST] | None:
    """The function or class that a name at a module's top level is, wherever it was defined."""
    for node in module.tree.body:
        if isinstance(node, Function | ast.ClassDef) and node.name == name:
            return module, node
    where, original = module.imports.get(name, ("", ""))
    other = of_name(where)
    return defined(other, original) if other and original else None


def function(target: str) -> Function | None:
    """The function that ``package.module:function`` is."""
    where, _, name = target.partition(":")
    module = of_name(where)
    found = defined(module, name) if module else None
    return found[1] if found and isinstance(found[1], Function) else None


def _callee(module: Module, node: ast.expr) -> tuple[Module, ast.AST] | None:
    """What is called: a function here (an inner one too), or one of another module of ours."""
    if isinstance(node, ast.Name):
        for scope in module.around(node):
            for one in scope.body:
                if isinstance(one, Function) and one.name == node.id:
                    return module, one
        return defined(module, node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        other = of_name(module.imports.get(node.value.id, ("", ""))[0])
        return defined(other, node.attr) if other else None
    return None


def _text(module: Module, node: ast.expr) -> str:
    """A text, or a constant of this or another module that is one; empty if it is none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.Name):
        other, name = module.imports.get(node.id, ("", ""))
        there = of_name(other)
        return module.constants.get(node.id) or (there.constants.get(name, "") if there else "")
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        there = of_name(module.imports.get(node.value.id, ("", ""))[0])
        return there.constants.get(node.attr, "") if there else ""
    return ""


def _own(called: Function) -> frozenset[str]:
    """The names that a function keeps for itself."""
    return frozenset(one.arg for one in (*called.args.args, *called.args.kwonlyargs))


def _spread(module: Module, node: ast.expr, passed: Given) -> Given:
    """What ``**node`` gives: of a dictionary that is written out, of names for some, of a function
    that prepares one; ``passed`` is what the ``**`` of the function around it stands for.
    """
    if isinstance(node, ast.Dict):
        given = NOTHING
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                given |= _spread(module, value, passed)
            else:
                known = isinstance(key, ast.Constant)
                given |= Given(frozenset({str(key.value)})) if known else ANYTHING
        return given
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        return _spread(module, node.args[0], passed)
    if isinstance(node, ast.Name):
        for scope in module.around(node):
            if isinstance(scope, Function):
                if scope.args.kwarg and scope.args.kwarg.arg == node.id:
                    return passed
                if node.id in _own(scope):
                    return ANYTHING
            values = list(_assigned(scope, node.id))
            if values:
                given = NOTHING
                for one in values:
                    given |= _spread(module, one, passed) if one is not None else ANYTHING
                return given
    return ANYTHING


def _assigned(scope: ast.AST, name: str) -> Iterator[ast.expr | None]:
    """What a name is given in a scope, or joined with; None for changes of another kind."""
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for one in ast.walk(target):
                    if isinstance(one, ast.Name) and one.id == name:
                        yield node.value if one is target else None


def _keywords(module: Module, call: ast.Call, passed: Given) -> Given:
    given = NOTHING
    for one in call.keywords:
        given |= Given(frozenset({one.arg})) if one.arg else _spread(module, one.value, passed)
    return given


def _reaching(
    module: Module, call: ast.Call, index: int, passed: Given = NOTHING
) -> tuple[Given, frozenset[str]] | None:
    """What a call whose argument ``index`` is a function's name gives to that function, and what
    is added at the end of the way. None if the callee does not pass names on: that is no call.
    Raises LookupError where it cannot be followed.
    """
    named, arguments = call.func, call.args
    if isinstance(named, ast.Name) and named.id == "partial" and index > 0:
        named, arguments, index = arguments[0], arguments[1:], index - 1
    found = _callee(module, named)
    if found is None:
        raise LookupError(f"what {ast.unparse(named)} is, is not known")
    where, called = found
    if not isinstance(called, Function):
        return None
    given = _keywords(module, call, passed)
    rest = Given(given.names - _own(called), given.whole)
    if (where.name, called.name) in BASES:
        return rest, BASES[where.name, called.name]
    parameters = [*called.args.posonlyargs, *called.args.args]
    for inner in ast.walk(called) if index < len(parameters) else ():
        for i, argument in enumerate(inner.args if isinstance(inner, ast.Call) else ()):
            if isinstance(argument, ast.Name) and argument.id == parameters[index].arg:
                return _reaching(where, inner, i, rest)
    return None


def _unlike(called: Function, given: Given, added: frozenset[str]) -> Iterator[str]:
    """How what is given differs from what a function takes."""
    asked = called.args
    plain = [*asked.posonlyargs, *asked.args]
    needed = {one.arg for one in plain[: len(plain) - len(asked.defaults)]}
    needed |= {
        one.arg
        for one, default in zip(asked.kwonlyargs, asked.kw_defaults, strict=True)
        if default is None
    }
    if not asked.kwarg and given.names - _own(called):
        yield f"takes no {', '.join(sorted(given.names - _own(called)))}"
    if given.whole and needed - given.names - added:
        yield f"lacks {', '.join(sorted(needed - given.names - added))}"


def looked_at(module: Module) -> tuple[list[str], int, int]:
    """What is wrong with the calls by name in a module, and with names that are no function's; how
    many calls there are, and of how many all arguments are known.
    """
    faults, calls, whole = list[str](), 0, 0
    for node in module.nodes:
        said = str(node.value) if isinstance(node, ast.Constant) else ""
        if NAME.fullmatch(said) and function(said) is None and not module.in_pieces(node):
            faults.append(f"{module.name}:{node.lineno}: {said} is no function")
        for i, argument in enumerate(node.args if isinstance(node, ast.Call) else ()):
            target = _text(module, argument)
            called = function(target) if NAME.fullmatch(target) else None
            if called is None:
                continue
            place = f"{module.name}:{node.lineno}: {target}"
            try:
                reached = _reaching(module, node, i)
            except LookupError as error:
                faults.append(f"{place}: {error}")
                continue
            if reached is not None:
                calls, whole = calls + 1, whole + reached[0].whole
                faults += [f"{place} {how}" for how in _unlike(called, *reached)]
    return faults, calls, whole

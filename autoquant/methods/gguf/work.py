"""One GGUF run, step by step: converting, the importance matrix, quantizing and checking."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from autoquant.backends.llamacpp import converter as llama
from autoquant.backends.llamacpp.convert import refuse
from autoquant.backends.llamacpp.types import TYPES, UNQUANTIZED
from autoquant.core.errors import InputError
from autoquant.core.files import free_bytes, key_of
from autoquant.core.journal import RunFolder
from autoquant.core.machine import memory_available
from autoquant.core.progress import Bar
from autoquant.core.records import Artifact, Check, Snapshot, Stored
from autoquant.methods.base import Output
from autoquant.methods.gguf import about, mmproj, one_pass, requantize
from autoquant.methods.gguf import imatrix as imatrices
from autoquant.methods.gguf.convert import convert, fallback_note, precision
from autoquant.methods.gguf.feed import Feed, largest
from autoquant.methods.gguf.options import GgufOptions
from autoquant.methods.gguf.streaming import estimated
from autoquant.runtime import process

log = logging.getLogger(__name__)
# bytes: llama.cpp's row buffers (128 MiB), Python with NumPy, the vocabulary, a mapped tensor's
# pages beside
WORKER_MEMORY = 500 << 20
FLOAT16 = 65504.0  # its largest number


class Work:
    """One run: its keys and files, and its steps in order (:meth:`output`)."""

    def __init__(self, snapshot: Snapshot, options: GgufOptions, run: RunFolder) -> None:
        self.snapshot, self.options, self.run, self.source = snapshot, options, run, snapshot.source
        self.env = llama.environment(llama.locate(options.converter))
        outtype = options.types[0].lower() if options.direct else precision(self.source, options)
        if self.source.gguf:
            outtype = self.source.dtype.lower()
        # the type of the converted file, which may be one of the asked files
        self.whole = outtype.upper()
        self.stem = self.source.name
        self.kept = options.direct or options.keep_intermediate or self.whole in options.types
        place = run.folder if self.kept else run.work
        self.converted = place / f"{self.stem}-{self.whole}.gguf"
        if self.source.gguf:  # it is there already
            self.kept = False
            self.converted = snapshot.folder / self.source.gguf
        self.header = run.ours / "header.gguf"
        self.key = key_of(
            snapshot.sha256, llama.installed_version(), outtype, options.pre_tokenizer, self.stem
        )
        self.imatrix = imatrices.find(options, run, self.key)
        self.keys = {
            name: key_of(
                self.key, self._imatrix_key(name), options.quantizing(), options.split_size
            )
            for name in options.types
        }
        self.artifacts: dict[str, Artifact] = {}
        # the name of the file of what sees or hears, and what is to be said of it
        self.mmproj = self.towers = ""

    def _imatrix_key(self, name: str) -> str | None:
        """What a type depends on of the importance matrix: nothing, if it does not use it."""
        uses = name not in UNQUANTIZED and name != "Q8_0"
        return self.imatrix.key if self.imatrix and uses else None

    def output(self) -> Output:
        """Do what the journal does not know as done."""
        for name in self.options.types:
            facts = self.run.done(f"quantize {name}", self.keys[name])
            if facts:
                self.artifacts[name] = Artifact.from_json(facts)
                self.run.passed(self.artifacts[name])
        self.mmproj, self.towers = mmproj.make(self.source, self.options, self.run, self.key)
        todo = [name for name in self.options.types if name not in self.artifacts]
        collect = self.imatrix is not None and self.imatrix.facts is None
        if todo and not collect and not self._converted_already():
            self._make_in_one_pass(todo)
        elif todo or collect:
            plans = self._convert()
            if self.imatrix is not None and collect:
                self.imatrix.collect(
                    self.snapshot, self.options, self.run, self.converted, self.env
                )
            if todo:
                self._quantize(todo, plans)
            self._remove_whole()
        ordered = tuple(self.artifacts[name] for name in self.options.types)
        for artifact in ordered:
            for note in artifact.notes:
                log.warning("%s: %s", artifact.type, note)
            if self.options.modelfile:
                about.write_modelfile(self.run.folder, artifact, self.mmproj)
        return Output(
            ordered,
            self._unquantized,
            about.provenance(self.source, self.options, self.whole, self.towers, self.imatrix),
            self._extras(ordered),
        )

    def _converted_already(self) -> bool:
        """Whether there is a converted file to quantize."""
        if self.source.gguf:
            return True
        known = self.run.done("convert", self.key) is not None
        return known and self.header.is_file() and self.converted.is_file()

    def _unquantized(self) -> Path:
        """The unquantized file, for what needs it after all."""
        if self.source.remote:
            raise InputError(
                f"the unquantized model is needed, and the weights of {self.source.id} were not"
                " kept: run again with download='whole' (--download whole)"
            )
        if not self.converted.is_file():
            self._convert_anew([])
        return self.converted

    def _feed(self) -> Feed | None:
        """The source's files, if they are on the Hub still: two at a time where there is room."""
        if not self.source.remote:
            return None
        folder = self.run.jobs / "shards"
        room = free_bytes(self.run.folder) - sum(
            estimated(self.source, name) for name in self.options.types
        )
        return Feed(self.source, folder, 2 if room > 3 * largest(self.source) else 1)

    def _make_in_one_pass(self, types: list[str]) -> None:
        key = key_of(self.key, self.imatrix.key if self.imatrix else "", self.options.quantizing())
        facts = one_pass.OnePass(
            self.source,
            self.options,
            self.run,
            self.header,
            self.stem,
            self.whole,
            key,
            self.imatrix.path if self.imatrix else None,
            self._feed(),
        ).make(types, lambda answer: self._finished(answer, answer["plan"]))
        self._note(facts)
        if self.converted.is_file():
            self._record_converted(facts)

    def _note(self, facts: dict[str, Any]) -> None:
        """Say what the converter has found."""
        for note in filter(None, (facts["tokens"], facts.get("ends"))):
            log.warning("%s: %s", self.source.id, note)

    def _record_converted(self, facts: dict[str, Any]) -> None:
        """Note the converted file."""
        noted = {name: facts[name] for name in ("tokens", "ends", "intermediate")}
        self.run.record("convert", self.key, [self.converted], noted)

    # --- converting

    def _convert(self) -> dict[str, dict[str, Any]]:
        """The unquantized file, and each type's plan."""
        if self.source.gguf:
            return self._plan_file()
        facts = self.run.done("convert", self.key)
        if facts is not None and self.header.is_file() and self.converted.is_file():
            facts = {**facts, "plans": self._plan_again()}
        else:
            facts = self._convert_anew(list(self.options.types))
        self._note(facts)
        return {planned["type"]: planned for planned in facts["plans"]}

    def _plan_file(self) -> dict[str, dict[str, Any]]:
        """The plans of the asked types, of a source that is a GGUF file."""
        source, options, run = self.source, self.options, self.run
        if said := requantize.note(source):
            log.warning("%s: %s", source.id, said)
        plans = requantize.plans(
            source,
            options,
            list(options.types),
            folder=self.snapshot.folder,
            header=self.header,
            logs=run.logs,
        )
        self._refuse(plans)
        if "F16" in options.types and source.dtype in ("F32", "BF16"):
            process.call(
                "autoquant.formats.gguf:refuse_larger",
                log=run.logs,
                env=self.env,
                paths=[str(self.snapshot.folder / name) for name in source.weights],
                largest=FLOAT16,
            )
        return {planned["type"]: planned for planned in plans}

    def _plan_again(self) -> list[dict[str, Any]]:
        """The plans of the asked types, of a file that an earlier run has converted."""
        plans: list[dict[str, Any]] = process.call(
            "autoquant.backends.llamacpp.quantize:plans",
            log=self.run.logs,
            env=self.env,
            header=str(self.header),
            types=list(self.options.types),
            imatrix=self.options.imatrix != "none",
            imatrix_file=str(self.options.given_imatrix or ""),
            **self.options.quantizing(),
        )
        self._refuse(plans)
        return plans

    def _refuse(self, plans: list[dict[str, Any]]) -> None:
        """Refuse types that cannot be, or do not fit."""
        options, run = self.options, self.run
        refuse(
            plans,
            intermediate=0,
            other=0,
            room=free_bytes(run.folder),
            imatrix=options.imatrix != "none",
            finished=set(self.artifacts),
        )

    def _convert_anew(self, types: list[str]) -> dict[str, Any]:
        """Convert, with the plans of ``types``."""
        source, run = self.source, self.run
        log.info(
            "converting %s (%s, %s million parameters) to %s",
            source.id,
            source.architecture,
            f"{source.parameters / 1e6:,.0f}",
            self.whole,
        )
        if not source.pickle:  # a pickle's values are looked at while they are converted
            process.call(
                "autoquant.backends.folder:finite",
                log=run.logs,
                model=str(source.folder),
                largest=FLOAT16 if "F16" in (self.whole, *self.options.types) else 0.0,
            )
        # write beside its place and rename: a killed run must not leave half a file under the final
        # name
        part = run.work / f"{self.stem}-{self.whole}.part.gguf"
        with Bar("convert") as progress:
            facts = convert(
                source,
                self.options,
                header=self.header,
                target=part,
                logs=run.logs,
                types=types,
                outtype=self.whole.lower(),
                room=free_bytes(run.folder),
                need={"other": 0, "intermediate": 0 if self.whole in types else 1},
                only_plan=False,
                progress=progress,
            )
        os.replace(part, self.converted)
        self._record_converted(facts)
        return facts

    def _remove_whole(self) -> None:
        """Take the converted file away where only its shards were asked for."""
        options = self.options
        if not (self.kept and options.split_bytes) or options.keep_intermediate:
            return
        named = {stored.name for one in self.artifacts.values() for stored in one.files}
        if self.converted.name not in named:
            self.converted.unlink(missing_ok=True)

    # --- quantizing

    def _quantize(self, todo: list[str], plans: dict[str, dict[str, Any]]) -> None:
        """Make and verify the types, as many at a time as memory allows."""
        options, run = self.options, self.run
        fit = memory_available() // (WORKER_MEMORY + 4 * self.source.largest_tensor)
        # the slowest first, so that the last one to finish is a short one
        slow = sorted(todo, key=lambda n: (not n.startswith("IQ"), TYPES[n].bits_per_weight))
        with Bar(f"quantize {', '.join(todo)}") as progress:
            process.call(
                "autoquant.backends.llamacpp.check:quantize_and_verify",
                log=run.logs,
                env=self.env,
                progress=progress,
                on_part=lambda answer: self._finished(answer, plans[answer["type"]]),
                source=str(self.converted),
                header=str(self.header),
                jobs=[self._job(name, plans[name]) for name in slow],
                at_once=max(1, min(len(todo), options.cores, fit)),
                cores=options.cores,
                imatrix=str(self.imatrix.path if self.imatrix else ""),
                dry=options.quantizing(),
                split=options.split_bytes,
            )

    def _job(self, name: str, planned: dict[str, Any]) -> dict[str, Any]:
        """One type to make; the converter has written it already if it is the whole file's."""
        target, ready = self.run.work / f"{self.stem}-{name}.gguf", name == self.whole
        split = self.options.split_bytes
        if ready and split and self.converted.stat().st_size > split:
            shutil.copyfile(self.converted, target)
        elif ready:
            target = self.converted
        return {
            "type": name,
            "target": str(target),
            "plan": {**planned, "bytes": planned["converted_bytes"]} if ready else planned,
            "ready": ready,
            "imatrix": TYPES[name].imatrix != "no",
        }

    def _finished(self, answer: dict[str, Any], planned: dict[str, Any]) -> None:
        """Move one verified type into place and note it; runs while the others are being made."""
        run, name, note = self.run, answer["type"], fallback_note(planned)
        if answer["repeats"] is not None and self.source.remote:
            log.warning("%s: repeats one token; the unquantized model was not asked", name)
        elif answer["repeats"] is not None:
            one_pass.compare_repeating(
                answer,
                self._unquantized(),
                logs=run.logs,
                env=self.env,
                threads=self.options.cores,
            )
        artifact = Artifact(
            type=name,
            files=tuple(Stored(*stored) for stored in answer["files"]),
            bits_per_weight=answer["bits_per_weight"],
            notes=(note,) if note else (),
            checks=tuple(Check(*seen) for seen in answer["checks"]),
            facts={
                "imatrix": self.imatrix is not None and TYPES[name].imatrix != "no",
                "nominal": TYPES[name].bits_per_weight,
            },
        )
        outputs = [self._placed(stored.name) for stored in artifact.files]
        hashes = {stored.name: stored.sha256 for stored in artifact.files}
        run.record(f"quantize {name}", self.keys[name], outputs, artifact.to_json(), hashes)
        self.artifacts[name] = artifact
        run.passed(artifact)

    def _placed(self, name: str) -> Path:
        """A finished file in the run's folder, moved there if need be."""
        made = next((one for one in (self.run.work, self.run.jobs) if (one / name).is_file()), None)
        return self.run.finish(made / name) if made else self.run.folder / name

    # --- about

    def _extras(self, artifacts: tuple[Artifact, ...]) -> tuple[str, ...]:
        """The files beside the artifacts."""
        made_here = self.imatrix is not None and self.imatrix.path.parent == self.run.folder
        whole = [one for one in artifacts if self.options.modelfile and len(one.files) == 1]
        modelfiles = (f"{one.name.removesuffix('.gguf')}.Modelfile" for one in whole)
        own = [self.mmproj] if self.mmproj else []
        return (*own, *(["imatrix.gguf"] if made_here else []), *modelfiles)

"""One GGUF run, step by step: converting, the importance matrix, quantizing and checking."""

from __future__ import annotations

import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from autoquant.backends.llamacpp import converter as llama
from autoquant.backends.llamacpp.types import UNQUANTIZED
from autoquant.core.files import key_of
from autoquant.core.journal import RunFolder
from autoquant.core.records import COMPARED, Artifact, Snapshot
from autoquant.fisher.table import Sensitivities
from autoquant.methods.base import Output
from autoquant.methods.gguf import about, mmproj, one_pass, requantize, sizes, streaming
from autoquant.methods.gguf import imatrix as imatrices
from autoquant.methods.gguf.convert import precision
from autoquant.methods.gguf.feed import Feed
from autoquant.methods.gguf.imatrix import Imatrix
from autoquant.methods.gguf.one_pass import Kept, OnePass
from autoquant.methods.gguf.options import FISHER, GgufOptions
from autoquant.methods.gguf.sending import Sending
from autoquant.methods.gguf.sized import Chosen, Sized
from autoquant.methods.gguf.sizes import RUN_BY
from autoquant.methods.gguf.streaming import Way
from autoquant.source.merge import made_of

log = logging.getLogger(__name__)
TO_RUN = "to run"  # the journal's step of a file that stands for the unquantized one


class Work:
    """One run: its keys and files, and its steps in order (:meth:`output`)."""

    def __init__(self, snapshot: Snapshot, options: GgufOptions, run: RunFolder) -> None:
        self.snapshot, self.options, self.run, self.source = snapshot, options, run, snapshot.source
        self.env = llama.environment(llama.locate(options.converter))
        outtype = self.source.dtype.lower()
        if not self.source.gguf:
            outtype = precision(self.source, options)
        # the type of the converted file, which may be one of the asked files
        self.whole = outtype.upper()
        self.stem = self.source.name
        self.kept = options.keep_intermediate or self.whole in options.types
        place = run.folder if self.kept else run.work
        self.converted = place / f"{self.stem}-{self.whole}.gguf"
        if self.source.gguf:  # it is there already
            self.kept = False
            self.converted = snapshot.folder / self.source.gguf
        self.header = run.ours / "header.gguf"
        self.key = key_of(
            snapshot.sha256, llama.installed_version(), outtype, options.pre_tokenizer, self.stem
        )
        self.way = Way()
        if self.source.remote:
            self.way = streaming.choose(self.source, options, run.folder)
            run.keeps = True
        self.imatrix = imatrices.find(
            self.source,
            options,
            run,
            self.key,
            self.way,
            in_blocks=streaming.collects_in_blocks(self.source),
        )
        self.types = options.types
        self.sized = Sized(
            snapshot, options, run, self.env, self.header, self.key, self.whole, self.imatrix
        )
        self.chosen = Chosen({}, {})
        self.artifacts: dict[str, Artifact] = {}
        # the name of the file of what sees or hears, and what is to be said of it
        self.mmproj = self.towers = ""

    def _key(self, name: str) -> str:
        """What a type's file depends on."""
        chosen = self.chosen.plans.get(name)
        return key_of(
            self.key,
            self._imatrix_key(name),
            self.options.quantizing(),
            self.options.split_size,
            *([chosen["tensors"], chosen["keys"]] if chosen else ()),
        )

    def _imatrix_key(self, name: str) -> str | None:
        """What a type depends on of the importance matrix: nothing, if it does not use it."""
        uses = name not in UNQUANTIZED and name != "Q8_0"
        return self.imatrix.key if self.imatrix and uses else None

    def output(self) -> Output:
        """Do what the journal does not know as done."""
        if self.options.size:
            self._settle()
        for name in self.types:
            facts = self.run.done(f"quantize {name}", self._key(name))
            made = self.chosen.told(Artifact.from_json(facts)) if facts else None
            # what was deleted here is not made anew only where it is wanted
            elsewhere = self.options.upload if self.options.delete_uploaded else None
            if made is not None and made.facts.get("deleted", elsewhere) == elsewhere:
                self.artifacts[name] = made
                if COMPARED not in made.facts:
                    self.run.passed(made)
        if self._todo():
            streaming.refuse_without_room(self.source, self.options, self.run.folder, self.way)
        if not self.source.remote:
            self._towers()
        self._have_imatrix()
        if todo := self._todo():
            self._make(todo)
        if self.source.remote and not self.towers:
            if mmproj.reads(self.source, self.options, self.run, self.key):
                self._convert([])  # its types were made, and then a run was killed
            else:
                self._towers()
        if self.kept and self.options.split_bytes and not self.options.keep_intermediate:
            named = {stored.name for one in self.artifacts.values() for stored in one.files}
            if self.converted.name not in named:  # only its shards were asked for
                self.converted.unlink(missing_ok=True)
        shutil.rmtree(self.run.jobs, ignore_errors=True)  # what a killed run has left there
        self.run.record(streaming.MADE, key_of(sizes.asked(self.options)), [], {})
        ordered = tuple(self.artifacts[name] for name in self.types)
        for artifact in ordered:
            for note in artifact.notes:
                log.warning("%s: %s", artifact.type, note)
            if self.options.modelfile:
                about.write_modelfile(self.run.folder, artifact, self.mmproj)
        return Output(
            ordered,
            self._unquantized,
            about.provenance(
                self.source,
                self.options,
                self.whole,
                self.towers,
                self.imatrix,
                self.sized.in_words(),
            ),
            about.extras(self.options, ordered, self.mmproj, self._made_here()),
            self._stand_in(),
            self.key,
        )

    def _stand_in(self) -> Path | None:
        """The converted file, where it has the very weights of a source that is not here."""
        lossless = self.options.precision == "auto"
        here = self.source.remote and lossless and self._converted_already()
        return self.converted if here else None

    def _towers(self, folder: Path | None = None) -> None:
        """The file of what sees or hears, from ``folder`` if the source's does not have it."""
        self.mmproj, self.towers = mmproj.make(
            self.source,
            self.options,
            self.run,
            self.key,
            folder,
            made_of(self.source) if self.snapshot.unmade and folder is None else None,
        )

    def _todo(self) -> list[str]:
        """The types that are not made yet."""
        return [name for name in self.types if name not in self.artifacts]

    def _settle(self) -> None:
        """Choose the types of the files of a size, unless the journal knows them."""
        chosen = self.sized.known()
        if chosen is None:
            self.sized.refuse()
            self._have_imatrix()
            chosen = self.sized.choose()
        self.chosen = chosen
        self.types = chosen.types

    def sensitivities(self) -> Sensitivities:
        """The table alone, measured unless the journal knows it."""
        self._have_imatrix()
        return self.sized.table(self.sized.model())

    # --- the importance matrix, and other things that run the model

    def _have_imatrix(self) -> None:
        if self.imatrix is not None and self.imatrix.facts is None:
            self._collect(self.imatrix)

    def _collect(self, imatrix: Imatrix) -> None:
        """Collect the importance matrix on the unquantized file, or where there is no room for that
        on one of Q8_0, which is an artifact if it was asked for.
        """
        if self.options.imatrix == FISHER:
            self.sized.gradients()
            return
        if imatrix.in_blocks:
            imatrix.collect(self.snapshot, self.options, self.run, None, self.env, self.way)
            return
        asked = RUN_BY in self.types and not self.options.delete_uploaded
        if not (self.way.twice and asked):
            one_pass.clear(self.run)
        if not self.way.twice:
            model = self._unquantized()
        elif asked:
            if RUN_BY in self._todo():
                self._convert([RUN_BY])
            model = self.artifacts[RUN_BY].path_in(self.run.folder)
        else:
            model = self.run.work / f"{self.stem}-{RUN_BY}.gguf"
            if self.run.done(TO_RUN, self.key) is None:
                self._convert([], Kept(RUN_BY, model))
        imatrix.collect(self.snapshot, self.options, self.run, model, self.env, self.way)
        if self.way.twice and model.parent == self.run.work:
            model.unlink()
            self.run.forget(TO_RUN)

    def _unquantized(self) -> Path:
        """The unquantized file, for what needs it."""
        if not self._converted_already():
            self._convert([], Kept(self.whole, self.converted))
        return self.converted

    def _converted_already(self) -> bool:
        """Whether there is a converted file."""
        if self.source.gguf:
            return True
        known = self.run.done("convert", self.key) is not None
        return known and self.header.is_file() and self.converted.is_file()

    # --- making

    def _make(self, todo: list[str]) -> None:
        """Make types: of the unquantized file, if there is one; else straight from the source."""
        shutil.rmtree(self.run.jobs / one_pass.KEPT, ignore_errors=True)  # of another way
        if self._converted_already():
            self._quantize(todo)
            return
        one_pass.take_back(self.run, [f"{self.stem}-{name}" for name in todo])
        # it is asked for, or something will run it
        keep = self.options.keep_intermediate or (self.way.stream and self.way.runs == self.whole)
        there = self.whole in todo and not self.options.split_bytes
        self._convert(todo, Kept(self.whole, self.converted) if keep and not there else None)

    def _convert(self, types: list[str], kept: Kept | None = None) -> None:
        """One pass over the source."""
        feed = self._feed(types)

        one = self._pass(kept)

        def then(facts: dict[str, Any]) -> None:
            if kept is not None and kept.path == self.converted:
                self.run.record("convert", self.key, [kept.path], _noted(facts))
            elif kept is not None:
                self.run.record(TO_RUN, self.key, [kept.path], {})
            if feed is not None:  # what has stayed of its files is all there will be
                self._towers(feed.spared if feed.spare else None)

        finished = partial(self._finished, one.sending)
        facts = one.convert(types, kept, feed, finished, then)
        for note in filter(None, (facts["tokens"], facts.get("ends"))):
            log.warning("%s: %s", self.source.id, note)
        if kept is None and self.converted.is_file():  # it was asked for
            self.run.record("convert", self.key, [self.converted], _noted(facts))

    def _quantize(self, types: list[str]) -> None:
        """One pass over a GGUF file: the source's own, or the converted one."""
        plans = requantize.plans_of_file(
            self.source,
            self.options,
            [name for name in self.types if name not in self.chosen.plans],
            folder=self.snapshot.folder,
            header=self.header,
            run=self.run,
            env=self.env,
            chosen=self.chosen.plans,
            finished=set(self.artifacts),
        )
        paths = [self.converted]
        if self.source.gguf:
            paths = [self.snapshot.folder / name for name in self.source.weights]
        there = None if self.options.split_bytes else self.converted
        one = self._pass(None)
        one.quantize(types, plans, paths, there, partial(self._finished, one.sending))

    def _pass(self, kept: Kept | None) -> OnePass:
        """What is made, with what all of it depends on."""
        imatrix = self.imatrix if self.imatrix is not None and self.imatrix.facts else None
        key = key_of(
            self.key,
            imatrix.key if imatrix else "",
            kept.type if kept else "",
            self.options.quantizing(),
            self.options.split_size,
            [[plan["tensors"], plan["keys"]] for plan in self.chosen.plans.values()],
        )
        return OnePass(
            self.source,
            self.options,
            self.run,
            self.env,
            self.header,
            self.stem,
            self.whole,
            key,
            imatrix.path if imatrix else None,
            Sending(self.run, self.options, key, self.chosen.against),
            made_of(self.source) if self.snapshot.unmade else None,
            self.chosen.plans,
        )

    def _feed(self, types: list[str]) -> Feed | None:
        """The source's files, if they are on the Hub still."""
        if not self.source.remote:
            return None
        place = self.run.jobs / "shards" if types else self.run.jobs / one_pass.KEPT / "shards"
        return Feed(self.source, place, mmproj.reads(self.source, self.options, self.run, self.key))

    def _finished(self, sending: Sending, answer: dict[str, Any]) -> None:
        """Move one verified type into place and note it."""
        run, name = self.run, answer["type"]
        sending.wait()
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
        artifact = about.artifact(
            answer,
            files=sending.files(f"{self.stem}-{name}-0"),
            imatrix=self.imatrix is not None,
            uploaded=self.options.upload,
            more=self.chosen.facts(name),
        )
        gone = sending.gone
        outputs = [self._placed(one.name) for one in artifact.files if one.name not in gone]
        hashes = {stored.name: stored.sha256 for stored in artifact.files}
        run.record(f"quantize {name}", self._key(name), outputs, artifact.to_json(), hashes)
        self.artifacts[name] = artifact
        if COMPARED not in artifact.facts:
            run.passed(artifact)

    def _placed(self, name: str) -> Path:
        """A finished file in the run's folder, moved there if need be."""
        made = next((one for one in (self.run.work, self.run.jobs) if (one / name).is_file()), None)
        return self.run.finish(made / name) if made else self.run.folder / name

    def _made_here(self) -> tuple[str, ...]:
        """Files of this folder that types are made by."""
        own = self.imatrix is not None and self.imatrix.path.parent == self.run.folder
        return (*(["imatrix.gguf"] if own else []), *self.sized.files())


def _noted(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: facts[name] for name in ("tokens", "ends", "intermediate")}

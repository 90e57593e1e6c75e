"""Forms for notebooks: a method's options as widgets in Jupyter and as a ``# @param`` cell in
Colab, both from the one declaration.

A notebook has one cell of plain assignments, which Colab draws as a form and papermill fills in.
``form("gguf", globals())`` reads them: in Jupyter it shows them as widgets that start with those
values, in Colab (whose form is the cell itself) as a summary. Widgets hold values and cells do the
work: ``form.values()`` is read when a cell runs.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoquant import source
from autoquant.calibration import CalibrationOptions
from autoquant.core import options
from autoquant.core.errors import InputError
from autoquant.core.language import use
from autoquant.core.options import MethodOptions, UploadOptions
from autoquant.core.progress import in_notebook
from autoquant.methods import METHODS
from autoquant.notebook import choosing, summary, uploading
from autoquant.notebook.comparing import CompareOptions
from autoquant.notebook.form_options import (
    HIDDEN,
    OTHERS,
    TITLES,
    calibrates,
    declared,
    entries,
    meant,
)
from autoquant.notebook.page import (
    LARGER,
    MODEL,
    SMALLER,
    Note,
    Question,
    can_stop,
    drive,
    in_colab,
    login,
    question,
    reachable,
    reachable_pair,
    stoppable,
)

if TYPE_CHECKING:
    from autoquant.result import Result
from autoquant.notebook.cells import about, cell, more, plain
from autoquant.notebook.files import Files
from autoquant.notebook.many import BatchOptions
from autoquant.notebook.planned import Plans
from autoquant.notebook.refusals import refused
from autoquant.notebook.widgets import Widgets, stripped

# what notebooks use: what they need of autoquant.notebook.page is here too, so that one import is
# enough
__all__ = [
    "KEPT",
    "LARGER",
    "MODEL",
    "SMALLER",
    "Files",
    "Form",
    "Note",
    "Plans",
    "Question",
    "about",
    "can_stop",
    "cell",
    "declared",
    "entries",
    "form",
    "in_colab",
    "login",
    "more",
    "plain",
    "question",
    "reachable",
    "reachable_pair",
    "stoppable",
    "use",
]


BY_WEIGHTS = "eval_by_weights"
KEPT = "_autoquant_forms"  # the forms of a notebook, in its own namespace


def form(name: str, namespace: MutableMapping[str, Any]) -> Form:
    """The form of a method, or of "all" methods, that starts with the values of a notebook's
    parameters cell. Show it as a cell's last line.

    namespace: ``globals()`` of the notebook; the form is remembered there, so that what was typed
    stays when the cells above run again. A value changed in the parameters cell itself goes before
    what was typed. Raises InputError where that cell has not been run.
    """
    values = {one: namespace[one] for one in declared(name).model_fields if one in namespace}
    if not values:
        raise InputError(
            "form: this kernel has not run the form yet: run the folded cell above"
            f" ({TITLES.get(name) or METHODS[name].title}) and those below it"
        )
    kept = namespace.setdefault(KEPT, {})
    earlier: Form | None = kept.get(name)
    typed = (
        {}
        if earlier is None
        else {
            one: value
            for one, value in earlier.typed().items()
            if values.get(one) == earlier.given.get(one)
        }
    )
    kept[name] = Form(name, values, typed)
    made: Form = kept[name]
    return made


class Form:
    """A form's values and, in Jupyter, its widgets. ``given`` are those of the parameters cell,
    ``initial`` what the form begins with.
    """

    def __init__(self, name: str, initial: Mapping[str, Any], typed: Mapping[str, Any]) -> None:
        self.name, self.cls, self.given = name, declared(name), dict(initial)
        shown, folded = entries(name)
        self.fields = dict([*shown, *folded])
        self.folded = [one for one, _ in folded]
        settled = {  # no question, yet a value that is given counts, and is refused if it is wrong
            one: self.cls.model_fields[one]
            for one in initial
            if one not in self.fields and one not in HIDDEN.get(name, ())
        }
        self.initial = {
            one: plain(
                tuple(value)
                if isinstance(value := initial.get(one, plain(field.default)), list)
                else value
            )
            for one, field in {**self.fields, **settled}.items()
        }
        if name == "all" and not self.initial["methods"]:  # who names types wants them made
            self.initial["methods"] = ",".join(self._implied())
        self.recommended: dict[str, dict[str, Any]] = {}
        self.one_by_one = choosing.OthersGoOn(1)
        self.widgets: Widgets | None = None
        if in_notebook() and not in_colab():
            self.widgets = Widgets(self, {**self.initial, **typed})
            self.widgets.changed()

    def _implied(self) -> list[str]:
        """The methods whose options the parameters cell has changed."""
        return [
            method
            for method in METHODS
            if any(
                one.startswith(f"{method}_") and self.initial[one] != plain(field.default)
                for one, field in self.fields.items()
            )
        ]

    def typed(self) -> dict[str, Any]:
        """What the widgets say now where it is not what they began with."""
        return self.widgets.typed() if self.widgets else {}

    def raw(self) -> dict[str, Any]:
        """All values as they stand there, but for what has no meaning beside the others."""
        now = {**self.initial, **self.typed()}
        own: Mapping[str, Any] = {}
        if self.name in METHODS:
            own = METHODS[self.name].notebook_defaults
        beside = stripped(now)
        # what has no meaning counts as not given, where widgets show it greyed out; in a plain cell
        # it is refused, unless it is the notebook's own default
        for one, value in now.items():
            if (self.widgets or (one in own and value == own[one])) and not meant(
                self.name, one, beside
            ):
                now[one] = plain(self.cls.model_fields[one].default)
        return now

    @property
    def options(self) -> Any:
        """All values, checked: ``form.options.bits``. Raises InputError for one that cannot be."""
        return options.build(self.cls, self.raw())

    @property
    def model(self) -> str:
        """The model that is asked for."""
        return str(self.raw()["model"]).strip()

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that are named, checked. Raises InputError for one that there is not."""
        return (self.name,) if self.name != "all" else tuple(self.options.methods)

    def chosen(self, model: str) -> tuple[str, ...]:
        """The methods to run on ``model`` (what :func:`reachable` gave): those that the form names,
        or what is best for its device, which is said. Of several, those that this model or machine
        cannot have are left out, and why is said; one alone is left to say so itself. Raises
        InputError where nothing fits.
        """
        asked = self.methods
        if not asked:
            said = choosing.advised(model, self.options.device, self.options.context)
            taken = choosing.best(said)
            self.recommended = {taken.method: choosing.made_by(taken)}
            choosing.show(choosing.said_of(said, taken))
            asked = (taken.method,)
        if len(asked) > 1:
            asked = choosing.possible(model, {one: self.values(one) for one in asked})
        self.one_by_one = choosing.OthersGoOn(len(asked))
        return asked

    def values(self, method: str = "") -> dict[str, Any]:
        """The options of a method as keyword arguments for its function, checked:
        ``autoquant.gguf(form.model, **form.values())``.

        Only what differs from the defaults is in it, and nothing about uploading (see
        :meth:`upload`). Raises InputError with the same line as the function would.
        """
        method = method or self._only()
        chosen, cls = self._chosen(method), METHODS[method].Options
        return {
            one: value
            for one, value in chosen.items()
            if value != cls.model_fields[one].default
            and (one == "base_model" or one not in UploadOptions.model_fields)
        }

    def shared(self, method: str) -> dict[str, Any]:
        """The same for another method that is run beside this form's on the same model: what both
        have of the base, the texts to calibrate and to measure on, and how much of them.
        """
        taken = METHODS[method].Options.model_fields.keys() & CalibrationOptions.model_fields
        return {one: value for one, value in self.values().items() if one in taken}

    def beside(self, **changed: Any) -> dict[str, Any]:
        """The same for a run that is compared with this form's, with some options changed."""
        others = METHODS[self._only()].comparison_variants
        without = others.without if others else ()
        kept = {one: value for one, value in self.values().items() if one not in without}
        return {**kept, **changed}

    def _only(self) -> str:
        """The method that is meant where none is said."""
        named = self.methods or tuple(self.recommended)
        if not named:
            raise InputError("methods: none is named; name one, or call form.chosen(model) first")
        return named[0]

    def _chosen(self, method: str) -> dict[str, Any]:
        """Every option of a method, checked."""
        built = self.options
        cls = METHODS[method].Options
        recommended = {} if self.methods else self.recommended.get(method, {})
        # what is hidden is as the method has it
        own = [
            one
            for one in cls.model_fields
            if self.name != "all"
            or (one in MethodOptions.model_fields and one not in HIDDEN["all"])
        ]
        given = {one: value for one, value in built if one in own}
        if self.name == "all":
            given.update(
                {
                    one.removeprefix(f"{method}_"): getattr(built, one)
                    for one in self.fields
                    if one.startswith(f"{method}_")
                }
            )
            given.update(recommended)
            # methods that are made at once stand in one table, by one engine
            if len(self.methods) > 1 and built.evaluate != "off" and BY_WEIGHTS in cls.model_fields:
                given[BY_WEIGHTS] = True
            if "imatrix" in recommended and built.calibration != "builtin":
                given["imatrix"] = built.calibration
            # builtin leaves each method its own default text: EXL2 has another
            if built.calibration != "builtin" and calibrates(method, self.raw()):
                given["calibration"] = built.calibration
        try:
            built_by_method: dict[str, Any] = options.build(cls, given).model_dump()
            return built_by_method
        except InputError as error:
            raise self._renamed(method, error) from None

    def _renamed(self, method: str, error: InputError) -> InputError:
        """A method's error, with its option as it is called in this form."""
        return (
            InputError(f"{method}_{error}")
            if self.name == "all" and f"{method}_{str(error).partition(':')[0]}" in self.fields
            else error
        )

    def upload(self, *results: Result) -> Any:
        """Upload runs if the form names a repository; otherwise say how. Returns the receipts,
        which show themselves; nothing is sent twice. Where no token is found, a field for one.
        """
        lines = list[str]()
        for result in results:
            given = {
                one: value
                for one, value in self._chosen(result.method).items()
                if one in UploadOptions.model_fields
            }
            said = uploading.upload(result, given, self)
            if not isinstance(said, Note):  # a field for a token
                return said
            lines += said.lines
        return Note(*dict.fromkeys(lines))

    def check(self) -> None:
        """Raise InputError if a value cannot be as it is, by all that a run looks at beside the
        model: options that exclude each other, texts that are not there.
        """
        self.options  # noqa: B018 (looked at by being made)
        if self.name in OTHERS:
            return
        for method in self.methods:
            asked = options.build(METHODS[method].Options, self._chosen(method))
            reason = refused(method, asked)
            if reason:
                raise self._renamed(method, InputError(reason))

    def folder(self, model: str, method: str = "", **values: Any) -> Path | None:
        """Where a run on ``model`` (what :func:`reachable` gave) writes: None for the method's own
        default. ``values``: options that the form of comparisons does not know.

        Mounts Google Drive if that was asked for. On Drive, and with several methods, each run has
        a folder of its own, named after model and method.
        """
        out = str(self.raw()["out"]).strip()
        if out != "drive" and (self.name in METHODS or not out):
            return Path(out) if out else None
        entry = METHODS[method or self._only()]
        base = drive() / "AutoQuant" if out == "drive" else Path(out)
        resolved = source.resolve(model, allow_pickle=bool(self.raw().get("allow_pickle", False)))
        complete = entry.resolve_defaults(
            resolved,
            options.build(
                entry.Options, values if self.name == "compare" else self.values(entry.name)
            ),
        )
        return base / f"{resolved.name}-{entry.folder_suffix(complete)}"

    def plans(self) -> list[tuple[str, str, dict[str, Any]]]:
        """The runs to plan: method, model and options."""
        if self.name not in OTHERS:
            chosen = self.methods or self.chosen(self.model)
            return [(method, self.model, self.values(method)) for method in chosen]
        asked: CompareOptions | BatchOptions = self.options
        return asked.runs()

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        show: Any = display
        text: Any = HTML
        if self.widgets is not None:
            self.widgets.look_at_models()
            show(self.widgets.box)
            return
        self.check()  # in Colab the parameters cell is the form: here is what it says
        show(text(f"<p>{summary.of(self)}</p>"))
        if self.name in METHODS and self.options.device:  # the button of Jupyter's form
            show(*choosing.looked_up(self.name, self.model, self.options))

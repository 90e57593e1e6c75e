"""From a device to what is made for it: the largest file that runs whole there."""

from __future__ import annotations

import logging

from autoquant.core.errors import InputError
from autoquant.core.records import Source
from autoquant.display.tables import size as in_words
from autoquant.methods.gguf.options import GgufOptions
from autoquant.methods.size import BPW, Size
from autoquant.sizing import advice, devices

log = logging.getLogger(__name__)
PLENTY = "Q8_0"  # practically lossless: more bits are not worth their memory


def fitted(source: Source, options: GgufOptions) -> GgufOptions:
    """The options with a size that runs whole on the device that ``fits`` names, or with Q8_0 where
    that does; as they are if it names none. Sizes and types that are given are looked at. Raises
    InputError for a device that is not known, a context beyond the model's, or what does not fit.
    """
    if not options.fits:
        return options
    if source.gguf:
        raise InputError(
            f"fits: {source.id} is a GGUF file, of which no types are chosen; `autoquant advise`"
            " tells which of its types fit"
        )
    device = devices.device(options.fits)
    given = options.types if options.types != GgufOptions.model_fields["types"].default else ()
    room, known = advice.room_for(
        source,
        device,
        given or (PLENTY,),
        options.context or None,
        options.kv_type,
        pre_tokenizer=options.pre_tokenizer,
        mmproj=options.mmproj,
    )
    wanted = {name: known[name] for name in given if name in known}
    for one in map(Size.parse, options.size):
        # of a type or of bits per weight it is only about known
        about = 1.02 if one.type or one.unit == BPW else 1
        wanted[str(one)] = int(one.bytes(source.parameters) / about)
    for name, size in wanted.items():
        if size > room:
            raise InputError(
                f"fits: {name} is {in_words(size)}, and {device.name} has {in_words(room)} for"
                " weights at this context. Leave it out, or ask for less"
            )
    if wanted:
        return options
    if known[PLENTY] <= room:
        log.warning(
            "%s: %s fits whole on %s (%s of %s), and loses practically nothing",
            source.id, PLENTY, device.name, in_words(known[PLENTY]), in_words(room),
        )  # fmt: skip
        return options.model_copy(update={"types": (PLENTY,)})
    log.info("%s has %s for the weights of %s", device.name, in_words(room), source.id)
    return options.model_copy(update={"size": (f"{room}B",)})

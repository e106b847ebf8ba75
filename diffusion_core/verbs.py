"""Command lines of a few verbs with ``key=value`` options, such as ``python -m policy.data inspect human``."""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import takewhile
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from diffusion_core.errors import WorkbenchError


@dataclass(frozen=True)
class Verb:
    """What a verb takes and does.

    Args:
        options: a dataclass of its options; what has no default is `omegaconf.MISSING`.
        run: ``run(options)``.
        bare: how many of its first options may be given without their names.
    """

    options: type
    run: Callable[[Any], None]
    bare: int = 0


def parse(program: str, name: str, verb: Verb, words: Sequence[str]) -> Any:
    """Read words into the verb's dataclass.

    Raises:
        WorkbenchError: an unknown, ill-typed or missing option.
    """
    types = {f.name: f.type for f in fields(verb.options)}
    names = list(types)
    bare = list(takewhile(lambda word: word.partition("=")[0] not in names, words[: verb.bare]))
    words = [f"{key}={word}" for key, word in zip(names, bare, strict=False)] + list(words[len(bare) :])
    for word in words:
        key = word.partition("=")[0]
        if "=" not in word or key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {near[0]}=...?" if near else f"see {program} --help."
            raise WorkbenchError(f"{name}: got {word!r}; expected key=value with one of {', '.join(names)}: {hint}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(verb.options), OmegaConf.from_dotlist(words))
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise WorkbenchError(f"{name}: got no {', '.join(missing)}; expected it: add {missing[0]}=...")
        options = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        key, reason = getattr(error, "full_key", None) or "option", str(error).splitlines()[0]
        like = f" like {key}=[a,b]" if "list" in str(types.get(key)) else ""
        raise WorkbenchError(
            f"{name}: got a bad {key}: {reason}; expected {types.get(key, 'key=value')}{like}."
        ) from error
    assert isinstance(options, verb.options)
    return options


def run(program: str, usage: str, verbs: Mapping[str, Verb], words: Sequence[str]) -> int:
    """Run one verb; 0 if it went well, 2 with one line on stderr if the user can mend it, 130 after Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if not words or {"-h", "--help", "help"} & set(words):
        sys.stdout.write(usage)
        return 0
    name = words[0]
    try:
        if name not in verbs:
            near = difflib.get_close_matches(name, verbs, n=1)
            hint = f"did you mean {near[0]}?" if near else f"see {program} --help."
            raise WorkbenchError(f"got verb {name!r}; expected one of {', '.join(verbs)}: {hint}")
        verbs[name].run(parse(program, name, verbs[name], words[1:]))
    except WorkbenchError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return 0

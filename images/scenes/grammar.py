"""Sentences: what a scene's caption says, and the statement that a caption makes.

    sentence = "" | objects ["on a" background "background"] | "a" background "background"
    objects  = object | object relation object | object {"," object} ["and" object]
    object   = article [size] [colour] ["[V]"] (shape | "shape") ["at the" cell]

`caption` and `parse` are inverse to one another. A word left out is a statement not made; "shape" is the noun when the
shape is not stated. Junk words, as in the alternative texts of web pages, are read over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from jaxtyping import Int64
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from images.scenes.scene import BACKGROUNDS, CELLS, COLOURS, RELATIONS, SHAPES, SIZES, UNSTATED, Scenes, Spec

SPARE = "[V]"
"""A word without a meaning, for a subject that is learned later."""
JUNK = ("photo", "image", "wallpaper", "free", "download", "stock", "best", "hd")
MAX_OBJECTS = 3

Lexicon: TypeAlias = Literal["train", "held out"]
SYNONYMS: dict[Lexicon, dict[str, tuple[str, ...]]] = {
    "train": {
        "circle": ("dot", "ball"),
        "square": ("block", "tile"),
        "triangle": ("pyramid", "delta"),
        "cross": ("plus", "crosshair"),
        "star": ("asterisk", "starlet"),
        "ring": ("hoop", "loop"),
        "red": ("scarlet", "ruby"),
        "green": ("emerald", "lime"),
        "blue": ("navy", "sapphire"),
        "yellow": ("golden", "lemon"),
        "purple": ("violet", "lilac"),
        "orange": ("tangerine", "apricot"),
        "small": ("little", "mini"),
        "large": ("big", "huge"),
    },
    "held out": {
        "circle": ("disc",),
        "square": ("box",),
        "triangle": ("wedge",),
        "cross": ("crucifix",),
        "star": ("pentagram",),
        "ring": ("donut",),
        "red": ("crimson",),
        "green": ("jade",),
        "blue": ("azure",),
        "yellow": ("amber",),
        "purple": ("mauve",),
        "orange": ("carrot",),
        "small": ("tiny",),
        "large": ("giant",),
    },
}
"""Other words for the canonical ones: those to train with, and those that only a test may use."""

_MEANING = {other: word for words in SYNONYMS.values() for word, others in words.items() for other in others}
_FRAME = ("a", "an", "at", "the", "on", "and", ",", "background", "shape", SPARE)
_PLAIN = dict.fromkeys(
    word
    for group in (_FRAME, SHAPES, COLOURS, SIZES, BACKGROUNDS, CELLS, RELATIONS)
    for x in group
    for word in x.split()
)
VOCABULARY = ("", *_PLAIN, *_MEANING, *JUNK)
"""All words; the first pads. A word's place is its token."""
TOKEN = {word: i for i, word in enumerate(VOCABULARY)}
LENGTH = 32
"""Tokens of the longest sentence, with a few to spare."""


def _one_of(name: str, choices: Sequence[str]) -> str:
    # the longer first: "top left" before "top"
    return f"(?P<{name}>{'|'.join(sorted(choices, key=len, reverse=True))})"


# "at the top left of" is the cell "top" and the relation "left of"
_OBJECT = re.compile(
    rf"an? (?:{_one_of('size', SIZES)} )?(?:{_one_of('colour', COLOURS)} )?(?:{re.escape(SPARE)} )?"
    rf"{_one_of('shape', (*SHAPES, 'shape'))}(?: at the {_one_of('cell', CELLS)}(?! of))?"
)
_BACKGROUND = re.compile(rf"(?:on )?an? {_one_of('background', BACKGROUNDS)} background")
_LINK = re.compile(rf", and |, | and | {_one_of('relation', RELATIONS)} ")


def caption(scenes: Scenes) -> list[str]:
    """Write the canonical sentence of each scene."""
    return sentences(scenes.spec())


def sentences(spec: Spec) -> list[str]:
    """Write what is stated, and no more: the inverse of `parse`."""
    names = [spec.size.tolist(), spec.colour.tolist(), spec.shape.tolist(), spec.cell.tolist()]
    heads = zip(spec.count.tolist(), spec.relation.tolist(), spec.background.tolist(), strict=True)
    written = []
    for i, (count, relation, background) in enumerate(heads):
        objects = [_object(*(values[i][k] for values in names)) for k in range(max(count, 0))]
        if relation >= 0 and count == 2:
            text = f" {RELATIONS[relation]} ".join(objects)
        else:
            text = " and ".join([", ".join(objects[:-1]), objects[-1]] if count > 1 else objects)
        if background >= 0:
            text = (
                f"{text} on a {BACKGROUNDS[background]} background"
                if text
                else f"a {BACKGROUNDS[background]} background"
            )
        written.append(_with_articles(text))
    return written


def _object(size: int, colour: int, shape: int, cell: int) -> str:
    words = ["a"] + [SIZES[size]] * (size >= 0) + [COLOURS[colour]] * (colour >= 0)
    words.append(SHAPES[shape] if shape >= 0 else "shape")
    return " ".join(words + [f"at the {CELLS[cell]}"] * (cell >= 0))


def _with_articles(text: str) -> str:
    return re.sub(r"\ban? (?=(\S))", lambda found: "an " if found[1] in "aeiou" else "a ", text)


def parse(captions: Sequence[str]) -> Spec:
    """Read what sentences state.

    Synonyms of both lexicons are understood; an empty sentence, or one of junk alone, states nothing.

    Raises:
        WorkbenchError: a sentence is not of the grammar, or names more than three objects.
    """
    parsed = [_parse(text) for text in captions]
    head = torch.tensor([head for head, _ in parsed], dtype=torch.int64).reshape(-1, 3)
    body = torch.tensor([body for _, body in parsed], dtype=torch.int64).reshape(-1, MAX_OBJECTS, 4)
    slots = max(1, int(head[:, 1].max())) if len(head) else 1
    size, colour, shape, cell = body[:, :slots].unbind(-1)
    return Spec(head[:, 0], head[:, 1], shape, colour, size, cell, head[:, 2])


def _parse(text: str) -> tuple[list[int], list[list[int]]]:
    def refuse(why: str) -> WorkbenchError:
        return WorkbenchError(f"caption: got {text!r}, {why}; expected a sentence of the grammar: rewrite it.")

    words = [_MEANING.get(word, word) for word in split(text)]
    rest = " ".join(word for word in words if word not in JUNK).replace(" ,", ",")
    objects: list[list[int]] = []
    relation = background = UNSTATED
    while found := _OBJECT.match(rest):
        objects.append([_index(found["size"], SIZES), _index(found["colour"], COLOURS)])
        objects[-1] += [_index(found["shape"], SHAPES), _index(found["cell"], CELLS)]
        rest = rest[found.end() :]
        link = _LINK.match(rest)
        if link is None:
            rest = rest.removeprefix(" ")
            break
        if link["relation"]:
            if len(objects) > 1:
                raise refuse("a relation after the second object")
            relation = RELATIONS.index(link["relation"])
        rest = rest[link.end() :]
        if not _OBJECT.match(rest):
            raise refuse(f"no object at {rest!r}")
    if found := _BACKGROUND.match(rest):
        background = BACKGROUNDS.index(found["background"])
        rest = rest[found.end() :]
    if rest:
        raise refuse(f"{rest!r} not understood")
    if len(objects) > (2 if relation >= 0 else MAX_OBJECTS):
        raise refuse(f"{len(objects)} objects")
    empty = [[UNSTATED] * 4] * (MAX_OBJECTS - len(objects))
    return [background, len(objects) or UNSTATED, relation], objects + empty


def _index(word: str | None, words: Sequence[str]) -> int:
    return words.index(word) if word in words else UNSTATED


def split(text: str) -> list[str]:
    """Split a sentence into words; a comma is one."""
    return text.replace(",", " , ").split()


def tokens(captions: Sequence[str], length: int = LENGTH) -> Int64[Tensor, "batch length"]:
    """Number the words of sentences, padded with 0 at the end.

    Raises:
        WorkbenchError: a word is not in the VOCABULARY, or a sentence is too long.
    """
    rows = []
    for text in captions:
        words = split(text)
        if unknown := [word for word in words if word not in TOKEN]:
            raise WorkbenchError(f"caption: got {unknown[0]!r}; expected words of grammar.VOCABULARY: rewrite it.")
        if len(words) > length:
            raise WorkbenchError(f"caption: got {len(words)} words; expected {length} at most: raise the length.")
        rows.append([TOKEN[word] for word in words] + [0] * (length - len(words)))
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), length)


def spell(rows: Int64[Tensor, "batch length"]) -> list[str]:
    """Write the sentences of tokens: the inverse of `tokens`."""
    texts = [" ".join(VOCABULARY[token] for token in row if token) for row in rows.tolist()]
    return [text.replace(" ,", ",") for text in texts]


def respell(
    captions: Sequence[str], generator: torch.Generator, lexicon: Lexicon = "train", share: float = 0.5
) -> list[str]:
    """Replace words by synonyms, each with the chance `share`; what is stated stays.

    Args:
        lexicon: "train", or "held out" for words that no training caption has.
        share: chance of a word that has synonyms; 1 replaces all.
    """
    others = SYNONYMS[lexicon]
    result = []
    for text in captions:
        said = split(text)
        draws = torch.rand(len(said), 2, generator=generator, device=generator.device).tolist()
        for i, (word, (chance, which)) in enumerate(zip(said, draws, strict=True)):
            if word in others and chance < share:
                said[i] = others[word][int(which * len(others[word]))]
        result.append(_with_articles(" ".join(said).replace(" ,", ",")))
    return result


def alt_text(
    scenes: Scenes, generator: torch.Generator, dropped: float = 0.6, wrong: float = 0.1, junk: int = 3
) -> list[str]:
    """Write captions as careless as the alternative texts of web pages.

    Every attribute of the canonical statement is left out with the chance `dropped` and replaced by any of its kind
    (at times the true one) with the chance `wrong`; up to `junk` words without meaning follow. No object is left out.
    """
    spec = scenes.spec()

    def careless(values: Tensor, choices: Sequence[str]) -> Tensor:
        chance = torch.rand(values.shape, generator=generator, device=values.device)
        others = torch.randint(len(choices), values.shape, generator=generator, device=values.device)
        changed = torch.where(chance < dropped, UNSTATED, torch.where(chance < dropped + wrong, others, values))
        return torch.where(values < 0, values, changed)

    spec = Spec(
        careless(spec.background, BACKGROUNDS),
        spec.count,
        careless(spec.shape, SHAPES),
        careless(spec.colour, COLOURS),
        careless(spec.size, SIZES),
        careless(spec.cell, CELLS),
        careless(spec.relation, RELATIONS),
    )
    which = torch.randint(len(JUNK), (len(spec), junk), generator=generator, device=generator.device).tolist()
    many = torch.randint(junk + 1, (len(spec),), generator=generator, device=generator.device).tolist()
    return [
        " ".join([text, *(JUNK[k] for k in row[:m])]) for text, row, m in zip(sentences(spec), which, many, strict=True)
    ]

"""Sentences: writing and reading are inverse, on everything that can be stated."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_core.errors import WorkbenchError
from images.scenes import grammar
from images.scenes.grammar import alt_text, caption, parse, respell, sentences, spell, tokens
from images.scenes.scene import CELLS, COLOURS, SHAPES, SIZES, Spec, draw, every


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_all_statements_of_tier_1_survive_the_round_trip() -> None:
    written = sentences(every())
    assert len(set(written)) == 1296
    assert parse(written).same(every()).all()
    assert spell(tokens(written, length=12)) == written


@pytest.mark.parametrize("tier", [1, 2, 3])
def test_canonical_sentences_survive_the_round_trip(tier: int) -> None:
    scenes = draw(400, seeded(tier), tier)
    written = caption(scenes)
    assert parse(written).same(scenes.spec()).all()
    assert spell(tokens(written)) == written
    for lexicon in ("train", "held out"):
        other = respell(written, seeded(), lexicon, share=1.0)
        assert parse(other).same(scenes.spec()).all()
        assert spell(tokens(other)) == other
        assert not any(set(text.split()) & set(SHAPES) for text in other)


def test_sentences_by_hand() -> None:
    one = parse(["a small red circle at the top left on a white background"])
    assert (one.count.item(), one.shape.item(), one.colour.item(), one.size.item()) == (1, 0, 0, 0)
    assert (one.cell.item(), one.background.item(), one.relation.item()) == (0, 0, -1)
    two = parse(["a giant jade disc above an azure box on a black background"])
    assert two.count.item() == 2 and two.relation.item() == 2 and two.background.item() == 1
    assert two.shape.tolist() == [[0, 1]] and two.colour.tolist() == [[1, 2]] and two.size.tolist() == [[1, -1]]
    assert sentences(two) == ["a large green circle above a blue square on a black background"]
    assert sentences(parse(["an orange ring at the centre"])) == ["an orange ring at the centre"]
    three = parse(["a circle, a red [V] square and a shape hd photo"])
    assert three.count.item() == 3 and three.shape.tolist() == [[0, 1, -1]]


def test_nothing_said_is_nothing_stated() -> None:
    spec = parse(["", "photo hd download", "a gray background"])
    assert spec.background.tolist() == [-1, -1, 2]
    for field in fields(spec):
        assert (getattr(spec, field.name)[:2] == -1).all()
    assert sentences(spec) == ["", "", "a gray background"]
    assert tokens([""]).tolist() == [[0] * grammar.LENGTH]


def at_most(choices: int) -> st.SearchStrategy[int]:
    return st.integers(-1, choices - 1)


objects = st.tuples(at_most(len(SHAPES)), at_most(len(COLOURS)), at_most(len(SIZES)), at_most(len(CELLS)))


@settings(max_examples=200, deadline=None)
@given(st.lists(objects, max_size=3), at_most(3), at_most(4))
def test_every_partial_statement_survives_the_round_trip(
    named: list[tuple[int, int, int, int]], background: int, relation: int
) -> None:
    table = torch.tensor(named or [(-1,) * 4], dtype=torch.int64)[None]
    count = torch.tensor([len(named) or -1])
    relation = relation if len(named) == 2 else -1
    shape, colour, size, cell = table.unbind(-1)
    spec = Spec(torch.tensor([background]), count, shape, colour, size, cell, torch.tensor([relation]))
    assert parse(sentences(spec)).same(spec).all()


@pytest.mark.parametrize(
    "text",
    [
        "a red small circle",
        "circle",
        "a small red circle at the top left on a pink background",
        "a circle left of a square left of a ring",
        "a circle and",
        "a circle, a square, a ring and a star",
        "a circle on a white background on a white background",
        "a circle left of a square and a ring",
    ],
)
def test_what_is_not_of_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(WorkbenchError, match="expected a sentence of the grammar"):
        parse([text])


def test_tokens_refuse_unknown_words_and_long_sentences() -> None:
    with pytest.raises(WorkbenchError, match="'dog'"):
        tokens(["a dog"])
    with pytest.raises(WorkbenchError, match="raise the length"):
        tokens(["a small red circle"], length=3)


def test_vocabulary_is_closed_and_lexicons_are_disjoint() -> None:
    assert len(set(grammar.VOCABULARY)) == len(grammar.VOCABULARY) and grammar.VOCABULARY[0] == ""
    assert grammar.SPARE in grammar.VOCABULARY
    train, held = ({word for others in grammar.SYNONYMS[k].values() for word in others} for k in ("train", "held out"))
    assert not train & held and not (train | held) & {*SHAPES, *COLOURS, *SIZES}
    assert set(grammar.SYNONYMS["train"]) == set(grammar.SYNONYMS["held out"]) == {*SHAPES, *COLOURS, *SIZES}


def test_alt_text_drops_and_errs_as_often_as_told() -> None:
    """Shares of one attribute within 5 standard errors."""
    scenes = draw(1500, seeded(1))
    said, true = parse(alt_text(scenes, seeded(2))), scenes.spec()
    assert (said.count == 1).all()
    for name, choices in {"shape": 6, "colour": 6, "size": 2, "cell": 9, "background": 3}.items():
        stated, meant = getattr(said, name).flatten(), getattr(true, name).flatten()
        for share, expected in (((stated < 0), 0.6), ((stated >= 0) & (stated != meant), 0.1 * (1 - 1 / choices))):
            stderr = (expected * (1 - expected) / 1500) ** 0.5
            assert abs(float(share.float().mean()) - expected) < 5 * stderr, name
    assert parse(alt_text(scenes, seeded(), dropped=0.0, wrong=0.0)).same(true).all()

"""Experiments: nothing is trained twice, results are whole or absent, and the gallery shows what the files say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import imageio.v3 as iio
import pytest

from diffusion_core import checkpoint
from diffusion_core.configure import plain
from diffusion_core.errors import WorkbenchError
from diffusion_core.report import subplots
from images import gallery, reference, zoo
from images.config import configuration
from images.experiments import EXPERIMENTS
from images.lab import TIERS, Lab, Report, Variant, merged
from images.systems import Sampling


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    return Lab(TIERS["smoke"], tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def results(lab, tmp_path_factory) -> Path:
    """A folder with one experiment's files: more steps of one model."""
    out = tmp_path_factory.mktemp("results")
    trained = lab.train("system=conditional", "train.steps=20")
    drawn = {steps: lab.draw(trained, Sampling(steps=steps)) for steps in (1, 4)}
    figure, axes = subplots(1, 1, 4.0, 2.0)
    found = {steps: lab.measure(images, lab.labels()) for steps, images in drawn.items()}
    axes[0, 0].plot(list(found), [m["FD"].value for m in found.values()])
    report = Report(
        title="More steps <b>",
        source="Nobody 2026",
        idea="Steps.",
        published="Nothing.",
        variants=[Variant(f"{steps} steps", m, [trained.command]) for steps, m in found.items()],
        criterion="none",
        shown=False,
        verdict="Nothing was learned.",
        samples=drawn[4],
        figure=figure,
    )
    reference.write(report, lab, "ddim", out / "quick" / "ddim", 1.0)
    return out


def test_the_same_words_are_trained_once(lab, caplog):
    words = ("system=conditional", "train.steps=20")
    first = lab.train(*words)
    caplog.clear()
    again = lab.train(*words)
    assert again.saved.path == first.saved.path and "zoo: training" not in caplog.text
    other = lab.train("system=conditional", "train.steps=21")
    assert other.saved.path != first.saved.path


def test_the_sampler_is_not_part_of_what_was_trained(lab):
    first = lab.train("system=conditional", "train.steps=20")
    sampled = lab.train("system=conditional", "train.steps=20", "steps=3", "sampler=heun")
    assert sampled.saved.path == first.saved.path and sampled.config.steps == 3


def test_a_training_that_was_cut_short_goes_on(lab):
    words = (*TIERS["smoke"].words, "system=conditional", "train.steps=8", "train.checkpoint_every=4", "train.keep=2")
    whole, _ = zoo.trained(merged(words), lab.zoo)
    last, first = (checkpoint.listing(whole.path.parents[1])[i] for i in (-1, 0))
    weights = whole.tensors("model")
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    assert checkpoint.find(first.parents[1]).step == 4
    again, _ = zoo.trained(merged(words), lab.zoo)
    assert again.step == 8
    assert all((again.tensors("model")[name] == value).all() for name, value in weights.items())


def test_the_last_of_two_words_for_a_key_wins():
    assert merged(["task=digits", "steps=3", "task=mnist"]) == ("task=mnist", "steps=3")


def test_what_ships_is_what_its_words_train():
    for name, words in zoo.SHARED.items():
        config, folder = configuration(words), zoo.PRETRAINED / name
        assert config.task.name == name.split("-")[0]
        assert sum(f.stat().st_size for f in folder.iterdir()) < 4e6
        saved = checkpoint.load(folder)
        assert saved.meta["key"] == zoo.key(config), f"{name} was trained by other words: python -m images.zoo {name}"


def test_a_key_knows_the_parents_training_and_not_its_sampling():
    def key(*parents: str) -> str:
        config = configuration([*TIERS["smoke"].words, "system=latent"])
        config.parent_config = plain(configuration([*TIERS["smoke"].words, "system=ddpm", *parents]))
        return zoo.key(config)

    assert key() == key("sampler=heun", "steps=3", "runs=elsewhere", "train.log_every=7", "evaluation.n=9")
    assert len({key(), key("train.steps=5"), key("prediction=x0"), key("train.seed=1")}) == 4


def test_what_other_words_trained_is_not_shipped_under_these(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "PRETRAINED", tmp_path / "pretrained")
    (tmp_path / "pretrained").mkdir()
    for seed in (1, 2):
        words = (*TIERS["smoke"].words, "system=conditional", "train.steps=1", f"train.seed={seed}", f"runs={tmp_path}")
        monkeypatch.setitem(zoo.SHARED, "digits-test", words)
        saved = checkpoint.load(zoo.ship("digits-test"))
        assert saved.config["train"]["seed"] == seed and saved.meta["key"] == zoo.key(configuration(words))


def test_a_row_has_all_that_a_reader_needs(results, lab):
    row = json.loads((results / "quick" / "ddim" / "row.json").read_text())
    assert row["judge"] == "digits-features-v1" and row["n"] == 100 and row["shown"] is False
    assert row["variants"][0]["metrics"]["FD"].keys() == {"value", "stderr", "low", "high", "n", "unit"}
    assert row["variants"][0]["commands"][0].startswith("python -m images.train task=digits")
    assert iio.imread(results / "quick" / "ddim" / "samples.png").shape[:2] == (4 * 9 - 1, 12 * 9 - 1)


def test_the_gallery_is_one_file_that_needs_no_other(results, tmp_path):
    page = gallery.build(results, ("quick", "full"), tmp_path / "page.html").read_text()
    assert "More steps &lt;b&gt;" in page and "effect not seen here" in page and "href='#quick-ddim'" in page
    assert "id='quick-ddim'" in page and page.count("data:image/png;base64") == 2
    assert "src='http" not in page and "<link" not in page and "width=device-width" in page
    row = json.loads((results / "quick" / "ddim" / "row.json").read_text())
    assert gallery.number(row["variants"][0]["metrics"]["FD"]) in page


def test_numbers_have_the_digits_that_their_error_leaves():
    def estimate(value: float | None, stderr: float) -> dict[str, object]:
        return {"value": value, "stderr": stderr, "unit": "1"}

    assert gallery.number(estimate(1.23456, 0.0123)) == "1.235 ± 0.012"
    assert gallery.number(estimate(123.456, 12.3)) == "123 ± 12"
    assert gallery.number(estimate(0.5, 0.0)) == "0.5" and gallery.number(estimate(None, 0.0)) == "–"


@pytest.mark.parametrize(
    ("module", "words", "said"),
    [
        (reference, "tier=large", "tier: got large; expected one of quick, full"),
        (reference, "only=ddmp", "only: got ddmp; expected some of"),
        (reference, "jobs=0", "jobs: got 0"),
        (reference, "jobs=²", "jobs: got ²"),
        (reference, "again=yes", "again: got yes; expected true or false"),
        (reference, "tierr=quick", "reference: got tierr"),
        (gallery, "tier=large", "tier: got large"),
        (gallery, "results=/nowhere tier=full", "gallery: got no results in /nowhere"),
        (zoo, "digits-nothing", "zoo: got digits-nothing; expected one of digits-ddpm"),
    ],
)
def test_a_bad_word_is_refused(module, words, said, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", *words.split()])
    with pytest.raises(WorkbenchError, match=said):
        module.main()


def test_every_experiment_has_a_module():
    there = {p.stem for p in Path(reference.__file__).with_name("experiments").glob("*.py")}
    assert set(EXPERIMENTS) <= there

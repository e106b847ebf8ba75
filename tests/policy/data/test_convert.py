"""`python -m policy.data convert`: every pair of formats there and back, all or nothing."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from policy.data import __main__ as cli
from policy.data import sources
from policy.data.replay import ReplayBuffer
from tests.policy.data.files import content, pusht, robomimic_file

FORMS = {"zarr": "a.zarr", "zip": "a.zarr.zip", "npz": "a.npz", "hdf5": "a.hdf5", "lerobot": "folder"}


def convert(src: Path, out: Path, *words: str) -> int:
    return cli.main(
        ["convert", f"src={src}", f"out={out}", *(["format=lerobot", "fps=10"] if not out.suffix else []), *words]
    )


def same(a: ReplayBuffer, b: ReplayBuffer) -> None:
    assert sorted(a.arrays) == sorted(b.arrays) and a.episode_ends.tolist() == b.episode_ends.tolist()
    for key, values in a.arrays.items():
        assert (values.dtype, values.shape) == (b.arrays[key].dtype, b.arrays[key].shape)
        np.testing.assert_array_equal(values, b.arrays[key])


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(FORMS, 2)))
def test_there_and_back(tmp_path, one, other):
    buffer = pusht()
    buffer.save(tmp_path / "start.zarr")
    paths = [
        tmp_path / "start.zarr",
        tmp_path / "1" / FORMS[one],
        tmp_path / "2" / FORMS[other],
        tmp_path / "3" / FORMS[one],
    ]
    for src, out in itertools.pairwise(paths):
        assert convert(src, out) == 0
    back = ReplayBuffer.load(paths[-1])
    same(back, buffer)
    assert back.attributes == buffer.attributes | ({"fps": 10} if "lerobot" in (one, other) else {})


@pytest.mark.parametrize("other", ["zarr", "npz", "lerobot"])
def test_a_robomimic_file_comes_back_as_it_was(tmp_path, other):
    came = robomimic_file(tmp_path / "in.hdf5", n_demos=3)
    assert convert(came, tmp_path / FORMS[other]) == 0
    assert convert(tmp_path / FORMS[other], tmp_path / "out.hdf5") == 0
    got, before = content(tmp_path / "out.hdf5"), content(came)
    if other == "lerobot":
        assert '"fps": 10' in got["data"][1].pop("attributes")[1]
    assert got == before


def test_instructions_travel(tmp_path):
    pusht().save(tmp_path / "a.zarr")
    assert convert(tmp_path / "a.zarr", tmp_path / "folder", "task=Push the T") == 0
    assert convert(tmp_path / "folder", tmp_path / "b.hdf5") == 0
    assert convert(tmp_path / "b.hdf5", tmp_path / "folder2") == 0
    for name in ("folder", "b.hdf5", "folder2"):
        found = ReplayBuffer.load(tmp_path / name)
        assert found.attributes["tasks"] == ["Push the T"] and not found.arrays["task_index"].any()


def test_a_video_loses_only_pictures(tmp_path):
    pusht().save(tmp_path / "a.zarr")
    assert convert(tmp_path / "a.zarr", tmp_path / "folder", "images=video") == 0
    found = ReplayBuffer.load(tmp_path / "folder").arrays
    off = np.abs(found.pop("img").astype(int) - pusht().arrays["img"])
    assert 0 < off.mean() < 2
    for key, values in found.items():
        np.testing.assert_array_equal(values, pusht().arrays[key])


def test_several_robomimic_files_end_to_end(tmp_path):
    came = robomimic_file(tmp_path / "in.hdf5", n_demos=4)
    for key in ("valid", "train"):
        assert convert(came, tmp_path / f"{key}.hdf5", f"filter={key}") == 0
    assert convert(f"{tmp_path / 'valid.hdf5'},{tmp_path / 'train.hdf5'}", tmp_path / "out.hdf5") == 0
    got, before = content(tmp_path / "out.hdf5"), content(came)
    assert {k for k in got if k.startswith("data/")} == {k for k in before if k.startswith("data/")}
    assert all(got[k] == before[k] for k in got if k.startswith("data/"))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["out={tmp}/b"], "expected a name ending in .zarr, .zarr.zip, .npz or .hdf5, or format=lerobot"),
        (["out={tmp}/b.h5"], "got suffix '.h5'"),
        (["out={tmp}/b.npz", "format=lerobot"], "expected a folder's name"),
        (["out={tmp}/b", "format=rlds"], "format: got 'rlds'; expected lerobot"),
        (["out={tmp}/b", "format=lerobot"], "got fps=0.0; expected the control rate in Hz"),
        (["out={tmp}/b", "format=lerobot", "fps=10", "images=jpg"], "got images=jpg; expected png"),
        (["out={tmp}/taken.hdf5"], "a path that exists"),
        (["out={tmp}/b.npz", "filter=train"], "got filter=train; expected robomimic's .hdf5"),
    ],
)
def test_mistakes_leave_nothing(tmp_path, capsys, words, text):
    pusht().save(tmp_path / "a.npz")
    (tmp_path / "taken.hdf5").write_text("mine")
    status = cli.main(["convert", f"src={tmp_path / 'a.npz'}", *(w.replace("{tmp}", str(tmp_path)) for w in words)])
    err = capsys.readouterr().err
    assert status == 2 and err.count("\n") == 1 and text in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "taken.hdf5"]


@pytest.mark.parametrize("form", ["hdf5", "lerobot"])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, form):
    """The last flush fails, as on a disk that fills up."""
    from policy.data import writer

    out = tmp_path / FORMS[form]
    pusht().save(tmp_path / "a.zarr")
    assert convert(tmp_path / "a.zarr", out) == 0
    before = {p: p.read_bytes() for p in [out, *out.rglob("*")] if p.is_file()}

    def refuse(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "flush", refuse)
    assert convert(tmp_path / "a.zarr", out, "keys=[action]", "overwrite=true") == 2
    assert {p: p.read_bytes() for p in [out, *out.rglob("*")] if p.is_file()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a.zarr", out.name])


@pytest.mark.parametrize("form", ["hdf5", "lerobot"])
def test_overwrite_replaces_all(tmp_path, form):
    out = tmp_path / FORMS[form]
    pusht().save(tmp_path / "a.zarr")
    assert convert(tmp_path / "a.zarr", out) == 0
    assert convert(tmp_path / "a.zarr", out, "keys=[action,state]", "overwrite=true") == 0
    assert sorted(ReplayBuffer.load(out).arrays) == ["action", "state"]


@pytest.mark.parametrize("form", ["hdf5", "lerobot"])
def test_sources_and_inspect_take_every_form(tmp_path, capsys, form):
    out = tmp_path / FORMS[form]
    pusht().save(tmp_path / "a.zarr")
    assert convert(tmp_path / "a.zarr", out) == 0
    buffer, line = sources.load(str(out), ["img", "state"], sources.SHAPES)
    stored, _ = sources.load(str(tmp_path / "a.zarr"), ["img", "state"], sources.SHAPES)
    same(buffer, stored)
    assert "3 episodes, 63 steps" in line
    assert cli.main(["inspect", str(out), "images=true"]) == 0
    text = capsys.readouterr().out
    assert (
        ("robomimic HDF5" if form == "hdf5" else "LeRobot v3.0") in text
        and "(63, 96, 96, 3)" in text
        and "sound" in text
    )

"""The command line: make, look at and convert transitions."""

from __future__ import annotations

import numpy as np
import pytest

from planning.data import __main__ as command
from planning.data import files
from tests.planning.data.test_files import ogbench


def test_generate_inspect_convert(tmp_path, capsys):
    made, other = tmp_path / "runs" / "seed=3" / "a.hdf5", tmp_path / "b.zarr.zip"
    assert command.main(["generate", "maze=umaze", "steps=600", "seed=3", "workers=0", f"out={made}"]) == 0
    digest = files.load(made).content_sha256
    assert digest in capsys.readouterr().out
    assert command.main(["convert", str(made), str(other), "maze=umaze"]) == 0
    assert files.load(other).content_sha256 == digest
    capsys.readouterr()
    for path, kind in ((made, "d4rl"), (other, "zarr")):
        assert command.main(["inspect", str(path)]) == 0
        out = capsys.readouterr().out
        assert f": {kind}, " in out and digest in out and "generated: 600 steps, seed 3" in out and "speed" in out


def test_convert_keeps_what_a_file_is(tmp_path, capsys):
    path = tmp_path / "pointmaze-large-stitch-v0.npz"
    arrays = ogbench(path)
    assert command.main(["convert", f"file={path}", f"out={tmp_path / 'a.h5'}"]) == 0
    found = files.load(tmp_path / "a.h5")
    assert "OGBench" in found.provenance
    np.testing.assert_array_equal(found.actions, arrays["actions"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspekt", "a"], "did you mean inspect?"),
        (["inspect"], "got no file"),
        (["inspect", "absent.hdf5"], "got no such file"),
        (["generate", "out=a.hdf5"], "got no maze"),
        (["generate", "out=a.hdf5", "maze=huge"], "expected one of umaze"),
        (["generate", "out=a.hdf5", "maze=umaze", "step=3"], "did you mean steps=...?"),
        (["generate", "out=a.hdf5", "maze=umaze", "steps=many"], "bad steps"),
        (["generate", "out=a.hdf5", "maze=umaze", "steps=0"], "steps: got 0"),
        (["generate", "out=a.hdf5", "maze=umaze", "workers=-2"], "workers: got -2"),
        (["generate", "out=a.npz", "maze=umaze"], "another suffix"),
        (["convert", "a.hdf5"], "got no out"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not list(tmp_path.iterdir())


def test_an_interrupt_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "make", interrupted)
    assert command.main(["generate", "maze=umaze", f"out={tmp_path / 'a.hdf5'}"]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n") and not list(tmp_path.iterdir())


def test_help(capsys):
    assert command.main([]) == 0
    assert "usage: python -m planning.data" in capsys.readouterr().out

"""Replay stores: every form there and back, other writers' stores, every way to be broken, and killed writers."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr

from diffusion_core.errors import WorkbenchError
from policy.data import reader, writer
from policy.data.replay import ReplayBuffer, concatenate
from tests.policy.stores import LENGTHS, N_STEPS, small_buffer, zip_folder

ROOT = Path(__file__).parents[2]
HUMAN = Path(os.environ.get("WORKBENCH_DATA", "/absent")) / "policy"


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """64 bytes per chunk: 8 steps of action, 3 of state, so that every array has several; no waiting for the disk."""
    monkeypatch.setattr(writer, "CHUNK_BYTES", 64)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def assert_same(a: ReplayBuffer, b: ReplayBuffer) -> None:
    np.testing.assert_array_equal(a.episode_ends, b.episode_ends)
    assert a.episode_ends.dtype == b.episode_ends.dtype == np.int64
    assert sorted(a.arrays) == sorted(b.arrays)
    for key in a.arrays:
        assert a.arrays[key].dtype == b.arrays[key].dtype
        np.testing.assert_array_equal(a.arrays[key], b.arrays[key])


def one_line(error: pytest.ExceptionInfo[WorkbenchError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# There and back


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("name", ["a.zarr", "a.zarr.zip", "a.npz"])
def test_round_trip(tmp_path, name, zarr_format):
    buffer = small_buffer(images=True)
    buffer.save(tmp_path / "deep" / name, zarr_format)
    back = ReplayBuffer.load(tmp_path / "deep" / name)
    assert_same(buffer, back)
    assert back.attributes == buffer.attributes
    assert [p.name for p in (tmp_path / "deep").iterdir()] == [name]


def test_v2_is_read_by_the_format_alone(tmp_path):
    """A second reader: JSON, one Blosc call and frombuffer, as the zarr v2 specification says."""
    buffer = small_buffer()
    buffer.save(tmp_path / "a.zarr")
    for key in (*buffer.arrays, "episode_ends"):
        folder = tmp_path / "a.zarr" / ("meta" if key == "episode_ends" else "data") / key
        meta = json.loads((folder / ".zarray").read_text())
        assert meta["zarr_format"] == 2 and meta["order"] == "C" and meta["filters"] is None
        assert meta["compressor"]["id"] == "blosc" and meta["compressor"]["cname"] == "zstd"
        assert meta["compressor"]["clevel"] == 5
        assert meta["chunks"][1:] == meta["shape"][1:]
        tail = ".0" * (len(meta["shape"]) - 1)
        count = -(-meta["shape"][0] // meta["chunks"][0])
        chunks = [numcodecs.Blosc().decode((folder / f"{i}{tail}").read_bytes()) for i in range(count)]
        values = np.concatenate([np.frombuffer(c, meta["dtype"]).reshape(meta["chunks"]) for c in chunks])
        expected = buffer.episode_ends if key == "episode_ends" else buffer.arrays[key]
        np.testing.assert_array_equal(values[: meta["shape"][0]], expected)


def test_v2_is_read_by_zarr(tmp_path):
    buffer = small_buffer()
    buffer.save(tmp_path / "a.zarr.zip")
    root = zarr.open(zarr.storage.ZipStore(tmp_path / "a.zarr.zip", mode="r"), mode="r")
    np.testing.assert_array_equal(root["data/action"][:], buffer.arrays["action"])
    np.testing.assert_array_equal(root["meta/episode_ends"][:], buffer.episode_ends)


@pytest.mark.parametrize("name", ["a.zarr.zip", "a.npz"])
def test_same_content_same_bytes(tmp_path, name):
    small_buffer().save(tmp_path / "1" / name)
    small_buffer().save(tmp_path / "2" / name)
    assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_store_in_a_folder_inside_a_zip_or_a_directory(tmp_path, zarr_format):
    buffer = small_buffer()
    buffer.save(tmp_path / "pusht" / "replay.zarr", zarr_format)
    path = zip_folder(tmp_path / "pusht", tmp_path / "pusht.zip", "pusht/", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/pusht/._replay.zarr", b"junk")
    assert_same(buffer, ReplayBuffer.load(path))
    assert_same(buffer, ReplayBuffer.load(tmp_path / "pusht"))


def foreign_store(path: Path, buffer: ReplayBuffer, zarr_format: int, **how: object) -> None:
    """Write with zarr's own calls."""
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    for key, values in buffer.arrays.items():
        root.create_array(f"data/{key}", data=values, **how)
    root.create_array("meta/episode_ends", data=buffer.episode_ends)


@pytest.mark.parametrize(
    ("zarr_format", "how"),
    [
        (2, {"chunks": (8, 1), "compressors": None}),
        (2, {"chunks": (8, 1), "chunk_key_encoding": {"name": "v2", "separator": "/"}}),
        (2, {"chunks": (5, 2), "compressors": numcodecs.GZip(1), "order": "F"}),
        (2, {"chunks": (5, 2), "compressors": numcodecs.Blosc("lz4", 1), "filters": [numcodecs.Shuffle(4)]}),
        (3, {"chunks": (5, 2), "compressors": None}),
        (3, {"chunks": (5, 1), "compressors": zarr.codecs.ZstdCodec()}),
        (3, {"chunks": (4, 2), "shards": (16, 2), "compressors": zarr.codecs.BloscCodec()}),
        (3, {"chunks": (4, 2), "compressors": zarr.codecs.BloscCodec(), "chunk_key_encoding": {"name": "v2"}}),
    ],
)
def test_other_writers(tmp_path, zarr_format, how):
    buffer = small_buffer()
    action = ReplayBuffer({"action": buffer.arrays["action"]}, buffer.episode_ends)
    foreign_store(tmp_path / "a.zarr", action, zarr_format, **how)
    assert_same(action, ReplayBuffer.load(tmp_path / "a.zarr"))


def test_big_endian_and_int32_ends_become_native(tmp_path):
    buffer = small_buffer()
    root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    root.create_array("data/action", data=buffer.arrays["action"].astype(">f4"))
    root.create_array("meta/episode_ends", data=buffer.episode_ends.astype(np.int32))
    back = ReplayBuffer.load(tmp_path / "a.zarr")
    assert back.arrays["action"].dtype == np.float32 and back.arrays["action"].dtype.isnative
    np.testing.assert_array_equal(back.arrays["action"], buffer.arrays["action"])


def test_only_the_keys_asked_for_are_read_and_judged(tmp_path):
    buffer = small_buffer()
    buffer.save(tmp_path / "a.zarr")
    (tmp_path / "a.zarr/data/state/0.0").write_bytes(b"")
    back = ReplayBuffer.load(tmp_path / "a.zarr", ["action"])
    assert list(back.arrays) == ["action"]


def test_float_images_become_bytes_or_are_refused(tmp_path):
    buffer = small_buffer(images=True)
    images = buffer.arrays["img"].astype(np.float32)
    ReplayBuffer({"img": images}, buffer.episode_ends).save(tmp_path / "a.zarr")
    assert ReplayBuffer.load(tmp_path / "a.zarr").arrays["img"].dtype == np.float32
    back = ReplayBuffer.load(tmp_path / "a.zarr", as_uint8=["img"])
    assert back.arrays["img"].dtype == np.uint8
    np.testing.assert_array_equal(back.arrays["img"], buffer.arrays["img"])
    images[40, 3, 2, 1] = 0.5
    ReplayBuffer({"img": images}, buffer.episode_ends).save(tmp_path / "b.npz")
    ReplayBuffer({"img": images}, buffer.episode_ends).save(tmp_path / "b.zarr")
    for name in ("b.npz", "b.zarr"):
        with pytest.raises(WorkbenchError, match=r"img: got 0\.5 at step 40; expected integers 0 to 255"):
            ReplayBuffer.load(tmp_path / name, as_uint8=["img"])


# Bad inputs


def test_nothing_there(tmp_path):
    for name in ("no.zarr", "no.zarr.zip", "no.npz"):
        with pytest.raises(WorkbenchError, match="no such file or directory") as error:
            ReplayBuffer.load(tmp_path / name)
        assert name in one_line(error)


def test_not_a_store(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/readme.txt").write_text("hello")
    (tmp_path / "a.txt").write_text("hello")
    np.save(tmp_path / "b.npy", np.zeros(3))
    (tmp_path / "c.npz").write_text("hello")
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    says = {
        "folder": "no zarr metadata",
        "a.txt": "a file that is no zip",
        "b.npy": "a file that is no zip",
        "c.npz": "cannot be read as .npz",
        "d.zip": "no zarr metadata",
    }
    for name, text in says.items():
        with pytest.raises(WorkbenchError, match=text) as error:
            ReplayBuffer.load(tmp_path / name)
        assert name in one_line(error)


@pytest.mark.parametrize(("part", "text"), [("data", "without data/"), ("meta", "without meta/episode_ends")])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_layout_incomplete(tmp_path, part, text, zarr_format):
    small_buffer().save(tmp_path / "a.zarr", zarr_format)
    shutil.rmtree(tmp_path / "a.zarr" / part)
    with pytest.raises(WorkbenchError, match=text) as error:
        ReplayBuffer.load(tmp_path / "a.zarr")
    one_line(error)


def test_two_stores_are_one_too_many(tmp_path):
    for name in ("a.zarr", "b.zarr"):
        small_buffer().save(tmp_path / "both" / name)
    with pytest.raises(WorkbenchError, match="got 2 stores"):
        ReplayBuffer.load(tmp_path / "both")


def test_key_that_is_not_there(tmp_path):
    small_buffer().save(tmp_path / "a.zarr")
    with pytest.raises(WorkbenchError, match="expected also img"):
        ReplayBuffer.load(tmp_path / "a.zarr", ["action", "img"])


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ([7, 19, 19, 42, 51], r"episode_ends\[2\] = 19 after 19; expected strictly rising"),
        ([7, 19, 12, 42, 51], r"episode_ends\[2\] = 12 after 19"),
        ([0, 19, 22, 42, 51], r"episode_ends\[0\] = 0 after 0"),
        ([7, 19, 22, 42, 50], "51 steps of action, but the last of 5 episodes ends at 50"),
        ([7, 19, 22, 42, 60], "51 steps of action, but the last of 5 episodes ends at 60"),
        ([7.0, 51.0], "episode_ends of type float64"),
        ([[7, 51]], r"episode_ends of type int64 and shape \(1, 2\)"),
        (np.zeros(0, np.int64), r"shape \(0,\)"),
    ],
)
def test_bad_episode_ends(tmp_path, ends, text):
    np.savez(tmp_path / "a.npz", action=np.zeros((N_STEPS, 2)), episode_ends=np.array(ends))
    root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    root.create_array("data/action", data=np.ones((N_STEPS, 2)))
    root.create_array("meta/episode_ends", data=np.array(ends), config={"write_empty_chunks": True})
    for name in ("a.npz", "a.zarr"):
        with pytest.raises(WorkbenchError, match=text) as error:
            ReplayBuffer.load(tmp_path / name)
        assert name in one_line(error)


def test_arrays_of_different_length(tmp_path):
    buffer = small_buffer()
    foreign_store(tmp_path / "a.zarr", buffer, 2)
    shutil.rmtree(tmp_path / "a.zarr/data/state")
    zarr.open_group(tmp_path / "a.zarr", mode="a").create_array("data/state", data=np.ones((50, 5), np.float32))
    with pytest.raises(WorkbenchError, match="50 steps of state, but the last of 5 episodes ends at 51"):
        ReplayBuffer.load(tmp_path / "a.zarr")


@pytest.mark.parametrize("kind", ["directory", "zip"])
@pytest.mark.parametrize(
    ("zarr_format", "chunk"), [(2, "data/action/2.0"), (3, "data/action/c/2/0"), (2, "meta/episode_ends/0")]
)
def test_missing_chunk(tmp_path, kind, zarr_format, chunk):
    small_buffer().save(tmp_path / "a.zarr", zarr_format)
    (tmp_path / "a.zarr" / chunk).unlink()
    path = tmp_path / "a.zarr"
    if kind == "zip":
        path = zip_folder(path, tmp_path / "a.zarr.zip")
    with pytest.raises(WorkbenchError, match=f"chunk {chunk} missing") as error:
        ReplayBuffer.load(path)
    # Steps 16 to 23 of episodes that end at 7, 19, 22, 42.
    where = "entries 0 to 4" if "meta" in chunk else "steps 16 to 23, episodes 1 to 3"
    assert where in one_line(error)


def test_missing_chunk_is_silent_in_zarr_and_counted_here(tmp_path):
    """The trap itself: zarr reads zeros. If this ever fails, the check has become superfluous."""
    small_buffer().save(tmp_path / "a.zarr")
    for i in (1, 2, 5):
        (tmp_path / f"a.zarr/data/action/{i}.0").unlink()
    assert (zarr.open(tmp_path / "a.zarr", mode="r")["data/action"][8:24] == 0).all()
    with pytest.raises(WorkbenchError, match=r"chunk data/action/1\.0 and 2 more chunks missing"):
        ReplayBuffer.load(tmp_path / "a.zarr")
    filled = ReplayBuffer.load(tmp_path / "a.zarr", fill_absent=True)
    assert (filled.arrays["action"][8:24] == 0).all() and (filled.arrays["action"][:8] != 0).all()


@pytest.mark.parametrize("kind", ["directory", "zip"])
@pytest.mark.parametrize("keep", [0, 5, 16, 40, -1])
@pytest.mark.parametrize(("zarr_format", "chunk"), [(2, "data/state/6.0"), (3, "data/state/c/6/0")])
def test_truncated_blosc_chunk(tmp_path, kind, keep, zarr_format, chunk):
    """numcodecs decodes most of these without a word, reading memory behind the chunk."""
    small_buffer().save(tmp_path / "a.zarr", zarr_format)
    path = tmp_path / "a.zarr"
    whole = (path / chunk).read_bytes()
    (path / chunk).write_bytes(whole[:keep])
    if kind == "zip":
        path = zip_folder(path, tmp_path / "a.zarr.zip")
    with pytest.raises(WorkbenchError, match=f"chunk {chunk} is damaged") as error:
        ReplayBuffer.load(path)
    assert "steps 18 to 20, episodes 1 to 2" in one_line(error)


@pytest.mark.parametrize(
    ("zarr_format", "compressors", "chunk"),
    [
        (2, None, "0.0"),
        (2, numcodecs.GZip(1), "0.0"),
        (2, numcodecs.Zstd(), "0.0"),
        (3, None, "c/0/0"),
        (3, zarr.codecs.ZstdCodec(), "c/0/0"),
        (3, zarr.codecs.GzipCodec(), "c/0/0"),
    ],
)
def test_truncated_chunk_of_other_codecs(tmp_path, zarr_format, compressors, chunk):
    action = ReplayBuffer({"action": small_buffer().arrays["action"]}, small_buffer().episode_ends)
    foreign_store(tmp_path / "a.zarr", action, zarr_format, compressors=compressors)
    path = tmp_path / "a.zarr/data/action" / chunk
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(WorkbenchError, match=f"chunk data/action/{chunk} is damaged"):
        ReplayBuffer.load(tmp_path / "a.zarr")


def test_changed_byte_in_a_zip(tmp_path):
    small_buffer().save(tmp_path / "a.zarr.zip")
    with zipfile.ZipFile(tmp_path / "a.zarr.zip") as archive:
        info = archive.getinfo("data/action/3.0")
        start = info.header_offset + 30 + len(info.filename)
    raw = bytearray((tmp_path / "a.zarr.zip").read_bytes())
    raw[start + 30] ^= 0xFF
    (tmp_path / "a.zarr.zip").write_bytes(raw)
    with pytest.raises(WorkbenchError, match=r"chunk data/action/3\.0 is damaged \(Bad CRC-32"):
        ReplayBuffer.load(tmp_path / "a.zarr.zip")


@pytest.mark.parametrize("name", ["a.zarr.zip", "a.npz"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_archive(tmp_path, name, share):
    small_buffer().save(tmp_path / name)
    raw = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(WorkbenchError) as error:
        ReplayBuffer.load(tmp_path / name)
    assert name in one_line(error)
    if name == "a.zarr.zip":
        assert ("cut short" if share else "no zip") in str(error.value)


def test_metadata_that_cannot_be_used(tmp_path):
    small_buffer().save(tmp_path / "a.zarr")
    (tmp_path / "a.zarr/data/action/.zarray").write_text('{"zarr_format": 2, "shape": [51,')
    with pytest.raises(WorkbenchError, match="metadata of data/action cannot be used"):
        ReplayBuffer.load(tmp_path / "a.zarr")
    small_buffer().save(tmp_path / "b.zarr")
    meta = json.loads((tmp_path / "b.zarr/data/action/.zarray").read_text())
    meta["compressor"] = {"id": "imagecodecs_jpeg2k"}
    (tmp_path / "b.zarr/data/action/.zarray").write_text(json.dumps(meta))
    with pytest.raises(WorkbenchError, match=r"metadata of data/action cannot be used.*jpeg2k"):
        ReplayBuffer.load(tmp_path / "b.zarr")
    small_buffer().save(tmp_path / "c.zarr")
    (tmp_path / "c.zarr/.zattrs").write_text("[1, 2")
    with pytest.raises(WorkbenchError, match=r"\.zattrs is no JSON object"):
        ReplayBuffer.load(tmp_path / "c.zarr")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path, bad):
    buffer = small_buffer()
    buffer.arrays["keypoint"][25, 3, 1] = bad
    writer.write(tmp_path / "a.zarr", buffer.arrays, buffer.episode_ends, {})
    with pytest.raises(WorkbenchError, match=rf"keypoint\[25, 3, 1\] = {bad} \(episode 3, its step 3\)") as error:
        ReplayBuffer.load(tmp_path / "a.zarr")
    one_line(error)
    with pytest.raises(WorkbenchError, match="keypoint"):
        buffer.save(tmp_path / "b.zarr")
    assert not (tmp_path / "b.zarr").exists()


def test_wrong_shape_per_step(tmp_path):
    small_buffer().save(tmp_path / "a.zarr")
    with pytest.raises(WorkbenchError, match=r"action of shape \(2,\) per step; expected \(7,\)"):
        ReplayBuffer.load(tmp_path / "a.zarr", shapes={"action": (7,), "absent": (1,)})


# Writing


@pytest.mark.parametrize("name", ["a.zarr", "a.zarr.zip", "a.npz"])
def test_never_overwrites_unasked_and_replaces_when_asked(tmp_path, name):
    small_buffer(seed=1).save(tmp_path / name)
    with pytest.raises(WorkbenchError, match="a path that exists"):
        small_buffer(seed=2).save(tmp_path / name)
    assert_same(ReplayBuffer.load(tmp_path / name), small_buffer(seed=1))
    small_buffer(seed=2).save(tmp_path / name, overwrite=True)
    assert_same(ReplayBuffer.load(tmp_path / name), small_buffer(seed=2))
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_names_and_formats_that_are_not_known(tmp_path):
    with pytest.raises(WorkbenchError, match=r"suffix '\.h5'"):
        small_buffer().save(tmp_path / "a.h5")
    with pytest.raises(WorkbenchError, match="zarr_format: got 4"):
        small_buffer().save(tmp_path / "a.zarr", 4)
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkbenchError, match="nothing can be written"):
        small_buffer().save(tmp_path / "file" / "a.zarr")


SAVE = """
import os, resource, signal, sys
from diffusion_core.errors import WorkbenchError
from tests.policy.stores import small_buffer
{before}
try:
    small_buffer(images=True, seed=2).save(sys.argv[1], overwrite=True)
except WorkbenchError as error:
    print(error)
    sys.exit(2)
"""
FULL = "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))"
KILLED = "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize("name", ["a.zarr", "a.zarr.zip", "a.npz"])
@pytest.mark.parametrize(("before", "status"), [(FULL, 2), (KILLED, -signal.SIGKILL)])
def test_full_disk_or_kill_leaves_the_old_store(tmp_path, name, before, status):
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    small_buffer(seed=1).save(tmp_path / name)
    command = [sys.executable, "-c", SAVE.format(before=before), str(tmp_path / name)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert_same(ReplayBuffer.load(tmp_path / name), small_buffer(seed=1))
    if status == 2:
        assert "could not be written: File too large" in done.stdout and done.stdout.count("\n") == 1
        assert [p.name for p in tmp_path.iterdir()] == [name]


def test_interrupted_writer_cleans_up(tmp_path, monkeypatch):
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        small_buffer().save(tmp_path / "a.zarr.zip")
    assert list(tmp_path.iterdir()) == []


# In memory


def test_episodes_subset_and_concatenation():
    buffer = small_buffer()
    assert (buffer.n_steps, buffer.n_episodes) == (51, 5)
    assert buffer.episode_lengths.tolist() == LENGTHS
    np.testing.assert_array_equal(buffer.episode(1)["action"], buffer.arrays["action"][7:19])
    np.testing.assert_array_equal(buffer.episode(-1)["action"], buffer.arrays["action"][42:])
    assert np.shares_memory(buffer.episode(2)["state"], buffer.arrays["state"])
    with pytest.raises(WorkbenchError, match="got episode 5; expected 0 to 4"):
        buffer.episode(5)
    some = buffer.subset([3, 0])
    assert some.episode_ends.tolist() == [20, 27]
    np.testing.assert_array_equal(some.episode(1)["state"], buffer.episode(0)["state"])
    assert some.attributes == buffer.attributes
    with pytest.raises(WorkbenchError, match="got none"):
        buffer.subset([])
    halves = concatenate([buffer.subset([0, 1]), buffer.subset([2, 3, 4])])
    assert_same(halves, buffer)
    assert_same(ReplayBuffer.from_episodes(buffer.episode(i) for i in range(5)), buffer)


def test_concatenation_refuses_unlike_parts():
    images = small_buffer(images=True)
    with pytest.raises(WorkbenchError, match="in part 1"):
        concatenate([small_buffer(), images])
    with pytest.raises(WorkbenchError, match="no buffers"):
        concatenate([])
    ragged = {"action": np.zeros((4, 2)), "state": np.zeros((5, 5))}
    with pytest.raises(WorkbenchError, match="5 steps of state"):
        ReplayBuffer.from_episodes([ragged]).validate()


# The real thing


@pytest.mark.skipif(not HUMAN.is_dir(), reason="WORKBENCH_DATA does not hold policy/")
def test_human_demonstrations():
    buffer = ReplayBuffer.load(HUMAN / "pusht_cchi_v7_replay_lowdim.zarr.zip")
    assert (buffer.n_episodes, buffer.n_steps) == (206, 25650)
    assert {k: v.shape[1:] for k, v in buffer.arrays.items()} == {
        "action": (2,),
        "keypoint": (9, 2),
        "n_contacts": (1,),
        "state": (5,),
    }
    assert buffer.episode_lengths[0] == 161
    angle = buffer.arrays["state"][:, 4]
    assert angle.min() >= 0 and angle.max() < 2 * np.pi
    whole = ReplayBuffer.load(HUMAN / "pusht_cchi_v7_replay.zarr.zip", list(buffer.arrays))
    assert_same(buffer, whole)
    form, described = reader.describe(HUMAN / "pusht_cchi_v7_replay.zarr.zip")
    assert form == "zarr v2 zip" and described["img"].chunks == (161, 96, 96, 3)


@pytest.mark.skipif(not HUMAN.is_dir(), reason="WORKBENCH_DATA does not hold policy/")
def test_human_demonstrations_with_a_chunk_cut_short(tmp_path):
    with zipfile.ZipFile(HUMAN / "pusht_cchi_v7_replay_lowdim.zarr.zip") as archive:
        archive.extractall(tmp_path / "a.zarr")
    chunk = tmp_path / "a.zarr/data/keypoint/100.0.0"
    chunk.write_bytes(chunk.read_bytes()[:2000])
    with pytest.raises(WorkbenchError, match=r"data/keypoint/100\.0\.0 is damaged .* steps 16100 to 16260, episodes"):
        ReplayBuffer.load(tmp_path / "a.zarr")

"""LeRobot's folders: formats 2.1 and 3.0 as their authors lay them out, our writer, and the authors' own loader."""

import io
import json
import os
from pathlib import Path

import av
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from diffusion_core.errors import WorkbenchError
from policy.data import forms
from policy.data.forms import Wish
from policy.data.lerobot import writer
from policy.data.lerobot.statistics import QUANTILES, statistics
from policy.data.replay import ReplayBuffer
from tests.policy.data.files import pusht

HUMAN = Path(os.environ.get("WORKBENCH_DATA", "/absent")) / "policy" / "pusht_cchi_v7_replay.zarr.zip"
TASKS = ["Push the T-shaped block.", "Push it again."]


def human(steps: int = 30) -> dict[str, np.ndarray]:
    """The beginning of the first human demonstration, the only chunk that is decoded."""
    import zarr
    from zarr.storage import ZipStore

    with ZipStore(HUMAN, mode="r") as store:
        root = next(group for _, group in [("", zarr.open_group(store, mode="r"))])
        root = root if "data" in root else root[next(iter(root.group_keys()))]
        return {key: np.asarray(root[f"data/{key}"][:steps]) for key in ("action", "state", "img")}


def video(path: Path, images: np.ndarray, codec: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=10, options={"crf": "18", "g": "2"})
        stream.width, stream.height, stream.pix_fmt = images.shape[2], images.shape[1], "yuv420p"
        for image in images:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        file.mux(stream.encode())


def v21(root: Path, buffer: ReplayBuffer, codec: str | None) -> Path:
    """A folder of format 2.1, images as png in the tables or as videos, by the rules of the format."""
    begin, cell = 0, "observation.images.top"
    for i, length in enumerate(buffer.episode_lengths.tolist()):
        part = buffer.episode(i)
        columns = {
            "observation.state": pyarrow.FixedSizeListArray.from_arrays(part["state"].ravel(), 5),
            "action": pyarrow.array(list(part["action"]), pyarrow.list_(pyarrow.float32())),
            "next.reward": pyarrow.array(np.arange(length, dtype=np.float32)),
            "next.done": pyarrow.array(np.arange(length) == length - 1),
            "timestamp": pyarrow.array((np.arange(length) / 10).astype(np.float32)),
            "frame_index": pyarrow.array(np.arange(length)),
            "episode_index": pyarrow.array(np.full(length, i)),
            "index": pyarrow.array(np.arange(begin, begin + length)),
            "task_index": pyarrow.array(np.full(length, i % 2)),
        }
        if codec:
            video(root / f"videos/chunk-000/{cell}/episode_{i:06d}.mp4", part["img"], codec)
        else:
            cells = []
            for image in part["img"]:
                stream = io.BytesIO()
                Image.fromarray(image).save(stream, "png")
                cells.append({"bytes": stream.getvalue(), "path": None})
            columns[cell] = pyarrow.array(cells)
        path = root / f"data/chunk-000/episode_{i:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        begin += length
    features = {"observation.state": ("float32", [5]), "action": ("float32", [2]), "next.reward": ("float32", [1])}
    features |= {"next.done": ("bool", [1]), "timestamp": ("float32", [1])}
    features |= {name: ("int64", [1]) for name in ("frame_index", "episode_index", "index", "task_index")}
    features |= {cell: ("video" if codec else "image", [96, 96, 3])}
    info = {
        "codebase_version": "v2.1",
        "robot_type": "2d_pointer",
        "total_episodes": buffer.n_episodes,
        "total_frames": buffer.n_steps,
        "chunks_size": 1000,
        "fps": 10,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4" if codec else None,
        "features": {
            k: {"dtype": d, "shape": s, "names": ["height", "width", "channel"] if k == cell else None}
            for k, (d, s) in features.items()
        },
    }
    (root / "meta").mkdir()
    (root / "meta/info.json").write_text(json.dumps(info))
    lines = {
        "tasks": [{"task_index": i, "task": task} for i, task in enumerate(TASKS)],
        "episodes": [
            {"episode_index": i, "tasks": [TASKS[i % 2]], "length": n}
            for i, n in enumerate(buffer.episode_lengths.tolist())
        ],
    }
    for name, told in lines.items():
        (root / f"meta/{name}.jsonl").write_text("\n".join(map(json.dumps, told)) + "\n")
    return root


def like(decoded: np.ndarray, images: np.ndarray) -> None:
    """Every decoded frame is near its image, and nearer to it than to the others of its episode that differ."""
    assert decoded.dtype == np.uint8 and decoded.shape == images.shape
    distance = np.abs(decoded[:, None].astype(np.int16) - images[None].astype(np.int16)).mean((2, 3, 4))
    assert distance.diagonal().max() < 2.0
    apart = np.abs(images[:, None].astype(np.int16) - images[None].astype(np.int16)).mean((2, 3, 4)) > 0.3
    assert apart.any() and (distance.diagonal()[:, None] < distance)[apart].all()


@pytest.mark.parametrize("codec", [None, "libx264", "libsvtav1"])
def test_format_2_1(tmp_path, codec):
    buffer = pusht()
    found = ReplayBuffer.load(v21(tmp_path / "v21", buffer, codec))
    assert sorted(found.arrays) == ["action", "done", "reward", "state", "task_index", "top"]
    assert found.episode_ends.tolist() == buffer.episode_ends.tolist()
    for key in ("action", "state"):
        assert found.arrays[key].dtype == np.float32
        np.testing.assert_array_equal(found.arrays[key], buffer.arrays[key])
    assert np.flatnonzero(found.arrays["done"]).tolist() == (buffer.episode_ends - 1).tolist()
    assert found.arrays["task_index"].tolist() == [0] * 20 + [1] * 21 + [0] * 22
    assert found.attributes["tasks"] == TASKS and found.attributes["fps"] == 10
    if codec:
        for i in range(3):
            like(found.episode(i)["top"], buffer.episode(i)["img"])
    else:
        np.testing.assert_array_equal(found.arrays["top"], buffer.arrays["img"])
    form, described = forms.describe(tmp_path / "v21")
    assert form == "LeRobot v2.1" and {k: v.shape for k, v in described.items() if k in found.arrays} == {
        k: v.shape for k, v in found.arrays.items()
    }


@pytest.mark.skipif(not HUMAN.exists(), reason="WORKBENCH_DATA does not hold the human demonstrations with images")
def test_format_2_1_of_human_demonstrations(tmp_path):
    arrays = human()
    arrays["img"] = arrays["img"].astype(np.uint8)
    buffer = ReplayBuffer.from_episodes([arrays])
    found = ReplayBuffer.load(v21(tmp_path / "png", buffer, None))
    np.testing.assert_array_equal(found.arrays["top"], arrays["img"])
    like(ReplayBuffer.load(v21(tmp_path / "h264", buffer, "libx264")).arrays["top"], arrays["img"])


def test_what_was_read_of_format_2_1_is_written_as_3_0_under_its_names(tmp_path):
    came = ReplayBuffer.load(v21(tmp_path / "v21", pusht(), None))
    came.save_as(tmp_path / "v30", Wish(format="lerobot"))
    info = json.loads((tmp_path / "v30/meta/info.json").read_text())
    before = json.loads((tmp_path / "v21/meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["robot_type"] == "2d_pointer"
    kinds = [{k: (v["dtype"], v["shape"]) for k, v in i["features"].items()} for i in (info, before)]
    assert kinds[0] == kinds[1]
    (tmp_path / "v30/meta/workbench.json").unlink()
    back = ReplayBuffer.load(tmp_path / "v30")
    assert sorted(back.arrays) == sorted(came.arrays)
    assert back.attributes["tasks"] == TASKS
    for key, values in came.arrays.items():
        assert back.arrays[key].dtype == values.dtype
        np.testing.assert_array_equal(back.arrays[key], values)


@pytest.mark.parametrize("images", ["png", "video"])
@pytest.mark.parametrize("many_files", [False, True])
def test_format_3_0_out_and_in(tmp_path, monkeypatch, images, many_files):
    if many_files:
        monkeypatch.setattr(writer, "TABLE_MB", 1e-3)
        monkeypatch.setattr(writer, "VIDEO_MB", 1e-5)
        monkeypatch.setattr(writer, "FILES_PER_CHUNK", 2)
    buffer = pusht()
    buffer.save_as(tmp_path / "v30", Wish(format="lerobot", fps=10.0, images=images))
    names = sorted(p.relative_to(tmp_path / "v30").as_posix() for p in tmp_path.rglob("*.parquet"))
    chunks = ["000/file-000", "000/file-001", "001/file-000"] if many_files else ["000/file-000"]
    assert [n for n in names if n.startswith("data")] == [f"data/chunk-{c}.parquet" for c in chunks]
    films = sorted(p.relative_to(tmp_path / "v30/videos").as_posix() for p in tmp_path.rglob("*.mp4"))
    assert films == ([f"observation.images.img/chunk-{c}.mp4" for c in chunks] if images == "video" else [])
    back = ReplayBuffer.load(tmp_path / "v30")
    assert sorted(back.arrays) == sorted(buffer.arrays)
    assert back.attributes == buffer.attributes | {"fps": 10}
    for key, values in buffer.arrays.items():
        assert back.arrays[key].dtype == values.dtype and back.arrays[key].shape == values.shape
        if key != "img" or images == "png":
            np.testing.assert_array_equal(back.arrays[key], values)
    for i in range(buffer.n_episodes):
        if images == "video":
            like(back.episode(i)["img"], buffer.episode(i)["img"])


def test_times_of_their_own_are_kept(tmp_path):
    buffer = pusht()
    late = np.concatenate([np.arange(n) / 10 + 0.003 for n in buffer.episode_lengths]).astype(np.float32)
    ReplayBuffer(buffer.arrays | {"timestamp": late}, buffer.episode_ends).save_as(
        tmp_path / "a", Wish("lerobot", fps=10.0)
    )
    np.testing.assert_array_equal(ReplayBuffer.load(tmp_path / "a").arrays["timestamp"], late)


def test_statistics_of_vectors_and_images():
    buffer = pusht()
    for key in ("state", "img"):
        values = buffer.arrays[key]
        rows = values.astype(np.float64).reshape(-1, values.shape[-1]) / (255.0 if key == "img" else 1.0)
        found = {name: of.ravel() for name, of in statistics(values).items()}
        expected = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
        for name, q in QUANTILES.items():
            expected[name] = np.quantile(rows, q, axis=0, method="inverted_cdf" if key == "img" else "linear")
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-12, err_msg=f"{key} {name}")
        assert found["count"].tolist() == [buffer.n_steps]


def rewrite(change):
    def harm(root: Path) -> None:
        path = root / "data/chunk-000/file-000.parquet"
        pyarrow.parquet.write_table(change(pyarrow.parquet.ParquetFile(path).read()), path)

    return harm


def edit(name: str, change):
    def harm(root: Path) -> None:
        told = json.loads((root / name).read_text())
        change(told)
        (root / name).write_text(json.dumps(told))

    return harm


def cut(pattern: str):
    def harm(root: Path) -> None:
        path = next(root.rglob(pattern))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return harm


FILM = "videos/observation.images.img/chunk-000/file-000.mp4"
NULL = pyarrow.array([None] * 63, pyarrow.list_(pyarrow.float32(), 2))


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (
            edit("meta/info.json", lambda i: i.update(codebase_version="v1.6")),
            "format v1.6; expected v2.0, v2.1 or v3.x",
        ),
        (edit("meta/info.json", lambda i: i.pop("features")), "the metadata lack or garble 'features'"),
        (
            edit("meta/info.json", lambda i: i["features"]["action"].update(shape=[3])),
            "126 numbers .*of action; expected",
        ),
        (cut("info.json"), "cannot be read as JSON"),
        (cut("file-000.parquet"), "cannot be read as parquet"),
        (lambda root: (root / "data/chunk-000/file-000.parquet").unlink(), "cannot be read as parquet"),
        (lambda root: (root / "meta/tasks.parquet").unlink(), "cannot be read as parquet"),
        (rewrite(lambda t: t.slice(0, 50)), "got 9 rows of episode 2.*expected 22"),
        (rewrite(lambda t: t.take(list(range(62, -1, -1)))), "counted from 0 in order"),
        (rewrite(lambda t: t.drop_columns(["action"])), "got no column action"),
        (
            rewrite(lambda t: t.set_column(t.schema.get_field_index("action"), "action", NULL)),
            "63 nulls in 63 rows of action",
        ),
        (cut("*.mp4"), "the video cannot be decoded"),
        (lambda root: (root / FILM).unlink(), "the video cannot be decoded"),
        (lambda root: video(root / FILM, pusht().arrays["img"][:50], "libx264"), "got no frame at 5.000 s"),
        (lambda root: video(root / FILM, pusht().arrays["img"][:, :64, :64], "libx264"), r"a frame of \(64, 64, 3\)"),
    ],
)
def test_errors(tmp_path, harm, text):
    pusht().save_as(tmp_path / "v30", Wish(format="lerobot", fps=10.0, images="video"))
    harm(tmp_path / "v30")
    with pytest.raises(WorkbenchError, match=text) as caught:
        ReplayBuffer.load(tmp_path / "v30")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "wish", "text"),
    [
        ({}, {"fps": 0.0}, "got fps=0.0; expected the control rate"),
        ({}, {"images": "jpeg"}, "got images=jpeg; expected png"),
        ({"img": np.zeros((63, 95, 96, 3), np.uint8)}, {"images": "video"}, "95 x 96 px; expected even"),
        ({"task_index": np.full(63, 1)}, {}, "task_index of int64 .* and 0 instructions"),
        ({"a/b": np.zeros((63, 2))}, {}, "got array 'a/b'"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, arrays, wish, text):
    buffer = ReplayBuffer(pusht().arrays | arrays, pusht().episode_ends)
    with pytest.raises(WorkbenchError, match=text):
        buffer.save_as(tmp_path / "v30", Wish(**{"format": "lerobot", "fps": 10.0} | wish))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("images", ["png", "video"])
def test_the_loader_of_its_authors_reads_what_we_write(tmp_path, monkeypatch, images):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    theirs = pytest.importorskip(
        "lerobot.datasets.lerobot_dataset", reason="lerobot is not installed: pip install lerobot"
    )
    buffer = pusht()
    buffer.save_as(tmp_path / "v30", Wish(format="lerobot", fps=10.0, images=images, task="Push the T"))
    ours = ReplayBuffer.load(tmp_path / "v30")
    dataset = theirs.LeRobotDataset("local/pusht", root=tmp_path / "v30", video_backend="pyav")
    assert len(dataset) == buffer.n_steps and dataset.num_episodes == 3 and dataset.fps == 10
    for i in [0, 19, 20, 40, 41, 62]:
        item = dataset[i]
        assert item["task"] == "Push the T" and int(item["index"]) == i
        for key, name in (("state", "observation.state"), ("keypoint", "observation.keypoint"), ("action", "action")):
            np.testing.assert_array_equal(item[name].numpy(), buffer.arrays[key][i])
        image = np.round(item["observation.images.img"].numpy().transpose(1, 2, 0) * 255)
        np.testing.assert_array_equal(image, ours.arrays["img"][i])
    np.testing.assert_allclose(dataset.meta.stats["action"]["q99"], np.quantile(buffer.arrays["action"], 0.99, axis=0))


@pytest.mark.parametrize("video", [False, True])
def test_we_read_what_its_authors_write(tmp_path, monkeypatch, video):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    theirs = pytest.importorskip(
        "lerobot.datasets.lerobot_dataset", reason="lerobot is not installed: pip install lerobot"
    )
    buffer = pusht()
    features = {
        "observation.state": {"dtype": "float32", "shape": (5,), "names": list("abcde")},
        "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        "next.done": {"dtype": "bool", "shape": (1,), "names": None},
        "observation.images.top": {
            "dtype": "video" if video else "image",
            "shape": (96, 96, 3),
            "names": ["height", "width", "channels"],
        },
    }
    dataset = theirs.LeRobotDataset.create("local/a", fps=10, features=features, root=tmp_path / "a", use_videos=video)
    for i in range(buffer.n_episodes):
        part = buffer.episode(i)
        for state, action, image in zip(part["state"], part["action"], part["img"], strict=True):
            frame = {"observation.state": state, "action": action, "observation.images.top": image}
            dataset.add_frame(frame | {"next.done": np.array([False]), "task": TASKS[i % 2]})
        dataset.save_episode()
    dataset.finalize()
    found = ReplayBuffer.load(tmp_path / "a")
    assert sorted(found.arrays) == ["action", "done", "state", "task_index", "top"]
    assert found.attributes["tasks"] == TASKS and found.episode_ends.tolist() == buffer.episode_ends.tolist()
    np.testing.assert_array_equal(found.arrays["state"], buffer.arrays["state"])
    np.testing.assert_array_equal(found.arrays["action"], buffer.arrays["action"])
    for i in range(buffer.n_episodes):
        if video:
            like(found.episode(i)["top"], buffer.episode(i)["img"])
        else:
            np.testing.assert_array_equal(found.episode(i)["top"], buffer.episode(i)["img"])

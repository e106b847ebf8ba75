"""Sources: where demonstrations are looked for, and that nothing unproven is ever used."""

import functools
import hashlib
import http.server
import os
import shutil
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from diffusion_core.errors import WorkbenchError
from envs.pusht import keypoints, observations
from policy.data import sources
from policy.data.replay import ReplayBuffer
from tests.policy.stores import N_STEPS, small_buffer, zip_folder

STAGED = Path(os.environ.get("WORKBENCH_DATA", "/absent")) / "policy"
needs_human = pytest.mark.skipif(not STAGED.is_dir(), reason="WORKBENCH_DATA does not hold policy/")
LOW_DIM = "pusht_cchi_v7_replay_lowdim.zarr.zip"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, no WORKBENCH_DATA, and no network beyond a server of this test."""
    monkeypatch.delenv("WORKBENCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "HUMAN_URL", "http://127.0.0.1:9/pusht.zip")
    return tmp_path / "cache/diffusion-workbench/policy"


@pytest.fixture
def site(tmp_path, monkeypatch, cache):
    """A folder served over HTTP in the place of the authors' site."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setattr(sources, "HUMAN_URL", f"http://127.0.0.1:{server.server_port}/pusht.zip")
    yield folder
    server.shutdown()
    server.server_close()


def publish(site: Path, buffer: ReplayBuffer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve a small store the way the public one is, and make its content the expected one."""
    buffer.save(site.parent / "made/replay.zarr")
    zip_folder(site.parent / "made", site / "pusht.zip", "pusht/")
    low = {k: v for k, v in buffer.arrays.items() if k != "img"} | {"episode_ends": buffer.episode_ends}
    monkeypatch.setattr(sources, "HUMAN_LOW_DIM", sources.content_sha256(low))
    monkeypatch.setattr(sources, "HUMAN_IMAGES", sources.content_sha256({"img": buffer.arrays["img"]}))


def test_missing_human_set_is_never_replaced(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "staged"))
    for download in (True, False):
        with pytest.raises(WorkbenchError) as error:
            sources.load("human", ["keypoint", "state"], download=download)
        text = str(error.value)
        assert "\n" not in text
        for part in (str(tmp_path / "staged/policy" / LOW_DIM), str(cache / "pusht.zip"), sources.HUMAN_URL):
            assert part in text
        assert "python -m policy.data fetch human" in text
        assert ("the download failed: ConnectionError" if download else "not asked to download") in text
    assert not (cache / "pusht.zip").exists()
    monkeypatch.delenv("WORKBENCH_DATA")
    with pytest.raises(WorkbenchError, match="WORKBENCH_DATA is not set"):
        sources.load("human", ["state"])


def test_download_is_verified_kept_and_used_again(site, cache, monkeypatch):
    buffer = small_buffer(images=True)
    publish(site, buffer, monkeypatch)
    got, line = sources.load("human", ["keypoint", "state"])
    np.testing.assert_array_equal(got.arrays["keypoint"], buffer.arrays["keypoint"])
    assert got.source == "human" and "img" not in got.arrays
    digest = hashlib.sha256((cache / "pusht.zip").read_bytes()).hexdigest()
    assert line == f"human: 5 episodes, {N_STEPS} steps, pusht.zip, sha256 {digest}"
    (site / "pusht.zip").unlink()
    images, again = sources.load("human", ["img", "state"])
    assert again == line
    np.testing.assert_array_equal(images.arrays["img"], buffer.arrays["img"])


@pytest.mark.parametrize(("key", "reads"), [("action", ["state"]), ("keypoint", ["state"]), ("img", ["img", "state"])])
def test_changed_download_is_put_aside(site, cache, monkeypatch, key, reads):
    buffer = small_buffer(images=True)
    publish(site, buffer, monkeypatch)
    buffer.arrays[key].flat[100] += 1
    shutil.rmtree(site.parent / "made")
    buffer.save(site.parent / "made/replay.zarr")
    zip_folder(site.parent / "made", site / "pusht.zip", "pusht/")
    with pytest.raises(WorkbenchError, match=r"content sha256 \w{64}; expected \w{64}") as error:
        sources.load("human", reads)
    left = list(cache.iterdir())
    assert len(left) == 1 and left[0].name.startswith("pusht.zip.bad-") and str(left[0]) in str(error.value)
    assert left[0].read_bytes() == (site / "pusht.zip").read_bytes()


def test_half_a_download_is_put_aside(site, cache, monkeypatch):
    publish(site, small_buffer(images=True), monkeypatch)
    raw = (site / "pusht.zip").read_bytes()
    (site / "pusht.zip").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(WorkbenchError, match=r"cut short .* put aside as"):
        sources.load("human", ["state"])
    (site / "pusht.zip").write_bytes(raw)
    assert sources.load("human", ["state"])[0].n_steps == N_STEPS


def test_file_spoiled_in_the_cache_is_noticed(site, cache, monkeypatch):
    publish(site, small_buffer(images=True), monkeypatch)
    sources.fetch_human(images=False)
    small_buffer(images=True, seed=3).save(cache / "other.zarr")
    zip_folder(cache / "other.zarr", cache / "pusht.zip")
    with pytest.raises(WorkbenchError, match="not the published demonstrations"):
        sources.load("human", ["state"])


def test_wrong_checksum_in_workbench_data(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "staged"))
    path = tmp_path / "staged/policy" / LOW_DIM
    small_buffer().save(path)
    with pytest.raises(WorkbenchError) as error:
        sources.load("human", ["state"])
    assert f"got sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}" in str(error.value)
    assert f"expected {sources.HUMAN_SHA256[LOW_DIM]}" in str(error.value)
    assert path.exists()


def test_expert_that_is_not_there_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "EXPERT", tmp_path / "pusht_expert.zarr.zip")
    with pytest.raises(WorkbenchError, match=r"python -m policy.data generate out=.*pusht_expert.zarr.zip"):
        sources.load("expert", ["state"])
    small_buffer().save(sources.EXPERT)
    buffer, line = sources.load("expert", ["state"])
    assert buffer.source == "expert" and line.startswith("expert: ") and f"{sources.EXPERT.name}, sha256 " in line
    with pytest.raises(WorkbenchError, match=r"without img; expected action, img, state, which .*: use source human"):
        sources.load("expert", ["img", "state"])


@pytest.mark.skipif(not sources.EXPERT.exists(), reason="the expert's demonstrations have not been generated yet")
def test_shipped_expert_demonstrations():
    assert sources.EXPERT.stat().st_size < 1_000_000
    buffer, _ = sources.load("expert", ["keypoint", "state"])
    assert buffer.n_episodes >= 100
    assert buffer.attributes["generator"] == "envs.pusht_generate"


def test_a_path_is_a_source(tmp_path):
    small_buffer(images=True).save(tmp_path / "a.zarr")
    buffer, line = sources.load(str(tmp_path / "a.zarr"), ["img", "state"])
    assert sorted(buffer.arrays) == ["action", "img", "state"]
    assert line.startswith("file: ") and "a.zarr, sha256 of content" in line
    small_buffer(images=True).save(tmp_path / "b.zarr", zarr_format=3)
    assert sources.load(str(tmp_path / "b.zarr"), ["img", "state"])[1].split("sha256")[1] == line.split("sha256")[1]
    with pytest.raises(WorkbenchError, match="name expert, human or the path of a store"):
        sources.load("humann", ["state"])


def test_store_of_another_task_is_refused(tmp_path):
    arrays = {"action": np.zeros((4, 7), np.float32), "state": np.zeros((4, 5), np.float32)}
    ReplayBuffer(arrays, np.array([4])).save(tmp_path / "a.npz")
    with pytest.raises(WorkbenchError, match=r"action of shape \(7,\) per step; expected \(2,\)"):
        sources.load(str(tmp_path / "a.npz"), ["state"], {"action": (2,)})


def test_observations():
    a = small_buffer(images=True).arrays
    assert observations(a, "state")["state"] is a["state"]
    seen = observations(a, "keypoints")["keypoints"]
    assert seen.shape == (N_STEPS, 20) and seen.dtype == np.float32
    for step in (0, 17, 50):
        expected = [v for x, y in a["keypoint"][step] for v in (x, y)] + [a["state"][step, 0], a["state"][step, 1]]
        assert seen[step].tolist() == expected
    seen = observations(a, "image")
    assert seen["image"] is a["img"] and seen["agent_pos"].tolist() == a["state"][:, :2].tolist()


def test_arrays_that_are_not_there(tmp_path):
    ReplayBuffer({"action": small_buffer().arrays["action"]}, small_buffer().episode_ends).save(tmp_path / "a.npz")
    with pytest.raises(WorkbenchError, match="without keypoint, state; expected action, keypoint, state"):
        sources.load(str(tmp_path / "a.npz"), ["keypoint", "state"])


def test_content_digest_knows_names_types_shapes_and_values():
    values = np.arange(6, dtype=np.float32)
    digest = sources.content_sha256({"a": values})
    assert digest == hashlib.sha256(b"a <f4 (6,)\n" + values.tobytes()).hexdigest()
    assert digest == sources.content_sha256({"a": values.astype(">f4")})
    different = [{"b": values}, {"a": values.reshape(2, 3)}, {"a": values.view(np.int32)}, {"a": values + 1}]
    assert len({digest, *map(sources.content_sha256, different)}) == 5
    both = {"b": values, "a": values}
    assert sources.content_sha256(both) == sources.content_sha256(dict(sorted(both.items())))


@needs_human
def test_staged_human_demonstrations(monkeypatch):
    buffer, line = sources.load("human", ["keypoint", "state"], download=False)
    path = STAGED / LOW_DIM
    assert line == f"human: 206 episodes, 25650 steps, {path.name}, sha256 {sources.HUMAN_SHA256[LOW_DIM]}"
    arrays = ReplayBuffer.load(path).arrays | {"episode_ends": buffer.episode_ends}
    assert sources.content_sha256(arrays) == sources.HUMAN_LOW_DIM


@needs_human
def test_keypoints_of_the_environment_are_those_of_the_human_data():
    buffer, _ = sources.load("human", ["keypoint", "state"], download=False)
    seen = observations(buffer.arrays, "keypoints")["keypoints"]
    # Recorded as float32 from a state one physics step away: rest agrees to rounding, motion to a few px.
    difference = np.abs(seen[:, :18] - keypoints(buffer.arrays["state"])).max(1)
    assert np.median(difference) < 1e-3


@needs_human
def test_published_route_with_the_real_arrays(site, cache):
    with zipfile.ZipFile(STAGED / LOW_DIM) as staged, zipfile.ZipFile(site / "pusht.zip", "w") as archive:
        for name in staged.namelist():
            archive.writestr(f"pusht/pusht_cchi_v7_replay.zarr/{name}", staged.read(name))
    buffer, line = sources.load("human", ["state"])
    assert buffer.n_steps == 25650 and line.startswith("human: 206 episodes, 25650 steps, pusht.zip, ")
    with pytest.raises(WorkbenchError, match="without img"):
        sources.load("human", ["img", "state"])


@pytest.mark.slow
@needs_human
def test_staged_human_images():
    buffer, _ = sources.load("human", ["img", "state"], download=False)
    assert buffer.arrays["img"].dtype == np.uint8
    assert sources.content_sha256({"img": buffer.arrays["img"]}) == sources.HUMAN_IMAGES

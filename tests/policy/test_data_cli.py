"""`python -m policy.data`: each verb as a user runs it, and one clear line for each mistake."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from policy.data import __main__ as cli
from policy.data import sources
from policy.data.recording import render
from policy.data.replay import ReplayBuffer
from tests.policy.stores import small_buffer

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "policy.data"]
STAGED = Path(os.environ.get("WORKBENCH_DATA", "/absent")) / "policy"
needs_human = pytest.mark.skipif(not STAGED.is_dir(), reason="WORKBENCH_DATA does not hold policy/")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], cwd=ROOT, capture_output=True, text=True, check=False)


def test_usage():
    for words in ((), ("--help",)):
        done = run(*words)
        assert done.returncode == 0 and done.stderr == ""
        assert all(f"  {verb}" in done.stdout for verb in cli.VERBS)


def test_usage_names_every_option():
    for kind in (cli.Generate, cli.Inspect, cli.Convert, cli.Doctor, cli.Fetch):
        for name in kind.__dataclass_fields__:
            assert f"{name}=" in cli.USAGE or name in ("source", "what")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["inspct"],
            "got verb 'inspct'; expected one of generate, inspect, convert, doctor, fetch: did you mean inspect?",
        ),
        (["generate", "epsiodes=3"], "did you mean episodes=...?"),
        (["generate", "episodes"], "expected key=value"),
        (["generate", "episodes=three", "out=a.npz"], "bad episodes"),
        (["generate", "episodes=3"], "got no out"),
        (["generate", "episodes=-3", "out={tmp}/a.npz"], "got episodes=-3; expected at least 0"),
        (["generate", "episodes=0", "out={tmp}/a.npz"], "expected at least one episode"),
        (["generate", "episodes=1", "out={tmp}/taken.npz"], "a path that exists"),
        (["generate", "episodes=1", "out={tmp}/a.h5"], "suffix '.h5'"),
        (["generate", "episodes=1", "out={tmp}/taken.npz/a.npz"], "nothing can be written"),
        (["generate", "episodes=1", "zarr_format=1", "out={tmp}/a.npz"], "zarr_format: got 1"),
        (["inspect"], "got no source"),
        (["inspect", "{tmp}/absent.zarr"], "got nothing at"),
        (["inspect", "{tmp}/text.zarr.zip"], "a file that is no zip"),
        (["convert", "src={tmp}/taken.npz"], "got no out"),
        (["convert", "src={tmp}/taken.npz", "out={tmp}/b.npz", "keys=action"], "like keys=[a,b]"),
        (["convert", "src={tmp}/taken.npz", "out={tmp}/b.npz", "keys=[img]"], "expected also img"),
        (["convert", "src={tmp}/taken.npz", "out={tmp}/b.npz", "keys=[action"], "got a bad option"),
        (["fetch", "robomimic"], "expected human"),
    ],
)
def test_mistakes(tmp_path, capsys, words, text):
    small_buffer().save(tmp_path / "taken.npz")
    (tmp_path / "text.zarr.zip").write_text("hello")
    status = cli.main([w.replace("{tmp}", str(tmp_path)) for w in words])
    out, err = capsys.readouterr()
    assert status == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and text in err


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    done = run("inspect", str(tmp_path / "absent.zarr"))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_nothing_heavy_is_imported():
    heavy = "{'torch', 'zarr', 'gymnasium', 'pygame'} & set(sys.modules)"
    code = f"import sys, policy.data.replay, policy.data.sources, policy.data.windows; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_convert_round_trip_through_every_form(tmp_path):
    buffer = small_buffer(images=True)
    buffer.save(tmp_path / "0.zarr.zip")
    forms = ["1.zarr", "2.npz", "3.zarr.zip", "4.zarr"]
    for i, form in enumerate(forms):
        source = tmp_path / (["0.zarr.zip", *forms][i])
        assert cli.main(["convert", f"src={source}", f"out={tmp_path / form}", f"zarr_format={2 + i % 2}"]) == 0
    back = ReplayBuffer.load(tmp_path / "4.zarr")
    assert sorted(back.arrays) == sorted(buffer.arrays) and back.attributes == buffer.attributes
    for key, values in buffer.arrays.items():
        assert back.arrays[key].dtype == values.dtype
        np.testing.assert_array_equal(back.arrays[key], values)


def test_convert_drops_what_is_not_named_and_overwrites_only_when_told(tmp_path, capsys):
    small_buffer(images=True).save(tmp_path / "a.zarr")
    words = ["convert", f"src={tmp_path / 'a.zarr'}", f"out={tmp_path / 'b.zarr.zip'}", "keys=[action,state]"]
    assert cli.main(words) == 0
    assert sorted(ReplayBuffer.load(tmp_path / "b.zarr.zip").arrays) == ["action", "state"]
    assert cli.main(words) == 2
    assert cli.main([*words[:-1], "keys=[action]", "overwrite=true"]) == 0
    assert sorted(ReplayBuffer.load(tmp_path / "b.zarr.zip").arrays) == ["action"]
    assert "51 steps of action" in capsys.readouterr().out


def test_inspect_shows_what_is_there(tmp_path, capsys):
    small_buffer(images=True).save(tmp_path / "a.zarr", zarr_format=3)
    assert cli.main(["inspect", str(tmp_path / "a.zarr"), "images=true"]) == 0
    out = capsys.readouterr().out
    for text in ("zarr v3 directory", "(51, 96, 96, 3)", "uint8", "3, 5, 9, 17, 20 steps", "for a test", "sound"):
        assert text in out


def test_inspect_counts_what_is_not_finite_and_then_refuses(tmp_path, capsys):
    buffer = small_buffer()
    buffer.arrays["state"][5:7] = np.nan
    np.savez(tmp_path / "a.npz", **buffer.arrays, episode_ends=buffer.episode_ends)
    assert cli.main(["inspect", str(tmp_path / "a.npz")]) == 2
    out, err = capsys.readouterr()
    assert next(line for line in out.splitlines() if line.startswith("state")).endswith(" 10")
    assert "sound" not in out and "state[5, 0] = nan" in err


def test_inspect_says_which_chunk(tmp_path, capsys):
    small_buffer().save(tmp_path / "a.zarr")
    (tmp_path / "a.zarr/data/action/0.0").unlink()
    assert cli.main(["inspect", str(tmp_path / "a.zarr")]) == 2
    assert "chunk data/action/0.0 missing, steps 0 to 50, episodes 0 to 4" in capsys.readouterr().err


@needs_human
def test_human_demonstrations():
    done = run("inspect", "human")
    assert done.returncode == 0, done.stderr
    for text in ("Chi et al. 2023", "(25650, 9, 2)", "206; length", "49, 78, 122, 168, 246 steps", "0.772", "sound"):
        assert text in done.stdout
    done = run("fetch", "human")
    assert done.returncode == 0 and "verified, sha256 dad2dfde" in done.stdout


def test_fetch_without_a_network(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("WORKBENCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sources, "HUMAN_URL", "http://127.0.0.1:9/pusht.zip")
    assert cli.main(["fetch"]) == 2
    assert capsys.readouterr().err.count("\n") <= 2


def test_generate_is_the_same_for_any_number_of_processes(tmp_path):
    common = ["generate", "episodes=2", "near_goal=1", "noise_rate=0.1"]
    for jobs in (1, 2):
        done = run(*common, f"out={tmp_path / f'{jobs}.zarr.zip'}", f"jobs={jobs}")
        assert done.returncode == 0, done.stderr
        assert "3 episodes" in done.stdout
    assert (tmp_path / "1.zarr.zip").read_bytes() == (tmp_path / "2.zarr.zip").read_bytes()
    buffer = ReplayBuffer.load(tmp_path / "1.zarr.zip", shapes=sources.SHAPES)
    assert buffer.attributes["seeds"] == {"published": [200000, 200001], "near_goal": [200000]}
    assert buffer.attributes["options"]["noise_rate"] == 0.1
    assert all(values.dtype == np.float32 for values in buffer.arrays.values())


def test_images_are_what_the_environment_showed():
    from envs.pusht import PushT

    env = PushT(obs="image", render_mode=None)
    seen, info = env.reset(seed=3)
    images, states = [seen["image"]], [info["state"]]
    for _ in range(3):
        seen, _, _, _, info = env.step(np.array([256.0, 300.0]))
        images.append(seen["image"])
        states.append(info["state"])
    differ = (render(np.array(states, dtype=np.float32)) != np.stack(images)).any(-1).sum((1, 2))
    assert differ.max() <= 4, f"{differ} pixels of 9216 differ"


def test_interrupt_keeps_the_finished_episodes(tmp_path):
    small_buffer().save(tmp_path / "a.zarr.zip")
    before = (tmp_path / "a.zarr.zip").read_bytes()
    words = [*COMMAND, "generate", f"out={tmp_path / 'a.zarr.zip'}", "episodes=500", "jobs=2", "overwrite=true"]
    with (tmp_path / "log").open("w") as log:
        # a suite that runs in the background inherits an ignored SIGINT, and so would this process
        heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        running = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log, start_new_session=True, preexec_fn=heard)
        try:
            for _ in range(600):
                time.sleep(0.1)
                if "3/500" in (tmp_path / "log").read_text() or running.poll() is not None:
                    break
            os.killpg(running.pid, signal.SIGINT)
            assert running.wait(60) == 130
        finally:
            running.kill()
    log_text = (tmp_path / "log").read_text()
    assert "Traceback" not in log_text and log_text.endswith("interrupted\n")
    assert (tmp_path / "a.zarr.zip").read_bytes() == before
    kept = ReplayBuffer.load(tmp_path / "a.partial.zarr.zip")
    assert kept.n_episodes >= 3
    assert kept.attributes["seeds"]["published"][:3] == [200000, 200001, 200002]


def test_convert_puts_several_stores_end_to_end(tmp_path: Path) -> None:
    for name, episodes in (("a", 2), ("b", 3)):
        arrays = [{"action": np.full((4, 2), i, np.float32)} for i in range(episodes)]
        ReplayBuffer.from_episodes(arrays, {"name": name}).save(tmp_path / f"{name}.zarr.zip")
    done = run("convert", f"src={tmp_path / 'a.zarr.zip'},{tmp_path / 'b.zarr.zip'}", f"out={tmp_path / 'c.npz'}")
    assert done.returncode == 0, done.stderr
    joined = ReplayBuffer.load(tmp_path / "c.npz")
    assert joined.episode_ends.tolist() == [4, 8, 12, 16, 20]
    assert joined.arrays["action"][::4, 0].tolist() == [0, 1, 0, 1, 2]
    assert [part["name"] for part in joined.attributes["parts"]] == ["a", "b"]

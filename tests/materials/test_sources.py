"""Where crystals come from, and what is said if they do not."""

from __future__ import annotations

import hashlib

import pytest

from diffusion_core import download
from diffusion_core.errors import WorkbenchError
from materials.config import DataConfig, TaskConfig
from materials.data import sources

PEROV = TaskConfig("perov_5", 5)


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine without data, whose downloads are under tmp_path."""
    monkeypatch.delenv("WORKBENCH_DATA", raising=False)
    monkeypatch.setattr(download, "cache", lambda domain: tmp_path / domain)
    return tmp_path / "materials" / "perov_5" / "test.csv"


def test_a_published_table_is_downloaded_once_and_checked(bare, monkeypatch, salt):
    from materials import cif

    text = 'material_id,cif\nsalt,"' + cif.render(salt).replace('"', '""') + '"\n'
    asked = []

    def retrieve(url, target, what):
        asked.append(url)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    monkeypatch.setattr(download, "retrieve", retrieve)
    digest = hashlib.sha256(text.encode()).hexdigest()
    monkeypatch.setitem(sources.DOWNLOADS, ("perov_5", "test"), ("test.csv", digest))
    for _ in range(2):
        found = sources.load(TaskConfig("perov_5", 8), DataConfig(), "test")
        assert [c.formula for c in found] == [salt.formula] and digest[:12] in found.provenance
    assert asked == [f"{sources.CDVAE}/perov_5/test.csv"]
    bare.write_text("something else")
    with pytest.raises(WorkbenchError, match="this is not the published file; it was put aside"):
        sources.load(PEROV, DataConfig(), "test")
    assert not bare.exists() and list(bare.parent.glob("test.csv.bad-*"))


def test_without_a_network_the_way_out_is_told(bare, monkeypatch):
    def retrieve(url, target, what):
        raise ConnectionError("no route")

    monkeypatch.setattr(download, "retrieve", retrieve)
    with pytest.raises(WorkbenchError, match=r"perov_5: not at hand, and the download failed \(ConnectionError\)"):
        sources.load(PEROV, DataConfig(), "test")
    with pytest.raises(WorkbenchError, match=r"mp_20: its train crystals are not at hand; expected data\.folder"):
        sources.load(TaskConfig("mp_20", 20), DataConfig(), "train")


def test_a_folder_of_tables_comes_first(bare, tmp_path, salt):
    from materials.crystal import Crystals
    from materials.data import tables

    tables.write_parquet(tmp_path / "train.parquet", Crystals.of([salt.named(id=f"s{i}") for i in range(40)]))
    task, data = TaskConfig("perov_5", 8), DataConfig(str(tmp_path))
    assert len(sources.load(task, data, "train")) == 40 and len(sources.load(task, data, "val")) == 2
    with pytest.raises(WorkbenchError, match=r"holds no test.csv or test.parquet"):
        sources.load(task, data, "test")

"""A checkout that is copied or moved: MLflow's artifacts go where its database lies, and nowhere else."""

import hashlib
import os
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flows.local import api, sqlite_file, tracking
from flows.local.process import Process
from flows.pages import servers
from mlflow_records import drain, make_root, play_pipeline, query, record_stage

HISTORY = {("tags", "value"), ("datasets", "dataset_source")}  # where a run was made, which stays true
BOOKS = ("mlflow.db", "mlflow.db-wal", "mlflow.db-shm")


def contents(root):
    """Every file of a checkout but what a reader of the database touches, by digest."""
    files = [path for path in root.rglob("*") if path.is_file() and path.name not in BOOKS[1:]]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def mentions(root, text):
    """The columns of the database that hold a text."""
    with closing(sqlite3.connect(root / "mlflow.db")) as base:
        tables = [name for (name,) in base.execute("select name from sqlite_master where type = 'table'")]
        found = set()
        for table in tables:
            for _, column, *_ in base.execute(f"pragma table_info({table})").fetchall():
                if base.execute(f"select 1 from {table} where instr({column}, ?)", (text,)).fetchone():
                    found.add((table, column))
        return found


@pytest.fixture
def original(tmp_path, monkeypatch):
    (tmp_path / "the original").mkdir()
    root = make_root(tmp_path / "the original", monkeypatch)
    play_pipeline(root, 1_000_000_000, run=("base",))
    record_stage(root)
    drain(root)
    told = {("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location")}
    assert mentions(root, root.as_uri()) >= told
    return root


@pytest.mark.slow
@pytest.mark.parametrize("moved", [False, True], ids=["copied", "moved"])
def test_what_a_copy_logs_stays_in_the_copy(original, tmp_path, monkeypatch, moved):
    copy = tmp_path / "a copy, moved"
    if moved:
        original.rename(copy)
    else:
        shutil.copytree(original, copy)
    before = {} if moved else contents(original)
    had = contents(copy)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # the original's
    play_pipeline(copy, 1_000_003_600, run=("base",))
    drain(copy)
    assert original.exists() is not moved
    assert moved or contents(original) == before
    new = {path for path in contents(copy).keys() - had.keys() if path.startswith("mlartifacts/")}
    assert [path for path in new if re.search(r"images/.*samples", path)]
    addresses = [address for (address,) in query(copy, "select artifact_uri from runs")]
    assert len(addresses) == 10
    for address in addresses:
        assert address.startswith(f"{copy.as_uri()}/mlartifacts/"), "of the runs before, too"
        assert Path(address.removeprefix("file://").replace("%20", " ").replace("%2C", ",")).is_relative_to(copy)
    left = mentions(copy, str(original)) | mentions(copy, original.as_uri())
    assert left <= HISTORY, "no address leads to where it was"
    (version,) = query(copy, "select storage_location from model_versions")
    assert version[0].startswith(copy.as_uri())


@pytest.mark.slow
def test_addresses_elsewhere_stay(original):
    """Of a bucket, of a folder that only begins alike, of an experiment with a folder of its own."""
    kept = ["s3://bucket/mlartifacts", f"{original.as_uri()} too/mlartifacts/1", "/data/mlartifacts"]
    with closing(sqlite3.connect(original / "mlflow.db")) as base:
        for number, address in enumerate(kept):
            base.execute(
                "insert into experiments (experiment_id, name, artifact_location, lifecycle_stage, workspace) "
                f"values ({100 + number}, 'x{number}', ?, 'active', 'default')",
                (address,),
            )
        base.commit()
    copy = original.with_name("copy")
    shutil.copytree(original, copy)
    sqlite_file.settle(copy / "mlflow.db")
    assert [
        a for (a,) in query(copy, "select artifact_location from experiments where experiment_id > 99")
    ] == kept


@pytest.mark.parametrize("local", [True, False])
def test_readers_and_the_writer_wait_for_each_other_on_network_disks_only(tmp_path, monkeypatch, local):
    path = make_root(tmp_path, monkeypatch) / "mlflow.db"
    for is_local in (not local, local):  # it may come to another disk
        monkeypatch.setattr(sqlite_file, "is_local", lambda path, found=is_local: found)
        sqlite_file.settle(path)
    assert query(tmp_path, "pragma journal_mode") == [("wal" if local else "delete",)]
    with closing(sqlite3.connect(path)) as reader, closing(sqlite3.connect(path, timeout=0.1)) as writer:
        reader.execute("begin")
        reader.execute("select count(*) from runs").fetchall()
        writer.execute("insert into experiment_tags values ('key', 'value', 0)")
        if local:
            writer.commit()
        else:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                writer.commit()


def test_a_disk_is_local_by_its_file_system(tmp_path, monkeypatch):
    class Mount:
        def __init__(self, mountpoint, fstype):
            self.mountpoint, self.fstype = mountpoint, fstype

    mounts = [Mount("/", "ext4"), Mount(str(tmp_path), "nfs4"), Mount(str(tmp_path / "scratch"), "xfs")]
    monkeypatch.setattr(sqlite_file.psutil, "disk_partitions", lambda all: mounts)
    found = [sqlite_file.is_local(path) for path in (Path("/a"), tmp_path / "b", tmp_path / "scratch" / "c")]
    assert found == [True, False, True]


def test_a_copy_takes_no_server_of_the_originals_for_its_own(tmp_path):
    """Neither tells it of its runs, nor ends it as one that an earlier start had left."""
    root, copy, moved = (tmp_path / name for name in ("root", "copy", "moved"))
    me = Process.of(sqlite_file.psutil.Process())
    api.write_record(root, api.Record("http://127.0.0.1:9/api", *me, login=False, mlflow="http://127.0.0.1:8"))
    noted = {"folder": servers.identity(root / "work"), "children": [me]}
    (root / "work" / servers.CHILDREN).write_text(servers.json.dumps(noted))
    shutil.copytree(root, copy)
    assert api.running(copy) is None
    assert servers._left(copy) == []
    root.rename(moved)
    assert api.running(moved).mlflow == tracking.page(moved) == "http://127.0.0.1:8"
    assert servers._left(moved) == [me]
    assert os.listdir(copy / "work") == os.listdir(moved / "work")

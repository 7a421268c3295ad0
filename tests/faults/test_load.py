"""Many at once (`make faults`): forty runs queued from Prefect's page, two checkouts at work on one machine."""

import os
import subprocess
import sys

import pytest
import torch

from checkouts import Checkout, environment
from fmcore.disk.pairs import seal_pairs, write_shard
from fmcore.flow.couplings import Pairs
from prefect_page import ended, page, submit
from servers import QUIET
from small_pipelines import ran

TIMES = int(os.environ.get("FMCORE_FAULTS", "0"))
pytestmark = [pytest.mark.slow, *QUIET, pytest.mark.skipif(not TIMES, reason="make faults alone tries it")]
RUNS = 40
ALONE = subprocess.run(["unshare", "-rn", "true"], check=False, capture_output=True).returncode == 0


@pytest.mark.timeout(3600)
def test_forty_runs_queued_from_the_page_are_drained(page):
    runs = [submit(page, seed=i % 4) for i in range(RUNS)]
    states = [ended(page, run) for run in runs]
    assert [state.message for state in states if not state.is_completed()] == []
    assert len([name for name in ran(page.project) if name == "base"]) >= 4, "each of the seeds ran once"


@pytest.mark.skipif(not ALONE, reason="needs unshare -rn")
@pytest.mark.timeout(1200)
def test_without_any_network_interface_all_is_made(tmp_path):
    checkout = Checkout(tmp_path / "alone", "smoke", postman=True)
    checkout.run("unshare", "-rn", "dvc", "repro", "-q")
    assert (checkout.folder / "reports/index.html").exists()


@pytest.mark.timeout(1200)
def test_two_checkouts_at_once_make_what_each_makes_alone(tmp_path):
    checkouts = [Checkout(tmp_path / name, "smoke", postman=True) for name in ("one", "two")]
    how = {"env": environment(), "stderr": subprocess.PIPE, "text": True}
    at_once = [subprocess.Popen(["dvc", "repro", "-q"], cwd=each.folder, **how) for each in checkouts]
    for process in at_once:
        said = process.communicate()[1]
        assert process.returncode == 0, said
    one, two = (each.outputs() for each in checkouts)
    assert one == two
    assert len(one) > 40


READER = """
import sys, hashlib, torch
torch.set_num_threads(1)
from fmcore.disk.pairs import map_pairs
from fmcore.flow.couplings import Sharded
parts, _ = map_pairs(sys.argv[1])
drawn = Sharded(parts)(20_000, torch.Generator().manual_seed(0))
print(hashlib.sha256(drawn.x0.numpy().tobytes() + drawn.x1.numpy().tobytes()).hexdigest())
"""


@pytest.mark.timeout(600)
def test_eight_readers_of_one_folder_of_couplings_draw_the_same_pairs(tmp_path):
    g = torch.Generator().manual_seed(0)
    shards = []
    for start in range(0, 50_000, 10_000):
        x0, x1 = torch.randn(2, 10_000, 64, generator=g)
        shards.append(write_shard(tmp_path, start, [Pairs(x0, x1, None)]))
    seal_pairs(tmp_path, shards, {})
    command = [sys.executable, "-c", READER, str(tmp_path)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    said = {reader.communicate()[0] for reader in readers}
    assert [reader.returncode for reader in readers] == [0] * 8
    assert len(said) == 1

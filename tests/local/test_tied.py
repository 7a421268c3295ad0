"""Processes that end with the one that started them, however that one ends."""

import subprocess
import sys

import psutil
import pytest

from flows.local.process import tied

PROGRAM = """
import subprocess, sys, time
from flows.local.process import tied
child = subprocess.Popen([*tied(), "sleep", "600"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(not tied(), reason="no setpriv")
def test_a_killed_process_leaves_none_that_was_tied_to_it():
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as program:
        child = psutil.Process(int(program.stdout.readline()))
        assert child.is_running()
        program.kill()
    assert psutil.wait_procs([child], timeout=10)[1] == []

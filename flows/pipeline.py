"""The pipeline as a Prefect flow: DVC's graph, one task per stage.

dvc.yaml holds the only graph; this flow reads it and asks DVC for one stage at a time. DVC decides whether
a stage runs, Prefect shows, schedules and cancels. Each stage runs in a process group of its own, which ends
with the flow, however the flow ends.
"""

import argparse
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import networkx
from dvc.repo import Repo
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.runtime import task_run
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.local import lockfile
from flows.local.api import live_api, past_proxies
from flows.local.process import PIPELINE, pipeline_key, stop

TAIL_LINES = 15


class StageFailed(RuntimeError):
    """A stage's command failed; the message names the stage and ends with its last lines."""


class Stopped(RuntimeError):
    """The pipeline ended before the stage did, or before it could start."""


class Children:
    """The running `dvc` processes of one pipeline run; leaving the context ends them all."""

    def __init__(self) -> None:
        self.failed: str | None = None
        self._running: list[subprocess.Popen[str]] = []
        self._stopped = threading.Event()
        self._lock = threading.Lock()

    def reproduce(
        self, root: Path, stage: str, *, force: bool, env: dict[str, str], log: Callable[[str], object]
    ) -> bool:
        """Let DVC reproduce `stage` alone, its lines going to `log`; False when there was nothing to run."""
        dvc = str(Path(sys.executable).with_name("dvc"))
        command = [dvc, "--wait-for-lock", "repro", "--single-item", *["--force"] * force, stage]
        with self._lock:  # between a check and a start, stop() could miss the process
            if self._stopped.is_set():
                raise Stopped(f"stage {stage!r} was not started")
            process = subprocess.Popen(
                command, cwd=root, env=os.environ | _environment() | env, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                start_new_session=True,
            )  # fmt: skip
            self._running.append(process)
        try:
            ran, tail = self._follow(process, log)
        except BaseException:
            stop([process])
            raise
        finally:
            self._running.remove(process)
        if self._stopped.is_set():
            raise Stopped(f"stage {stage!r} was stopped")
        if process.returncode:
            self.failed = self.failed or stage
            raise StageFailed("\n".join([f"stage {stage!r} failed (exit {process.returncode}):", *tail]))
        return ran

    def stop(self) -> None:
        """End every running stage and start no other."""
        with self._lock:
            self._stopped.set()
            running = list(self._running)
        stop(running)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _follow(self, process: subprocess.Popen[str], log: Callable[[str], object]) -> tuple[bool, deque[str]]:
        """Log the lines of `process` to its end; never in a blocking read, which nothing could interrupt."""
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(process, lines), daemon=True).start()
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        ran = False
        while True:
            try:
                line = lines.get(timeout=0.2)
            except queue.Empty:
                # A grandchild that outlives `dvc` keeps the pipe open, so the pipe's end is not awaited.
                if process.poll() is not None:
                    break
                continue
            if line is None:
                break
            if line:
                ran = ran or line.startswith("Running stage ")
                tail.append(line)
                log(line)
        process.wait()
        return ran, tail


@flow(name="reflow-pipeline", task_runner=ThreadPoolTaskRunner(max_workers=1))  # type: ignore[arg-type]
def reflow_pipeline(stages: list[str] | None = None, force: bool = False) -> None:
    """Reproduce `stages` and all they depend on (None: every stage); `force` runs them even if unchanged."""
    root = Path(Repo.find_root())
    children = Children()  # local: a global of this module is copied by value under `flow.serve`

    @task(cache_policy=NO_CACHE)
    def reproduce(stage: str) -> State[Any]:
        if children.failed:
            return Cancelled(name="Skipped", message=f"not started: stage {children.failed!r} failed")
        env = {"FMCORE_PARENT_TASK_RUN": str(task_run.id), PIPELINE: pipeline}
        try:
            ran = children.reproduce(root, stage, force=force, env=env, log=get_run_logger().info)
        except Stopped as error:
            return Cancelled(message=str(error))
        return Completed() if ran else Completed(name="Cached", message="nothing changed, says DVC")

    pipeline = pipeline_key()  # this process: the stages of one run are one parent run in MLflow
    if line := lockfile.mend(root):
        get_run_logger().warning(line)
    with children:
        futures: dict[str, PrefectFuture[Any]] = {}
        for stage, parents in plan(root, stages).items():
            named = reproduce.with_options(name=stage, task_run_name=stage)
            futures[stage] = named.submit(
                stage, wait_for=[futures[parent] for parent in parents], return_state=False
            )
        for future in futures.values():
            future.wait()
        if children.failed:
            futures[children.failed].result()


def plan(root: Path, stages: Sequence[str] | None) -> dict[str, list[str]]:
    """Return each stage to visit with the stages it depends on, in an order that respects both.

    A name may be a group, such as `reflow` for `reflow@r1` and `reflow@r2`.
    """
    with Repo(str(root)) as repo:
        graph = repo.index.graph
        needs = {
            stage.addressing: [parent.addressing for parent in graph.successors(stage) if parent.cmd]
            for stage in networkx.dfs_postorder_nodes(graph)
            if stage.cmd
        }
    if stages is None:
        return needs
    wanted = [name for target in stages for name in _matching(target, needs)]
    for name in wanted:
        wanted += [parent for parent in needs[name] if parent not in wanted]
    return {name: parents for name, parents in needs.items() if name in wanted}


def run_without_server(stages: Sequence[str] | None = None, force: bool = False) -> None:
    """Do what `reflow_pipeline` does, printed instead of recorded."""
    root = Path(Repo.find_root())
    env = {PIPELINE: pipeline_key()}  # the stages are one run here too
    if line := lockfile.mend(root):
        print(line, file=sys.stderr)
    with Children() as children:
        for stage in plan(root, stages):
            ran = children.reproduce(root, stage, force=force, env=env, log=print)
            print(f"{stage}: {'done' if ran else 'cached'}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pipeline from the command line, recorded if a Prefect server answers."""
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description=__doc__.partition("\n")[0])
    parser.add_argument("stages", nargs="*", help="stages to reproduce, with all they depend on; default all")
    parser.add_argument("--force", action="store_true", help="run them even if nothing changed")
    options = parser.parse_args(arguments)
    stages = options.stages or None
    # Unhandled, SIGTERM would leave the stage's process group behind; Prefect's engine has a handler of its own.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        api = live_api(Path(Repo.find_root()))
        if api is None:
            print("no Prefect server answers: running without one", file=sys.stderr)
            run_without_server(stages, options.force)
        else:
            os.environ.update(past_proxies())
            with temporary_settings({PREFECT_API_URL: api.address, PREFECT_API_AUTH_STRING: api.login}):
                reflow_pipeline(stages, options.force)
    except (StageFailed, ValueError, PermissionError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _environment() -> dict[str, str]:
    """Return the variables that make `python` in a stage's command this interpreter, with unbuffered output."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {"PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1"}


def _matching(target: str, names: dict[str, list[str]]) -> list[str]:
    found = [name for name in names if name == target or name.startswith(f"{target}@")]
    if not found:
        raise ValueError(f"dvc.yaml has no stage {target!r}, it has {', '.join(names)}")
    return found


def _read(process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line.rstrip())
    lines.put(None)


if __name__ == "__main__":
    sys.exit(main())

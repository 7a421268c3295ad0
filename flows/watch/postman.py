"""Sends the stages' journals on: `python -m flows.watch.postman ROOT [--once]`.

One process per repository reads what `flows.watch.journal` wrote. Each letterbox has a thread of its own, so one
whose server hangs delays the other by nothing. It stays while stages are at work or something is left to send, and
gives up on what does not answer for long. The next stage starts another one, which goes on.
"""

import argparse
import fcntl
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from flows.watch import journal, waiting
from flows.watch.letterbox import Letterbox, Outcome
from flows.watch.to_mlflow import MlflowBox
from flows.watch.to_prefect import PrefectBox

LONGEST_PAUSE_SECONDS = 30.0
LINGER_SECONDS = 10.0
GIVE_UP_SECONDS = 60.0
JOIN_SECONDS = 10.0
KEEP_SECONDS = 14 * 24 * 3600  # what a server has not taken for that long, it will not take

log = logging.getLogger("flows.watch.postman")


class Rounds:
    """One letterbox's thread: it looks again and again, and is at rest when nothing is to be expected."""

    def __init__(self, root: Path, box: Letterbox) -> None:
        self.root, self.box = root, box
        self.leaving = threading.Event()
        self.at_rest = threading.Event()
        self.outcome = Outcome(live=False, waiting=False, problems=[])
        self.thread = threading.Thread(target=self._work, name=box.reader, daemon=True)

    def _work(self) -> None:
        busy = well = time.monotonic()
        pause = self.box.pause_seconds
        while not self.leaving.is_set():
            began = time.monotonic()
            outcome = self.look(leaving=False)
            now = time.monotonic()
            if outcome.problems:
                rests = not outcome.live and now - well > GIVE_UP_SECONDS
                busy, pause = now, min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                well, pause = now, self.box.pause_seconds
                busy = now if outcome.live or outcome.waiting else busy
                # Up to the look, not after it: one that takes long may have missed stages that began meanwhile.
                rests = began - busy > LINGER_SECONDS
            self.at_rest.set() if rests else self.at_rest.clear()
            self.leaving.wait(pause)
        self.look(leaving=True)

    def look(self, *, leaving: bool) -> Outcome:
        """Looks at all journals once, and notes what is wrong for the next stage to tell."""
        self.outcome = outcome = self.box.tick(leaving=leaving)
        with suppress(OSError):
            waiting.note(self.root, self.box.reader, outcome.problems[0] if outcome.problems else None)
        if outcome.problems:
            log.warning("%s: %d journals wait: %s", self.box.reader, len(outcome.problems), outcome.problems[0])
        return outcome


def sweep(root: Path) -> None:
    """Deletes the journals that nobody needs any more, and those that are void."""
    for folder in journal.journal_folders(root):
        with suppress(OSError):
            if journal.is_locked(folder / journal.RECORDS):
                continue
            start = journal.start_of(folder)
            if start is None:
                shutil.rmtree(folder)
                continue
            mlflow, prefect = (journal.read_state(folder, reader) for reader in ("mlflow", "prefect"))
            if mlflow.get("closed"):
                shutil.rmtree(folder / journal.MODELS, ignore_errors=True)
            told = prefect.get("done") and prefect.get("linked")
            old = time.time() - (folder / journal.RECORDS).stat().st_mtime > KEEP_SECONDS
            if mlflow.get("closed") and mlflow.get("linked") and (told or not start.get("api")):
                journal.discard(folder)
            elif old:
                log.warning("the journal of %s is dropped: nobody took it for two weeks", start["stage"])
                journal.discard(folder)


def once(root: Path, boxes: Sequence[Letterbox]) -> list[str]:
    """Sends what there is now, waiting for DVC's digests; returns what went wrong."""
    problems: list[str] = []
    for box in boxes:
        rounds = Rounds(root, box)
        while not (outcome := rounds.look(leaving=True)).problems and outcome.waiting:
            time.sleep(box.pause_seconds)
        problems += [f"{waiting.READERS[box.reader]}: {line}" for line in outcome.problems[:1]]
    for box in boxes if not problems else ():  # again, for what the other has made meanwhile is linked to
        Rounds(root, box).look(leaving=True)
    sweep(root)
    return problems


def stay(root: Path, boxes: Sequence[Letterbox]) -> list[Rounds]:
    """Sends until nothing is left to come."""
    rounds = [Rounds(root, box) for box in boxes]
    for each in rounds:
        each.thread.start()
    while not all(each.at_rest.is_set() for each in rounds):
        time.sleep(0.5)
        sweep(root)
    for each in rounds:
        each.leaving.set()
    for each in rounds:
        each.thread.join(JOIN_SECONDS)
    sweep(root)
    return rounds


def main() -> int:
    """Drains the journals of a repository, unless another process is at it."""
    parser = argparse.ArgumentParser(prog="python -m flows.watch.postman", description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, metavar="ROOT", help="the repository's root")
    parser.add_argument("--once", action="store_true", help="send what there is, then leave")
    args = parser.parse_args()
    root = args.root.resolve()
    logging.basicConfig(level=logging.ERROR if args.once else logging.INFO, format="%(asctime)s %(message)s")
    os.nice(10)  # the cores are for training

    journal.journals(root).mkdir(parents=True, exist_ok=True)
    with journal.lock_of_postman(root).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        for gone in journal.journals(root).glob(".*.gone"):
            shutil.rmtree(gone)
        boxes: list[Letterbox] = [PrefectBox(root), MlflowBox(root)]
        if args.once:
            problems = once(root, boxes)
            for line in problems:
                print(f"journals are kept, not sent to {line}", file=sys.stderr)
            return 1 if problems else 0
        stay(root, boxes)
        seen = set(journal.journal_folders(root))
    # A stage that found the lock held has started no postman of its own.
    left = set(journal.journal_folders(root))
    if left - seen or any(journal.is_locked(folder / journal.RECORDS) for folder in left):
        journal.start_postman(root)
    os._exit(0)  # a thread that a server holds up has no say in it


if __name__ == "__main__":
    sys.exit(main())

"""What DVC makes of a stage's inputs and outputs: digests, which it writes after the stage has ended."""

import re
import time
from pathlib import Path

from flows.local.lockfile import CODE, LOCK_FILE

OUT, DEP = "dvc.out.", "dvc.dep."  # before the path, in tags of MLflow's runs
DIGEST = re.compile(r"[0-9a-f]{32}(\.dir)?")
STILL_SECONDS = 1.0  # DVC writes dvc.lock in pieces, some tenths of a second long


def dvc_digests(root: Path, stage: str, *, since: float, over: bool = False) -> dict[str, str] | None:
    """The digests of a stage's inputs and outputs, None if DVC has not written them `since` then.

    While the pipeline is not `over`, a file that was just written may not be whole, and is left for later.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    lock = root / LOCK_FILE
    try:
        written = lock.stat().st_mtime
        if written < since or (not over and time.time() - written < STILL_SECONDS):
            return None
        entry = YAML(typ="safe").load(lock)["stages"][stage]
        found = {
            f"{tag}{item['path']}": item["md5"]
            for tag, section in ((OUT, "outs"), (DEP, "deps"))
            for item in entry.get(section, [])
            if "md5" in item and not item["path"].startswith(CODE)
        }
    except (OSError, YAMLError, TypeError, KeyError, AttributeError):  # none yet, or what a kill has left of it
        return None
    return found if all(DIGEST.fullmatch(str(value)) for value in found.values()) else None

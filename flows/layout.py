"""Where the stages' outputs lie, relative to the repository's root."""

from pathlib import Path

CHECKED = Path("params.checked.json")  # digests of files beside the data: a teacher's, a distance's
CHECKED_FEATURES = Path("features.checked.json")  # of the extractor's
SEEN = Path("data.seen.json")
DATASET = Path("dataset")
BESIDE = Path("data.beside.json")  # apart from the data set, which it must not change
FEATURES = Path("features")
MODELS = Path("models")
COUPLINGS = Path("couplings")
CURVES = Path("curves")
SCORES = Path("scores")
REPORTS = Path("reports")
WORK = Path("work")
TIMING = WORK / "timing.jsonl"
ORIGINS = WORK / "made"  # what made each report
INVERTED = "inverted"  # pairs of real data, in the folder of a round's couplings


def model(name: str) -> Path:
    """The folder of a model."""
    return MODELS / name


def couplings(name: str) -> Path:
    """The folder of the couplings that round `name` trains on."""
    return COUPLINGS / name


def curve(name: str) -> Path:
    """The training curve of a model."""
    return CURVES / f"{name}.csv"


def coupled(name: str) -> str:
    """The name under which the scores of a round's couplings go."""
    return f"couplings-{name}"


def scores(name: str) -> Path:
    """The folder of a model's scores, or of those of `coupled` couplings."""
    return SCORES / name

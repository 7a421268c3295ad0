"""A model card: what a model is, how to use it, its scores, its data, and the command that wrote it."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmcore import __version__
from fmcore.disk.files import ArtifactError, read_json
from fmcore.model import Model
from fmcore.ode.sampling import Sampling

CARD = """---
license:  # to fill in, e.g. apache-2.0: that of the weights, which that of the data may decide
{library}tags: [flow-matching, rectified-flow, few-step]
{pipeline}---

# {name}

A flow that makes {what} from noise, here in {evaluations} of its network ({how}). {size}

{figure}

## Use

{use}
## Scores

{scores}

## Data

{data}

## Licence

To fill in, here and in the first lines of this file.

## How it was made

By fmcore {version}, {trained}. Its weights have SHA-256 `{digest}`. This folder was written by

```sh
{command}
```
"""
COLUMNS = ("solver", "grid", "nfe", "metric", "value", "std", "n_samples", "n_reference", "extractor")
TO_FILL = "To fill in: what it was trained on, where that is from, and what may be done with it."


def beside(folder: Path) -> tuple[Path | None, Path | None]:
    """The scores of a model and the manifest of its data, where the pipeline leaves them beside it."""
    model = folder.resolve()
    root = model.parent.parent
    places = (root / "scores" / model.name / "scores.csv", root / "dataset" / "manifest.json")
    scores, data = (place if place.is_file() else None for place in places)
    return scores, data


def read_scores(path: Path, name: str) -> list[dict[str, str]]:
    """The lines of a table of scores, the pipeline's or that of `evaluate --out`.

    Raises:
        ArtifactError: if the file is no such table, or says that it is of a model of another name.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ArtifactError(f"{path} cannot be read as a table of scores: {error}") from None
    for row in rows:
        for column in ("value", "std"):
            try:
                float(row.get(column) or 0)
            except ValueError:
                raise ArtifactError(f"{path}: expected numbers in column {column}, got {row[column]!r}") from None
    lacking = [column for column in COLUMNS if not rows or rows[0].get(column) is None]
    if lacking:
        raise ArtifactError(f"{path}: expected a table of scores, lacks lines or columns {', '.join(lacking)}")
    others = sorted({row["model"] for row in rows if row.get("model", name) != name})
    if others:
        raise ArtifactError(f"{path}: expected scores of model {name!r}, got those of {', '.join(others)}")
    return rows


def scores_table(rows: Sequence[Mapping[str, str]], how: Sampling) -> str:
    """The scores with the model's solver as a table, those of its number of evaluations bold."""
    fitting = [row for row in rows if row["solver"] == how.solver and row["grid"] == how.grid_name]
    if not fitting:
        return f"The scores beside the model are none of {how.solver}."
    lines = ["| metric | evaluations | value | samples | real | features |", "| --- " * 6 + "|"]
    for row in fitting:
        bold = "**" if row["nfe"] == str(how.nfe) else ""
        value = f"{bold}{float(row['value']):.4g} ± {float(row['std'] or 'nan'):.2g}{bold}"
        cells = (row["metric"], row["nfe"], value, row["n_samples"], row["n_reference"], row["extractor"])
        lines.append("| " + " | ".join(cells) + " |")
    if all(row["nfe"] != str(how.nfe) for row in fitting):
        lines += ["", f"At {how.nfe} evaluations, as it is here, it was not scored."]
    return "\n".join(lines)


def data_lines(manifest: Mapping[str, Any]) -> str:
    """What the data's manifest says, and what only a person can."""
    parts = [f"`{manifest.get('name', 'unnamed')}`"]
    if manifest.get("count"):
        parts.append(f"{manifest['count']:,} samples")
    if manifest.get("num_classes"):
        parts.append(f"{manifest['num_classes']} classes")
    if manifest.get("sha256"):
        parts.append(f"SHA-256 `{manifest['sha256']}`")
    return f"{', '.join(parts)}.\n\n{TO_FILL}"


def written(
    model: Model,
    how: Sampling,
    name: str,
    *,
    library: str,
    use: str,
    command: str,
    figure: str,
    scores: Path | None,
    data: Path | None,
) -> str:
    """The card as Markdown.

    Main arguments:
        library: as the hub calls it; empty for none.
        use: how to load it.
        command: that writes this folder.
        figure: a picture in the folder.
        scores, data: files to take them from; None for none.
    """
    classes = "" if model.num_classes is None else f" of {model.num_classes} classes"
    is_image = model.makes_images
    shape = " x ".join(map(str, model.sample_shape))
    guidance = "" if how.guidance is None else f", guidance {how.guidance.scale:g}"
    seen = model.manifest.get("images_seen")
    trained = f"stage {model.manifest.get('stage', 'unknown')}" + (f", {seen:,} samples seen" if seen else "")
    return CARD.format(
        library=f"library_name: {library}\n" if library else "",
        pipeline="pipeline_tag: unconditional-image-generation\n" if is_image else "",
        name=name,
        what=f"{'images' if is_image else 'samples'}{classes} of shape {shape}"
        + (" (channels, height, width)" if is_image else ""),
        evaluations="1 evaluation" if how.nfe == 1 else f"{how.nfe} evaluations",
        how=f"{how.solver}{guidance}",
        size=f"The network has {sum(p.numel() for p in model.network.parameters()):,} weights.",
        figure=f"![Samples]({figure})",
        use=use,
        scores=scores_table(read_scores(scores, name), how) if scores else "None were found beside the model.",
        data=data_lines(read_json(data)) if data else TO_FILL,
        version=__version__,
        trained=trained,
        digest=model.digest,
        command=command,
    )

"""Pictures as MLflow's charts show them: rows of them by step, beside those of other runs."""

import shutil
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

# As `MlflowClient.log_image` names them, but for the time and chance in its names: so sent twice is there once.
NAME = "{series}+step+{step}+timestamp+1+{uuid}"
TAG = {"mlflow.loggedImages": "True"}
SIDE = 512  # pixels of what the charts show; a click shows the whole


def in_series(picture: Path, series: str, step: int, folder: Path) -> Path:
    """The picture and a small copy in a folder, to be logged as `images`; a "/" in `series` makes a section."""
    from PIL import Image

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    name = NAME.format(series=series.replace("/", "~"), step=step, uuid=uuid5(NAMESPACE_URL, f"{series}/{step}"))
    shutil.copyfile(picture, folder / f"{name}.png")
    with Image.open(picture) as image:
        small = image.convert("RGBA")
        small.thumbnail((SIDE, SIDE))
        small.save(folder / f"{name}+compressed.webp")
    return folder

"""Pictures as MLflow's charts show them, beside those of other runs."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

# As `MlflowClient.log_image` names them, but for the time and chance in its names: so sent twice is there once.
NAME = "{key}+step+0+timestamp+1+{uuid}"
TAG = {"mlflow.loggedImages": "True"}
SIDE = 512  # pixels of what the charts show; a click shows the whole


def charted(picture: Path, key: str, folder: Path) -> Path:
    """The picture and a small copy in a folder, to be logged as `images`; a "/" in its key makes a section."""
    from PIL import Image

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    name = NAME.format(key=key.replace("/", "~"), uuid=uuid5(NAMESPACE_URL, key))
    shutil.copyfile(picture, folder / f"{name}.png")
    with Image.open(picture) as image:
        small = image.convert("RGBA")
        small.thumbnail((SIDE, SIDE))
        small.save(folder / f"{name}+compressed.webp")
    return folder


def keys_of(names: Iterable[str]) -> set[str]:
    """The keys of pictures that were logged under those names."""
    return {name.partition("+step+")[0].replace("~", "/") for name in names if "+step+" in name}

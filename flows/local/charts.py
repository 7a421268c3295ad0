"""`dvc plots` without the web: `python -m flows.local.charts` writes a page that brings its library.

DVC's own template loads Vega from a public address, so whoever opens a page asks there, and without a network its
charts stay blank. `vl-convert-python` packs the library into one script. DVC takes the template by its settings.
"""

import sys
from pathlib import Path

from dvc.exceptions import DvcException

TEMPLATE = "charts.html"  # in .dvc
PAGE = """<!DOCTYPE html>
<html>
<head>
<meta charset="utf-8">
{{refresh_tag}}
<title>DVC plots</title>
<style>table {{ border-spacing: 15px }}</style>
<script type="module">{script}</script>
<script>
// The library is ready after the page, which asks for its charts on the way.
const asked = [];
window.vegaEmbed = (place, chart) => asked.push([place, chart]);
addEventListener("load", () => asked.forEach(([place, chart]) => window.vegaEmbed(place, chart)));
</script>
</head>
<body>
{{plot_divs}}
</body>
</html>
"""


def write(root: Path) -> bool:
    """Writes the template and names it in DVC's settings; False if the library is not installed."""
    try:
        import vl_convert
    except ImportError:
        return False
    from dvc.config import Config

    folder = root / ".dvc"
    if not folder.is_dir():
        raise OSError(f"no folder .dvc in {root}: run it in the project's folder")
    # In an own scope its names cannot meet those of DVC's scripts; what ends a script must not stand in one.
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed").replace("</script", "<\\/script")
    (folder / TEMPLATE).write_text(PAGE.format(script=script), encoding="utf-8")
    with Config(str(folder), validate=False).edit("local") as settings:
        settings.setdefault("plots", {})["html_template"] = TEMPLATE
    return True


def main() -> int | str:
    """Writes the template; a line where that cannot be."""
    try:
        return 0 if write(Path.cwd()) else "charts: pip install vl-convert-python"
    except (OSError, DvcException) as error:
        return f"charts: {error}"


if __name__ == "__main__":
    sys.exit(main())

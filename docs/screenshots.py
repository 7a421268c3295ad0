"""Pictures of the pages, from the real ones: `python docs/screenshots.py` in a checkout whose pipeline has run.

It starts the pages, runs the pipeline once from Prefect's (what is up to date is cached), and lets a headless
Chromium look. The pictures go to docs/pictures; look at them before you commit them.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from devtools import Tab, browsing
from flows.pages.servers import DEPLOYMENT
from servers import client_of, running_pages, wait_until

PICTURES = Path(__file__).parent / "pictures"
SECONDS = 1800.0
CHARTS = '[...document.querySelectorAll(".js-plotly-plot")].some(plot => plot.data.length >= 2)'


def run_from_the_page(prefect: str) -> tuple[str, str]:
    """Runs the pipeline as a click does; the ids of the run and of the deployment."""
    with client_of(f"{prefect}/api") as client:
        deployment = client.read_deployment_by_name(DEPLOYMENT)
        run = client.create_flow_run_from_deployment(deployment.id).id
        wait_until(lambda: (state := client.read_flow_run(run).state) and state.is_final(), SECONDS)
        return str(run), str(deployment.id)


def shoot(tab: Tab, name: str, address: str, ready: str) -> None:
    """Opens a page, waits until it shows what it is to show, and keeps it."""
    tab.open(address)
    tab.wait_for(ready, 240)
    tab.value("new Promise(done => setTimeout(done, 3000))")  # what moves comes to rest
    tab.picture(PICTURES / f"{name}.png")
    print(PICTURES / f"{name}.png")


def says(text: str) -> str:
    """Whether the page shows a text, as a script."""
    return f"document.body.innerText.includes({text!r})"


def main() -> None:
    """Takes all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", nargs="?", type=Path, default=Path.cwd())
    checkout = parser.parse_args().checkout.resolve()
    report = checkout / "reports/index.html"
    if not report.exists():
        sys.exit(f"{report} is missing: run `make repro` first")
    os.environ.pop("PREFECT_API_URL", None)
    with tempfile.TemporaryDirectory() as made, running_pages(checkout) as pages:
        run, deployment = run_from_the_page(pages.prefect)
        page = Path(made) / "report.html"
        shutil.copyfile(report, page)
        with browsing(Path(made), 1400, 1000) as tab:
            shoot(tab, "mlflow-page", pages.mlflow, CHARTS)
            shoot(tab, "prefect-page", f"{pages.prefect}/runs/flow-run/{run}", says("Task Runs"))
            shoot(tab, "prefect-form", f"{pages.prefect}/deployments/deployment/{deployment}/run", says("preset"))
            shoot(tab, "report-page", page.as_uri(), "document.readyState === 'complete'")


if __name__ == "__main__":
    main()

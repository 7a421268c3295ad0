"""Where MLflow's address leads: to the curves of the latest pipeline.

MLflow's own first page is about language models, and its list of runs draws nothing by itself. What an address
says behind its # never reaches a server, so a script looks: an address that says something goes on to MLflow's
page, a bare one to the view that the postman keeps, and `?pipeline=KEY` to the charts of that pipeline.
"""

from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send

PASSED = "page"  # a query with which MLflow's own page is asked for
PIPELINE = b"pipeline="  # a query for one pipeline, by its key
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>fmcore</title>
<noscript>MLflow's page needs scripts.</noscript>
<script>
const go = place => location.replace("?%s" + place);
const wanted = new URLSearchParams(location.search).get("pipeline") ?? "";
const view = async () => {
  const answer = await fetch("ajax-api/2.0/mlflow/experiments/get-by-name?experiment_name=fmcore");
  if (!answer.ok) return "#/experiments?workflowType=machine_learning";  // nothing has run yet
  const { experiment_id: id, tags = [] } = (await answer.json()).experiment;
  const charts = `#/experiments/${id}/runs?workflowType=machine_learning&compareRunsMode=CHART`;
  const pipeline = "tags.`fmcore.pipeline` = '" + wanted + "'";
  if (/^[\\w.-]+$/.test(wanted)) return `${charts}&searchFilter=${encodeURIComponent(pipeline)}`;
  const latest = tags.some(tag => tag.key === "mlflow.sharedViewState.latest");
  return charts + (latest ? "&viewStateShareKey=latest" : "");
};
if (location.hash.length > 1) go(location.hash);
else {
  // At the first visit MLflow takes this to be about language models, and opens a panel to chat with one.
  const first = (key, value) => localStorage.getItem(key) ?? localStorage.setItem(key, value);
  first("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
  first("mlflow.workflowType_v1", '"machine_learning"');
  view().then(go);
}
</script>
</html>
"""


class Front:
    """Answers the bare address, and a pipeline's, with the page that leads on; leaves all else to MLflow."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.page = HTMLResponse(PAGE.replace("%s", PASSED), headers={"Cache-Control": "no-cache"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        bare = scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == "/"
        ours = bare and (not scope["query_string"] or scope["query_string"].startswith(PIPELINE))
        await (self.page if ours else self.app)(scope, receive, send)

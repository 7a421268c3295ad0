"""Where MLflow's address leads: to the curves of the latest pipeline.

MLflow's own first page is about language models, and its list of runs draws nothing by itself. What an address
says behind its # never reaches a server, so a script looks: an address that says something goes on to MLflow's
page, and a bare one to the view that the postman keeps.
"""

from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send

PASSED = "page"  # a query with which MLflow's own page is asked for
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>fmcore</title>
<noscript>MLflow's page needs scripts.</noscript>
<script>
const go = place => location.replace("?%s" + place);
const view = async () => {
  const answer = await fetch("ajax-api/2.0/mlflow/experiments/get-by-name?experiment_name=fmcore");
  if (!answer.ok) return "#/experiments?workflowType=machine_learning";  // nothing has run yet
  const { experiment_id: id, tags = [] } = (await answer.json()).experiment;
  const latest = tags.some(tag => tag.key === "mlflow.sharedViewState.latest");
  return `#/experiments/${id}/runs?workflowType=machine_learning&compareRunsMode=CHART`
    + (latest ? "&viewStateShareKey=latest" : "");
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
    """Answers the bare address with the page that leads on, and leaves all else to MLflow."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.page = HTMLResponse(PAGE.replace("%s", PASSED), headers={"Cache-Control": "no-cache"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        bare = scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == "/"
        await (self.page if bare and not scope["query_string"] else self.app)(scope, receive, send)

"""Who gets the page that leads on, and who MLflow's."""

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from flows.pages.front import PASSED, Front


@pytest.fixture
def client():
    return TestClient(Front(PlainTextResponse("MLflow's own")))


def test_only_the_bare_address_leads_on(client):
    assert "location.replace" in client.get("/").text
    assert "location.replace" in client.get("/?pipeline=12-3.50").text
    for path in (f"/?{PASSED}", "/health", "/ajax-api/2.0/mlflow/experiments/get-by-name?experiment_name=fmcore"):
        assert client.get(path).text == "MLflow's own"
    assert client.post("/").text == "MLflow's own"

"""Which servers are a team's, and what is said of them."""

import pytest

from flows.local import api
from flows.local.tracking import page
from flows.pages import addresses, servers

TEAM = {api.URL: "https://prefect.example/api", addresses.TRACKING: "https://me:secret@mlflow.example/team?x=1"}


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch):
    for name in TEAM:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ("", None),
        ("http://127.0.0.1:4200/api", None),
        ("http://localhost:5000", None),
        ("http://[::1]:5000", None),
        ("sqlite:////tmp/mlflow.db", None),
        ("postgresql://db.example/mlflow", None),
        ("http://[broken", None),
        ("https://prefect.example/api", "https://prefect.example/api"),
        ("http://me:secret@10.0.0.7:5000/team?token=1", "http://10.0.0.7:5000/team"),
    ],
)
def test_a_server_of_another_machine_is_a_teams(monkeypatch, given, known):
    assert addresses.team() == (None, None)
    monkeypatch.setenv(api.URL, given)
    assert addresses.team() == (known, None)
    monkeypatch.setenv(addresses.TRACKING, given)
    assert addresses.team() == (known, known)


def test_where_a_team_has_both_nothing_is_started(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for name, value in TEAM.items():
        monkeypatch.setenv(name, value)
    assert servers.main([]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "runs:        https://prefect.example (PREFECT_API_URL; no Prefect server and no worker are started here)",
        "comparisons: https://mlflow.example/team (MLFLOW_TRACKING_URI; no MLflow server is started here)",
        "nothing is to be started",
    ]
    assert not list(tmp_path.iterdir())
    assert page(tmp_path) == "https://mlflow.example/team"

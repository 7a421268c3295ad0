"""The stages that score: what they write, from the same noise, and what each number means."""

import pandas as pd
import pytest
import torch

from flows import layout
from flows.scores.sweep import noise_of, sampled, samplings_of
from fmcore.cli import main
from fmcore.disk.files import read_json, read_tensors
from fmcore.disk.pairs import open_pairs
from fmcore.flow.pixels import quantise
from fmcore.flow.times import SigmoidGrid, UniformGrid, uniform_grid
from fmcore.model import load as load_model
from fmcore.models.networks import MLP
from fmcore.ode.reflow import draw, reconstruction_error
from fmcore.ode.solvers import SOLVERS, integrate
from fmcore.score.estimates import jackknife
from fmcore.score.extractors import load_extractor
from fmcore.score.frechet import frechet_distance, stats
from fmcore.score.reference import load_reference
from fmcore.score.scoring import ImageScorer
from stage_runs import REGRESSION, events_of, points, run, tiny

MADE = ("check", "features", "base", "couple@r1", "reflow@r1", "distill@student")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return made(tmp_path_factory.mktemp("digits"), tiny())


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    return made(tmp_path_factory.mktemp("points"), points())


def made(folder, params):
    """A folder with models and couplings, scored once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        list(run(params, *MADE, "evaluate_base", "evaluate@r1", "evaluate_student@student", "evaluate_pairs@r1"))
    return folder


@pytest.fixture
def here(digits, monkeypatch):
    monkeypatch.chdir(digits)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return digits


def scores(name):
    return pd.read_csv(layout.scores(name) / "scores.csv", keep_default_na=False, na_values=[""])


def value(name, metric, **where):
    table = scores(name)
    for key, wanted in {"metric": metric, **where}.items():
        table = table[table[key] == wanted]
    assert len(table) == 1, table
    return table.iloc[0]


def by_hand(model, nfe, start=0, count=200, batch=100):
    """What the stage samples, made anew."""
    parts = []
    for first in range(start, start + count, batch):
        x0, _ = draw(first, batch, shape=model.shape, seed=0, purpose="evaluate")
        parts.append(integrate(model.field("fp32"), x0, uniform_grid(nfe), SOLVERS["euler"]))
    return torch.cat(parts)


def distance(x1):
    extractor, reference = (
        load_extractor(layout.FEATURES),
        load_reference(layout.FEATURES / "reference.safetensors"),
    )
    return frechet_distance(stats(extractor(quantise(x1))), reference.stats)


def test_a_score_is_the_distance_of_samples_from_the_noise_of_their_index(here):
    row = value("base", "fd_cnn64", nfe=4)
    assert row.value == pytest.approx(distance(by_hand(load_model(layout.model("base")), 4)), rel=1e-4)
    assert (row.n_samples, row.repeats, row.solver, row.grid, row.model) == (200, 1, "euler", "uniform", "base")
    assert pd.isna(row.spread)


def test_errors_are_those_of_the_jackknife_beside_them(here):
    table = pd.read_csv(layout.scores("base") / "jackknife.csv")
    for nfe, rows in table[table.metric == "fd_cnn64"].groupby("nfe"):
        assert rows.group.tolist() == list(range(10))
        expected = jackknife(rows["value"].tolist())
        assert value("base", "fd_cnn64", nfe=nfe)["std"] == pytest.approx(expected, rel=6e-3)  # three digits


def test_repeats_use_noise_of_their_own(here):
    params = tiny(evaluate__repeats=3)
    list(events_of(params, "evaluate_base"))
    model = load_model(layout.model("base"))
    found = torch.tensor([distance(by_hand(model, 4, start)) for start in (0, 200, 400)], dtype=torch.float64)
    row = value("base", "fd_cnn64", nfe=4)
    assert row.value == pytest.approx(float(found.mean()), rel=1e-4)
    assert row.spread == pytest.approx(float(found.std()), rel=1e-2)
    assert (row.repeats, row.n_samples) == (3, 200)
    assert value("base", "straightness").repeats == 1


def test_each_solver_runs_on_each_grid_once(here):
    grids = [{"name": "uniform"}, {"name": "sigmoid", "kappa": 10.0}]
    params = tiny(evaluate__grids=grids, evaluate__solvers={"euler": [1, 2, 4], "heun": [3]})
    list(events_of(params, "evaluate_base"))
    table = scores("base")
    found = table[table.metric == "fd_cnn64"][["solver", "grid", "nfe"]]
    assert sorted(map(tuple, found.to_numpy().tolist())) == [
        ("euler", "sigmoid", 4),  # in one and in two steps every symmetric grid is the uniform one
        ("euler", "uniform", 1),
        ("euler", "uniform", 2),
        ("euler", "uniform", 4),
        ("heun", "uniform", 3),
    ]
    model = load_model(layout.model("base"))
    assert {run.grid for run in samplings_of(params.evaluate, k=None, paired=False)} == {
        UniformGrid(),
        SigmoidGrid(),
    }
    x0 = draw(0, 200, shape=model.shape, seed=0, purpose="evaluate")[0]
    x1 = integrate(model.field("fp32"), x0, SigmoidGrid()(4), SOLVERS["euler"])
    assert value("base", "fd_cnn64", grid="sigmoid").value == pytest.approx(distance(x1), rel=1e-3)


def test_bends_add_up_to_the_straightness(here):
    bent = pd.read_csv(layout.scores("r1") / "bends.csv")
    assert bent.t.tolist() == [0, 0.25, 0.5, 0.75]
    assert (bent.value * bent.width).sum() == pytest.approx(value("r1", "straightness").value, rel=1e-4)


def test_reconstruction_goes_back_to_noise_and_forth_in_one_step(here):
    model = load_model(layout.model("r1"))
    x1 = by_hand(model, 4)
    found = reconstruction_error(model.field("fp32"), x1, uniform_grid(4), SOLVERS["euler"]).mean()
    assert value("r1", "reconstruction_generated").value == pytest.approx(float(found), rel=1e-4)
    assert value("r1", "reconstruction_real").value > 0


def test_a_straight_flow_reconstructs_everything():
    still = torch.randn(5, 3)

    def shift(x, t, label):
        return torch.ones_like(x)

    assert reconstruction_error(shift, still, uniform_grid(8), SOLVERS["euler"]).max() < 1e-10


def test_what_is_shown(here):
    tensors = read_tensors(layout.scores("r1") / "samples.safetensors")
    assert tensors["frames"].shape == (5, 16, 1, 8, 8)
    assert tensors["frame_times"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert torch.equal(tensors["frames"][-1], tensors["euler.0004"])
    assert tensors["strips"].shape == (4, 8, 1, 8, 8)
    params = tiny()
    extractor, data = load_extractor(layout.FEATURES), params.data.load()
    mine, theirs = extractor(tensors["euler.0004"]), extractor(quantise(data.reference))
    expected = torch.cdist(mine.double(), theirs.double()).min(1)
    assert torch.equal(tensors["nearest"], quantise(data.reference[expected.indices]))
    torch.testing.assert_close(tensors["nearest_distance"].double(), expected.values, rtol=1e-3, atol=1e-3)


def test_a_student_by_regression_has_scores_and_pictures_but_no_flow(here):
    list(run(tiny(distill__ending=REGRESSION), "distill@student", "evaluate_student@student"))
    assert set(scores("student").metric) == {"fd_cnn64", "memorisation"}
    assert not (layout.scores("student") / "bends.csv").exists()
    assert {"strips", "nearest"} < set(read_tensors(layout.scores("student") / "samples.safetensors"))


def test_flops_are_two_for_each_weight_that_is_multiplied(here):
    about = read_json(layout.scores("base") / "about.json")
    model = load_model(layout.model("base"))
    assert isinstance(model.network_config, MLP)
    matrices = sum(m.weight.numel() for m in model.network.modules() if isinstance(m, torch.nn.Linear))
    assert about == {"flops": 2 * matrices, "sha256": model.digest}


def test_couplings_are_scored_as_they_are_stored(here):
    pairs, manifest = open_pairs(layout.couplings("r1"))
    row = value("couplings-r1", "fd_cnn64")
    assert row.value == pytest.approx(distance(pairs.x1[:200]), rel=1e-4)
    assert (row.nfe, row.solver, row.grid, row["round"]) == (
        manifest["network_evaluations"],
        "euler",
        "uniform",
        1,
    )
    for file in ("quality.json", "histograms.csv"):
        stored = (layout.couplings("r1") / file).read_bytes()
        assert (layout.scores("couplings-r1") / file).read_bytes() == stored


def test_points_are_shown_on_their_way(moons, monkeypatch):
    monkeypatch.chdir(moons)
    tensors = read_tensors(layout.scores("r1") / "samples.safetensors")
    assert tensors["frames"].shape == (5, 100, 2)
    assert tensors["paths"].shape == (5, 100, 2)
    assert set(scores("r1").metric) == {
        *("sliced_wasserstein", "energy_distance", "straightness", "transport_cost"),
        *("reconstruction_real", "reconstruction_generated"),
    }
    assert set(scores("couplings-r1").metric) == {"sliced_wasserstein", "energy_distance"}


@pytest.mark.precisions
def test_the_command_line_samples_from_the_same_noise(here, capsys):
    row = value("r1", "fd_cnn64", nfe=4)
    assert main(["evaluate", "models/r1", "--against", "features", "--nfe", "4", "--count", "200"]) == 0
    lines = {line.split("  ")[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert float(lines["fd_cnn64"][1]) == pytest.approx(row.value, rel=5e-3)  # bfloat16 there, float32 here
    c = read_json(layout.FEATURES / "floor.json")["coefficient"]
    assert float(lines["data floor"][2]) == pytest.approx(c * (1 / 200 + 1 / 1797), rel=1e-4)


@pytest.mark.precisions
def test_few_images_get_the_scores_that_they_can_have(here, capsys):
    few = ["evaluate", "models/r1", "--against", "features", "--count", "40"]
    assert main(few) == 2
    assert "a Frechet distance on 64 features needs more than 64" in capsys.readouterr().err
    assert main([*few, "--metrics", "kid, kid ,precision_recall"]) == 0
    said = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in said] == ["kid", "precision", "recall"]
    assert main([*few, "--metrics", "kid,frechet_infinity"]) == 2


def test_a_killed_stage_keeps_the_runs_it_made(here, monkeypatch):
    params = tiny(evaluate__solvers={"euler": [1, 2, 4]}, evaluate__repeats=2)
    before = list(events_of(params, "evaluate@r1"))
    scored = (layout.scores("r1") / "scores.csv").read_bytes()
    events = events_of(params, "evaluate@r1")
    for event in events:  # as far as into the third of six pieces
        if getattr(event, "done", 0) > 500:
            break
    events.close()
    calls = []
    import flows.stages.evaluate as stage

    real = stage.sampled
    monkeypatch.setattr(stage, "sampled", lambda *a, **k: calls.append(a) or real(*a, **k))
    again = list(events_of(params, "evaluate@r1"))
    assert len(calls) == 4
    assert (layout.scores("r1") / "scores.csv").read_bytes() == scored
    bars = [[event for event in events if type(event).__name__ == "Progress"] for events in (before, again)]
    assert [bar[0].done for bar in bars] == [0, 2 * 200]  # evaluations: two runs of one each were made
    assert {event.total for bar in bars for event in bar} == {bars[0][-1].done} == {2 * 200 * (1 + 2 + 4)}
    assert [type(event) for event in again if type(event).__name__ != "Progress"] == [
        type(event) for event in before if type(event).__name__ != "Progress"
    ]


def test_a_model_that_diverges_is_named(here):
    model = load_model(layout.model("r1"))
    with torch.no_grad():
        next(iter(model.network.parameters())).fill_(float("nan"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.stages.evaluate.load_model", lambda *a: model)
        with pytest.raises((FloatingPointError, ValueError), match="not finite"):
            list(events_of(tiny(evaluate__batch=50), "evaluate@r1"))


def test_a_batch_that_had_to_be_halved_counts_its_evaluations_once(here):
    """What was tried before memory ran out is no evaluation of a sample."""
    model = load_model(layout.model("base"))
    params = tiny()
    run = next(
        run
        for run in samplings_of(params.evaluate, k=None, paired=False)
        if run.solver == "euler" and run.nfe == 4
    )

    def narrow(x, t, label):
        if len(x) > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.zeros_like(x)

    noise = noise_of(model, params, None)
    assert {batch.nfe for batch in sampled(narrow, params, run, 0, noise, bends=False)} == {4}


@pytest.mark.parametrize("name", ["base", "r1", "student"])
def test_bfloat16_inside_networks_leaves_scores_within_their_errors(here, name):
    """States, times and noise are float32 either way; only the network's own arithmetic differs."""
    model, extractor = load_model(layout.model(name)), load_extractor(layout.FEATURES)
    reference = load_reference(layout.FEATURES / "reference.safetensors")
    found = {}
    for precision in ("fp32", "bf16"):
        scorer = ImageScorer(600, extractor, reference, ())
        for batch in model.batches(600, 1, precision=precision, purpose="evaluate"):
            assert batch.dtype == torch.float32
            scorer.add(quantise(batch))
        found[precision] = scorer.scores()[0].estimate
    assert found["bf16"].value != found["fp32"].value
    assert abs(found["bf16"].value - found["fp32"].value) < found["fp32"].std

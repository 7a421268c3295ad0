"""The verdict on rounds: from curves whose right answer is plain, and from errors that are paired."""

import pandas as pd
import pytest
import torch

from fmcore.score.estimates import Estimate, jackknife
from fmcore.verdict import RATIO, SURE, Learned, Sampled, choices, next_for, sentences, verdict
from repository import ROOT


def estimate(value, left_out=(), std=0.01):
    if left_out:
        return Estimate(value, jackknife(left_out), 1000, tuple(left_out))
    return Estimate(value, std, 1000)


def curves(**models):
    return {name: {nfe: estimate(value) for nfe, value in by_nfe.items()} for name, by_nfe in models.items()}


BASE = {1: 70.0, 4: 3.0, 64: 0.4}
TEACHERS = {"r1": "base"}


def test_a_bent_round_that_hardly_drifted_calls_for_another():
    found = verdict(curves(base=BASE, r1={1: 5.0, 4: 2.0, 64: 0.5}), TEACHERS)
    assert found.pays is True
    assert found.margin.value == pytest.approx(4.5 - RATIO * 0.1)
    assert (found.few, found.many) == (1, 64)
    assert sentences(found)[0] == (
        "Another reflow round after r1 is expected to pay. At one evaluation r1 is 4.5 ± 0.01 worse than at "
        "64 evaluations: that is all a further round could win. Against its teacher base, r1 lost 0.1 ± 0.01 "
        "at 64 evaluations. A round pays if what it could win is beyond chance, is at least 5% of the distance, "
        "and is more than 4 times what the last round lost."
    )


def test_a_straight_round_that_drifted_does_not():
    found = verdict(curves(base=BASE, r1={1: 1.2, 4: 0.9, 64: 0.7}), TEACHERS)
    assert found.pays is False
    assert "r1 is not expected to pay." in sentences(found)[0]
    assert sentences(found)[1] == (
        "r1, against its teacher base, won 68.8 ± 0.01 at one evaluation and lost 0.3 ± 0.01 at 64 evaluations."
    )


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (0.405, "The scores of r1 at one evaluation and at 64 evaluations cannot be told apart (+0.005 ± 0.01)"),
        (0.2, "r1 is better at one evaluation than at 64 evaluations (-0.2 ± 0.01)"),
    ],
)
def test_a_round_that_is_straight_already_leaves_nothing_to_win(one, said):
    """Even if it did not drift: what is left is no more than chance."""
    found = verdict(curves(base=BASE, r1={1: one, 64: 0.4}), TEACHERS)
    assert found.pays is False
    assert said in sentences(found)[0]


def test_a_bend_that_is_sure_but_tiny_is_not_worth_a_round():
    scores = {"base": {1: estimate(70.0), 64: estimate(1.0)}}
    scores["r1"] = {1: estimate(1.02, std=1e-4), 64: estimate(1.0, std=1e-4)}
    found = verdict(scores, TEACHERS)
    assert found.margin.value > SURE * found.margin.std
    assert found.pays is False


def test_a_round_that_got_better_at_many_steps_gets_no_credit_for_it():
    found = verdict(curves(base=BASE, r1={1: 0.5, 64: 0.3}), TEACHERS)
    assert found.margin == found.rounds[0].bend


def test_few_steps_do_not_show_drift():
    """At 4 evaluations a base is still coarse, and its rounds look better than it."""
    found = verdict(curves(base={1: 73.0, 4: 2.96}, r1={1: 1.22, 4: 0.83}), TEACHERS)
    assert found.pays is None
    assert sentences(found)[0].startswith(
        "Whether another reflow round after r1 pays cannot be told from scores at 4 evaluations or fewer (sc"
    )
    assert "could win" not in sentences(found)[0]
    assert "A round pays" not in sentences(found)[0]


def test_a_close_call_is_called_so():
    found = verdict(curves(base=BASE, r1={1: 0.92, 64: 0.5}), TEACHERS)
    assert abs(found.margin.value) < SURE * found.margin.std
    assert "is expected to pay, though it is a close call." in sentences(found)[0]


def test_a_round_that_changed_nothing_is_called_so():
    scores = curves(base=BASE, r1={1: 1.2, 64: 0.7}, r2={1: 1.205, 64: 0.705})
    assert sentences(verdict(scores, {"r1": "base", "r2": "r1"}))[2] == (
        "r2, against its teacher r1, differs by at most 0.033 at one evaluation and differs by at most 0.033 at "
        "64 evaluations."
    )


def test_a_round_that_made_things_worse_is_called_so():
    scores = curves(base=BASE, r1={1: 1.2, 64: 0.7}, r2={1: 1.3, 64: 0.5})
    line = sentences(verdict(scores, {"r1": "base", "r2": "r1"}))[2]
    assert "lost 0.1 ± 0.01 at one evaluation and won 0.2 ± 0.01 at 64 evaluations" in line


def test_rounds_may_have_one_teacher():
    scores = curves(base=BASE, a={1: 1.2, 64: 0.7}, b={1: 1.1, 64: 0.8})
    found = verdict(scores, {"a": "base", "b": "base"})
    assert [(one.name, one.teacher) for one in found.rounds] == [("a", "base"), ("b", "base")]
    assert found.rounds[1].drift.value == pytest.approx(0.4)


def test_at_each_budget_the_best_run_is_named_and_models_as_good():
    scores = curves(base=BASE, r1={1: 1.2, 4: 0.9, 64: 0.7}, student={1: 0.88})
    runs = [Sampled(name, "euler", nfe, score) for name, by_nfe in scores.items() for nfe, score in by_nfe.items()]
    runs.append(Sampled("r1", "heun", 4, estimate(0.95)))
    found = [(one.budget, one.run.name, one.run.nfe, one.as_good) for one in choices(runs)]
    assert found == [
        (1, "student", 1, ()),
        (4, "student", 1, ("r1",)),  # who may take four evaluations may take one: 0.88 against 0.9
        (64, "base", 64, ()),
    ]
    assert choices([*runs, Sampled("base", "heun", 64, estimate(0.3))])[-1].run.how == "heun"


def test_errors_of_differences_are_paired():
    """Two models on one noise: their scores move together, and what they differ by is known far better."""
    g = torch.Generator().manual_seed(0)
    common = torch.randn(10, generator=g, dtype=torch.float64) * 0.1
    own = torch.randn(2, 10, generator=g, dtype=torch.float64) * 0.001
    base, r1 = (estimate(v, (v + common + mine).tolist()) for v, mine in zip((1.0, 0.9), own, strict=True))
    many = {"base": estimate(0.5, [0.5] * 10), "r1": estimate(0.5, [0.5] * 10)}
    found = verdict({"base": {1: base, 64: many["base"]}, "r1": {1: r1, 64: many["r1"]}}, TEACHERS)
    won = found.rounds[0].won
    assert won.value == pytest.approx(0.1)
    assert won.std < 0.05 * base.std
    assert won.std == pytest.approx(jackknife((own[0] - own[1]).tolist()))
    assert won.value > SURE * won.std


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="at least one reflow round"):
        verdict(curves(base=BASE), {})
    with pytest.raises(ValueError, match=r"two NFE that all flows were scored at, got \[4\]"):
        verdict(curves(base={1: 3.0, 4: 2.0}, r1={4: 1.0, 8: 1.0}), TEACHERS)


def learned(score, matched=False, floor=0.1):
    run = Sampled("one", "euler", 1, Estimate(score, 0.01, 1000))
    fresh = None if floor is None else Estimate(floor, 0.003, 1000)
    return Learned(run, Estimate(0.3, 0.01, 1000), matched, fresh)


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (learned(0.7), "one is 0.4 ± 0.01 worse at one evaluation than the pairs it learnt: longer training or"),
        (learned(0.32), "one is as good at one evaluation as the pairs it learnt: only better pairs, or matching"),
        (learned(0.08, matched=True), "one is as near at one evaluation as fresh data are"),
        (learned(0.2, matched=True), "one is matched to data and 0.1 ± 0.01 from fresh ones at one evaluation"),
        (learned(0.2, matched=True, floor=None), "longer matching or a larger network is what is left to try"),
    ],
)
def test_what_is_said_to_be_next_is_what_can_win(student, said):
    assert said in next_for(student)


def test_what_is_said_to_be_next_won_on_the_table_of_the_endings():
    """docs/endings.csv: where a student without matching was as good as its pairs, or worse, matching won."""
    table = pd.read_csv(ROOT / "docs/endings.csv")
    one = table[(table.nfe == 1) & (table.solver == "euler")].set_index(["data", "seed", "model"])
    compared = 0
    for (data, seed, model), row in one.iterrows():
        if (data, seed, f"{model}_matched") not in one.index:
            continue
        student = Learned(
            Sampled(model, "euler", 1, Estimate(row.distance, row["std"], 1000)),
            Estimate(row.pairs, row.pairs_std, 1000),
            matched=False,
            floor=None,
        )
        assert "matching" in next_for(student)
        assert one.loc[(data, seed, f"{model}_matched")].distance < row.distance
        compared += 1
    assert compared >= 4

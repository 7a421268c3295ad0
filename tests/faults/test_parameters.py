"""Parameter files nobody meant: each is read, or answered in lines that name the file, and never with a traceback.

`make test` tries 150 of them, the same each time; `FMCORE_FAULTS=N` tries 500 N, others each time.
"""

import contextlib
import copy
import json
import os
from functools import lru_cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.launch.stages import started
from flows.params.files import PRESETS, ParamsError
from flows.params.preset import rendered
from flows.params.reading import load_yaml, read
from flows.workshop.entry import Stage
from repository import ROOT

TIMES = int(os.environ.get("FMCORE_FAULTS", "0"))
NAMES = sorted(path.stem for path in (ROOT / PRESETS).glob("*.yaml"))
many = settings(
    max_examples=500 * TIMES or 150,
    derandomize=not TIMES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@lru_cache
def preset(name, folder):
    path = folder / "whole.yaml"
    path.write_bytes(rendered(name))
    return json.dumps(load_yaml(path))


NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([10**9, 10**12, 10**15, 2**63, 2**64, -(2**63), 10**40, 0.1, 1e-30, 1e30, 1e308, -0.0]),
    st.floats(),
)
TEXTS = st.one_of(
    st.sampled_from(
        ["", "auto", "none", "null", "base", "student", "r1", "../x", "/", ".", "~", "a b", "$(id)", "é"]
    ),
    st.sampled_from(
        ["matched", "mlp", "unet", "euler", "heun", "digits", "checkerboard", "uint8", "couplings-r1"]
    ),
    st.text(max_size=8),
)
SIMPLE = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
KEYS = st.one_of(TEXTS, st.sampled_from(["name", "teacher", "train", "images", "couple"]))
VALUES = st.recursive(
    SIMPLE, lambda x: st.one_of(st.lists(x, max_size=3), st.dictionaries(KEYS, x, max_size=3)), max_leaves=6
)


def places(value, at=()):
    """Every place of a tree, its own included."""
    yield at
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*at, key))


@st.composite
def changed(draw, raw):
    """A tree with one to three places replaced, removed, renamed, doubled, or given one more key."""
    raw = copy.deepcopy(raw)
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from([place for place in places(raw) if place]))
        at = raw
        for key in above:
            at = at[key]
        match draw(st.sampled_from(["replace", "replace", "remove", "rename", "add", "swap", "override"])):
            case "override" if isinstance(raw.get("reflow"), dict) and isinstance(raw.get("couple"), dict):
                section = draw(st.sampled_from(["couple", "train"]))
                from_ = raw["couple"] if section == "couple" else raw["reflow"].get("train")
                rounds = raw["reflow"].get("rounds")
                if isinstance(rounds, dict) and rounds and isinstance(from_, dict) and from_:
                    name = draw(st.sampled_from(sorted(rounds)))
                    rounds[name] = {"teacher": "base", "couple": {}, "train": {}}
                    rounds[name][section] = {draw(st.sampled_from(sorted(from_))): draw(VALUES)}
            case "replace":
                at[last] = draw(VALUES)
            case "remove":
                del at[last]
            case "rename" if isinstance(at, dict):
                at[draw(KEYS)] = at.pop(last)
            case "add" if isinstance(at, dict):
                at[draw(KEYS)] = draw(VALUES)
            case "swap":
                other = draw(st.sampled_from([place for place in places(raw) if place]))
                value = raw
                for key in other:
                    value = value[key]
                at[last] = copy.deepcopy(value)
        if not any(place for place in places(raw)):
            break
    return raw


def answered(path):
    """Reads a file: parameters, or one line for each mistake."""
    try:
        params = read(path)
    except ParamsError as error:
        for line in str(error).split("\n"):
            assert line.startswith(str(path)), line
            assert 10 < len(line) - len(str(path)) < 2000, line
        return None
    return params


@many
@given(data=st.data())
def test_a_changed_tree_is_read_or_answered(tmp_path, data):
    raw = json.loads(preset(data.draw(st.sampled_from(NAMES)), tmp_path))
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps(data.draw(changed(raw))), errors="surrogatepass")
    answered(path)


CHARACTERS = "{}[]:,-#&*!|>'\"%@`\n\t \\0é\u2028\x00"


@many
@given(data=st.data())
def test_a_changed_text_is_read_or_answered(tmp_path, data):
    preset(data.draw(st.sampled_from(NAMES)), tmp_path)
    text = rendered(data.draw(st.sampled_from(NAMES))).decode()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        match data.draw(st.sampled_from(["insert", "cut", "double", "indent"])):
            case "insert":
                text = text[:at] + data.draw(st.text(CHARACTERS, max_size=3)) + text[at:]
            case "cut":
                text = text[:at] + text[at + data.draw(st.integers(1, 60)) :]
            case "double":
                text = text[:at] + text[at : at + data.draw(st.integers(1, 200))] + text[at:]
            case "indent":
                text = text[:at] + text[at:].replace("\n  ", "\n ", 1)
    path = tmp_path / "params.yaml"
    path.write_text(text)
    answered(path)


@settings(many, max_examples=100 * TIMES or 20)
@given(data=st.data())
def test_what_is_read_passes_the_check_or_is_answered_there(tmp_path, monkeypatch, data):
    """Only what builds networks and opens files can say no, by a ValueError or an OSError."""
    raw = json.loads(preset("digits", tmp_path))
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps(data.draw(changed(raw))), errors="surrogatepass")
    params = answered(path)
    if params is None:
        return
    with monkeypatch.context() as inside, contextlib.suppress(ValueError, OSError):
        inside.chdir(tmp_path)
        list(started(params, Stage("check", "")))

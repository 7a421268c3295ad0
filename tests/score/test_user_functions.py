"""Functions of the user as extractors: imported only if asked for, and refused once they have changed."""

import sys

import pytest
import torch

from extractor_examples import MEANS, module_writer
from fmcore.disk.files import ArtifactError, ChangedError, sha256, write_json
from fmcore.score.extractors import adopt, digest_of, dims_of, load_extractor


@pytest.fixture
def module(tmp_path, monkeypatch):
    return module_writer(tmp_path, monkeypatch)


def test_a_function_of_the_user_is_an_extractor(module, tmp_path):
    name = f"{module(MEANS)}:means"
    made = adopt(name, tmp_path / "features", (3, 8, 8), [])
    source = tmp_path / f"{name.partition(':')[0]}.py"
    assert (made.metric, made.dims, made.digest) == ("fd_means", 3, sha256(source))
    assert made.digest == digest_of(name, None, False, (3, 8, 8))
    again = load_extractor(tmp_path / "features", function=name)
    pixels = torch.randint(256, (5, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(again(pixels), pixels.float().mean((2, 3)))
    assert (again.metric, again.dims, again.digest) == (made.metric, made.dims, made.digest)
    assert dims_of(name, (3, 8, 8)) is None


def test_a_function_in_a_package(tmp_path, module):
    package = tmp_path / f"package_{module(MEANS)}"
    package.mkdir()
    (package / "nets.py").write_text(MEANS)
    assert adopt(f"{package.name}.nets:means", tmp_path / "features", (1, 8, 8), []).metric == "fd_means"


def test_a_changed_function_is_refused(module, tmp_path):
    name = f"{module(MEANS)}:means"
    adopt(name, tmp_path / "features", (1, 8, 8), [])
    source = tmp_path / f"{name.partition(':')[0]}.py"
    before = sha256(source)
    source.write_text(MEANS + "# changed\n")
    message = f"{source.name}: expected the extractor with SHA-256 {before}, got {sha256(source)}"
    with pytest.raises(ChangedError, match=f"{message}$"):
        load_extractor(tmp_path / "features", function=name)


def test_nothing_is_imported_because_a_folder_says_so(module, tmp_path):
    mark = tmp_path / "mark"
    name = f"{module(f'open({str(mark)!r}, chr(119)).close()')}:means"
    features = tmp_path / "features"
    write_json(
        features / "manifest.json", {"extractor": name, "sha256": "0" * 64, "image_shape": [1, 8, 8], "dims": 1}
    )
    for function, message in (
        (None, f"made with {name}, run only if named; expected --extractor {name}"),
        ("my_own:features", f"expected features of my_own:features, got those of {name}"),
    ):
        with pytest.raises(ArtifactError, match=message):
            load_extractor(features, function=function)
    assert not mark.exists()
    with pytest.raises(ValueError, match="expected a function 'means'"):
        load_extractor(features, function=name)
    assert mark.exists(), "it was importable"


FUNCTIONS = {
    "no function": ("", "expected a function 'f' in .*py, got none of that name"),
    "no function but a number": ("f = 3", "expected a function 'f' in .*py, got a int"),
    "not Python": ("def f(:", "cannot be imported: SyntaxError"),
    "missing dependency": ("import no_such_dependency", "needs no_such_dependency, which is not there"),
    "raises": ("def f(x):\n    raise KeyError('weights\\nlost')", "failed on two images of shape .*: KeyError"),
    "a list": ("def f(x): return [1.0, 2.0]", r"expected a tensor of floats, \(2, D\) for 2 images, got list"),
    "integers": ("def f(x): return x.flatten(1)", r"got \(2, 64\) of torch.uint8"),
    "feature maps": ("def f(x): return x.float()", r"got \(2, 1, 8, 8\) of torch.float32"),
    "one for all": ("def f(x): return x.float().flatten(1)[:1]", r"\(2, 64\) for 2 images, got \(1, 64\)"),
    "no features": ("def f(x): return x.float().flatten(1)[:, :0]", r"\(2, D\) for 2 images, got \(2, 0\)"),
    "nan": ("def f(x): return x.float().flatten(1) * float('nan')", r"expected finite features, got \[nan, nan"),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_a_function_that_is_none_is_one_line(module, tmp_path, case):
    text, message = FUNCTIONS[case]
    name = f"{module(text)}:f"
    with pytest.raises(ValueError, match=f"extractor {name}: .*{message}") as caught:
        adopt(name, tmp_path / "features", (1, 8, 8), [])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "features").exists()
    with pytest.raises(ValueError, match=f"extractor {name}: .*{message}"):
        digest_of(name, None, False, (1, 8, 8))


@pytest.mark.parametrize("name", ["no_such_module:f", "fmcore.no_such_module:f"])
def test_a_missing_module_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(ValueError, match=f"extractor {name}: no module '{name[:-2]}', in .* or installed"):
        adopt(name, tmp_path, (1, 8, 8), [])


def test_features_that_change_their_size_are_refused(module, tmp_path):
    name = f"{module('def f(x): return x.float().flatten(1)[:, : 2 * len(x)]')}:f"
    made = adopt(name, tmp_path / "features", (1, 8, 8), [])
    with pytest.raises(ValueError, match=r"expected a tensor of floats, \(3, 4\) for 3 images, got \(3, 6\)"):
        made(torch.zeros(3, 1, 8, 8, dtype=torch.uint8))

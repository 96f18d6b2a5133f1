"""Classes by import path, from an allow-list only."""

import sys

import pytest

from adapters.imports import (
    ClassNotFoundError,
    ImportNotAllowedError,
    MalformedImportPathError,
    load_class,
)

ALLOWED = ["models", "json.decoder"]


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    """Write somebody's models, and a package whose name merely begins alike."""
    for package in ("models", "models_of_others"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(
            "from models.vision import Net\n"
        )
        (tmp_path / package / "vision.py").write_text(
            "from fractions import Fraction\nclass Net: pass\nsize = 3\n"
        )
    (tmp_path / "models" / "broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("models")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "path", ["models.vision:Net", "models:Net", "json.decoder:JSONDecoder"]
)
def test_an_allowed_class_is_loaded(path):
    assert load_class(path, ALLOWED).__name__ == path.split(":")[1]


@pytest.mark.parametrize(
    "path",
    ["models_of_others.vision:Net", "os:PathLike", "json:JSONDecoder", "model:Net"],
)
def test_others_are_refused_without_being_imported(path):
    with pytest.raises(ImportNotAllowedError, match=r"json\.decoder"):
        load_class(path, ALLOWED)
    assert "models_of_others" not in sys.modules


def test_an_allowed_module_does_not_lend_out_what_it_imported():
    with pytest.raises(ImportNotAllowedError, match="fractions"):
        load_class("models.vision:Fraction", ALLOWED)


def test_an_empty_list_allows_nothing():
    with pytest.raises(ImportNotAllowedError, match="nothing"):
        load_class("models:Net", [])


@pytest.mark.parametrize(
    "path",
    [
        "",
        "models",
        "models:",
        ":Net",
        "models.vision.Net",
        "models:Net.attribute",
        "models::Net",
        ".models:Net",
        "models..vision:Net",
        "models:Net\n",
        "models/vision:Net",
        "mödels:Net",
    ],
)
def test_a_malformed_path_is_refused(path):
    with pytest.raises(MalformedImportPathError, match=r"package\.module:Class"):
        load_class(path, ALLOWED)


@pytest.mark.parametrize(
    "path", ["models.vision:Other", "models.vision:size", "models.audio:Net"]
)
def test_what_is_not_there_is_refused(path):
    with pytest.raises(ClassNotFoundError, match=path):
        load_class(path, ALLOWED)


def test_a_module_that_cannot_be_imported_is_refused():
    with pytest.raises(ClassNotFoundError, match="division by zero"):
        load_class("models.broken:Net", ALLOWED)


@pytest.mark.parametrize("prefix", ["", ".", "models.", "*"])
def test_a_prefix_is_a_modules_name(prefix):
    with pytest.raises(ValueError, match="not a module's name"):
        load_class("models:Net", [prefix])

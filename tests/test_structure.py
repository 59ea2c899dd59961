"""What the package's modules import: nothing in a circle, and of the files that go beside a model only each other."""

import ast
import configparser
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from conftest import ROOT


PACKAGE = ROOT / "src" / "catseg_hf"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {
    ".".join(["catseg_hf", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in FILES
}
# Those that `save_pretrained` writes beside a model, where there are no folders.
COPIED = {
    name: path
    for name, path in MODULES.items()
    if path.parent == PACKAGE and ("_catseg" in path.stem or path.stem in ("errors", "refinement"))
}
# The distributions whose packages have other names.
PACKAGE_NAMES = {"pillow": "PIL"}


class Import(NamedTuple):
    """An import statement: the module it names, and the names that it takes from it, if any."""

    level: int
    module: str
    names: tuple[str, ...]
    line: int
    is_optional: bool  # in a `try`, whose failure is handled
    is_conditional: bool  # in a branch of a function, which may never run


def imports_of(path: Path) -> list[Import]:
    """All of a file, but those for type checkers."""
    return list(_find_imports(ast.parse(path.read_text(encoding="utf-8")).body))


def _find_imports(
    statements: list[ast.stmt], in_function: bool = False, is_optional: bool = False, is_conditional: bool = False
) -> Iterator[Import]:
    for statement in statements:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                yield Import(0, alias.name, (), statement.lineno, is_optional, is_conditional)
        elif isinstance(statement, ast.ImportFrom):
            names = tuple(alias.name for alias in statement.names)
            yield Import(statement.level, statement.module or "", names, statement.lineno, is_optional, is_conditional)
        elif isinstance(statement, ast.If) and getattr(statement.test, "id", "") == "TYPE_CHECKING":
            yield from _find_imports(statement.orelse, in_function, is_optional, is_conditional)
        else:
            is_function = isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef))
            branches = isinstance(statement, (ast.If, ast.For, ast.While, ast.Match))
            for field, inner in _blocks(statement):
                yield from _find_imports(
                    inner,
                    in_function or is_function,
                    is_optional or (isinstance(statement, ast.Try) and field == "body" and bool(statement.handlers)),
                    is_conditional or (in_function and (branches or field == "handlers")),
                )


def _blocks(statement: ast.stmt) -> Iterator[tuple[str, list[ast.stmt]]]:
    """The statements in a statement, by the field that they are in."""
    for field in ("body", "orelse", "finalbody"):
        yield field, getattr(statement, field, [])
    for field in ("handlers", "cases"):
        for part in getattr(statement, field, []):
            yield field, part.body


def imported_modules(name: str, path: Path, statement: Import) -> set[str]:
    """Those of the package that an import of one of its modules runs, except for packages that the module is in."""
    if statement.level == 0:
        return set()
    parts = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    base = parts[: len(parts) - statement.level + 1] + statement.module.split(".") * bool(statement.module)
    found = {".".join([*base, taken]) for taken in statement.names} & MODULES.keys()
    if len(found) < len(statement.names):
        found.add(".".join(base))
    inner = {".".join(module.split(".")[:length]) for module in found for length in range(1, module.count(".") + 1)}
    return found | {module for module in inner if module != name and not name.startswith(f"{module}.")}


def test_modules_do_not_import_each_other_in_a_circle():
    """Also when functions that import run: each module can be imported first."""
    graph = {
        name: {
            module
            for statement in imports_of(path)
            if not statement.is_conditional
            for module in imported_modules(name, path, statement)
        }
        - {name}
        for name, path in MODULES.items()
    }
    assert "catseg_hf.registration" in graph["catseg_hf"] and "catseg_hf.errors" in graph["catseg_hf.cli"]
    assert "catseg_hf.conversion.converter" in graph["catseg_hf.commands.convert"]
    assert graph.keys() >= set().union(*graph.values())
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def declared_dependencies() -> set[str]:
    """The packages that are installed with this one."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    distributions = re.findall(r"^\s*([\w-]+)", settings["options"]["install_requires"], re.MULTILINE)
    return {PACKAGE_NAMES.get(name, name.replace("-", "_")) for name in distributions}


@pytest.mark.parametrize("name", COPIED)
def test_what_goes_beside_a_model_stands_alone(name):
    allowed = declared_dependencies() | sys.stdlib_module_names
    assert {"torch", "PIL", "huggingface_hub"} < allowed
    for statement in imports_of(COPIED[name]):
        place = f"{COPIED[name].name}, line {statement.line}: {statement.module}"
        if statement.level == 0:
            assert statement.is_optional or statement.module.split(".")[0] in allowed, place
        else:
            # As transformers looks for what to copy: by lines of this form.
            assert statement.level == 1 and f"catseg_hf.{statement.module}" in COPIED, place


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_are_of_the_package_or_installed(path):
    """Of the package itself they are relative, and of a subpackage's own modules by their names alone."""
    folders = [ROOT / name for name in ("convert", "training", "tests", "benchmarks", "demo")]
    beside = {entry.stem for folder in folders for entry in folder.iterdir() if entry.suffix in ("", ".py")}
    assert {"catseg_training", "train", "catseg_testing", "conftest", "convert_catseg_original_to_hf"} <= beside
    depth = len(path.relative_to(PACKAGE).parts)
    for statement in imports_of(path):
        place = f"line {statement.line}: {statement.module}"
        first = statement.module.split(".")[0]
        if statement.level == 0:
            assert first not in beside | {"catseg_hf", "convert", "training", "tests"}, place
        else:
            assert statement.level <= depth, place
            assert depth == 1 or statement.level == 1 or first != path.parent.name, place
            assert depth == 1 or statement.level == 1 or path.parent.name not in statement.names, place


def test_the_search_finds_every_kind_of_import(tmp_path):
    (tmp_path / "module.py").write_text("""
import a.b
try:
    from c import d
except ImportError:
    import e
if TYPE_CHECKING:
    import f
else:
    from . import g
def function():
    from .h import i
    if True:
        import j
    with open("x"):
        import k
    try:
        import l
    except OSError:
        import m
""")
    found = imports_of(tmp_path / "module.py")
    names = [statement.module or statement.names[0] for statement in found]
    assert names == ["a.b", "c", "e", "g", "h", "j", "k", "l", "m"]
    assert [statement.module for statement in found if statement.is_optional] == ["c", "l"]
    assert [statement.module for statement in found if statement.is_conditional] == ["j", "m"]
    assert [statement.level for statement in found] == [0, 0, 0, 1, 1, 0, 0, 0, 0]

"""The examples of the README and of the pages in docs/: Python is run and its output compared, commands are parsed.

A page's blocks are run from top to bottom in one namespace, in a folder that holds nothing but demo/. What a block
prints is in the block without a language that follows. `<!-- not run: needs ... -->` before a block of Python says why
it is only compiled.
"""

import ast
import configparser
import doctest
import io
import re
import runpy
import shlex
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from catseg_hf import cli


ROOT = Path(__file__).parents[2]
EXECUTED = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
PAGES = [*EXECUTED, "benchmarks/README.md", "demo/README.md", "findings/README.md"]
LAUNCHERS = ("python", ".venv/bin/python", "accelerate", "torchrun")

BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>needs [^>]+) -->\n)?^```(?P<language>\w+)\n(?P<source>.*?)^```$\n"
    r"(?:^```\n(?P<printed>.*?)^```$\n)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """
    An example of a page.

    Attributes:
        language (`str`): Such as "python" or "bash".
        source (`str`): The example itself.
        printed (`str`): What it prints; nothing, unless the page says so.
        reason (`str`): Why it is not run, or `None`.
        line (`int`): Where `source` begins.
    """

    language: str
    source: str
    printed: str
    reason: str | None
    line: int


def blocks(page: str, language: str | None = None) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [
        Block(
            match["language"],
            match["source"],
            match["printed"] or "",
            match["reason"],
            text[: match.start("source")].count("\n"),
        )
        for match in BLOCK.finditer(text)
    ]
    return [block for block in found if language in (None, block.language)]


def commands(page: str) -> list[tuple[dict[str, str], list[str]]]:
    """The commands of a page's blocks of bash: the variables that are set for each, and its words."""
    found = []
    for block in blocks(page, "bash"):
        for line in block.source.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                command, words = words[:end], words[end + 1 :]
                variables = {}
                while re.fullmatch(r"[A-Z_]+=.*", command[0]):
                    name, _, variables[name] = command.pop(0).partition("=")
                found.append((variables, command))
    return found


def catseg_hf_arguments(command: list[str]) -> list[str] | None:
    """What is given to `catseg-hf`, if that is the command, by name or through a launcher."""
    if command[0] == "catseg-hf":
        return command[1:]
    if command[0] in LAUNCHERS and "catseg_hf.cli" in command:
        return command[command.index("catseg_hf.cli") + 1 :]
    return None


def script_calls() -> list[tuple[str, str, tuple[str, ...], str]]:
    """Page, script, its options, and the PYTHONPATH, of every call of one of the repository's scripts."""
    found = []
    for page in PAGES:
        for variables, command in commands(page):
            if command[0] not in LAUNCHERS:
                continue
            for index, word in enumerate(command):
                if word.endswith(".py"):
                    options = tuple(part.partition("=")[0] for part in command[index + 1 :] if part.startswith("--"))
                    found.append((page, word, options, variables.get("PYTHONPATH", "")))
    return found


def run(block: Block, page: str, namespace: dict) -> str:
    """What a block of Python, or of calls of `catseg-hf`, prints."""
    with redirect_stdout(io.StringIO()) as printed:
        if block.language == "python":
            exec(compile("\n" * block.line + block.source, page, "exec"), namespace)
        else:
            for line in block.source.splitlines():
                assert cli.main(catseg_hf_arguments(shlex.split(line, comments=True))) == 0
    return printed.getvalue()


@pytest.fixture
def in_folder_with_demo(tmp_path, monkeypatch):
    (tmp_path / "demo").symlink_to(ROOT / "demo", target_is_directory=True)
    monkeypatch.chdir(tmp_path)


def test_pages_are_read_as_they_are_written():
    """No fence that the expression above overlooks."""
    for page in PAGES:
        fences = re.findall(r"^```.*$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
        expected = sum(2 + 2 * bool(block.printed) for block in blocks(page))
        assert len(fences) == expected, page


@pytest.mark.parametrize("page", [page for page in EXECUTED if blocks(page, "python")])
def test_python(page, in_folder_with_demo):
    namespace, checker = {"__name__": "__main__"}, doctest.OutputChecker()
    for block in blocks(page):
        if block.reason is not None:
            code = compile(block.source, page, "exec", ast.PyCF_ONLY_AST)
            own = [node for node in code.body if (getattr(node, "module", None) or "").startswith("catseg_hf")]
            exec(compile(ast.Module(own, []), page, "exec"), {})  # what it imports from here must exist
        elif block.language == "python" or block.printed:
            printed = run(block, page, namespace)
            assert checker.check_output(block.printed, printed, doctest.ELLIPSIS), (
                f"{page}, line {block.line + 1}, printed\n{printed}instead of\n{block.printed}"
            )


@pytest.mark.parametrize("page", PAGES)
def test_commands(page, capsys):
    """`catseg-hf` takes the options, the scripts, make's targets and the extras exist."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    makefile = (ROOT / "Makefile").read_text()
    for _, command in commands(page):
        if (arguments := catseg_hf_arguments(command)) is not None:
            try:
                parsed = cli.build_parser().parse_args(arguments)
                parsed.check(parsed)
            except SystemExit as end:  # of --version with 0
                assert end.code == 0, f"{page}: {shlex.join(command)}\n{capsys.readouterr().err}"
        elif command[0] == "make":
            targets = [word for word in command[1:] if "=" not in word]
            assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets), command
        elif command[:2] == ["pip", "install"]:
            for extra in re.findall(r"\[(\w+)\]", command[-1]):
                assert extra in setup["options.extras_require"], command
    for where, script, _, _ in script_calls():
        assert where != page or (ROOT / script).is_file(), f"{page}: {script}"


@cache
def help_of(script: str, python_path: str) -> str:
    """What it prints of its options, in this process, where what it imports is already there."""
    printed, path, modules = io.StringIO(), sys.path.copy(), set(sys.modules)
    sys.path[:0] = [str((ROOT / script).parent), *(str(ROOT / folder) for folder in python_path.split(":") if folder)]
    try:
        with redirect_stdout(printed), pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
            patch.setattr(sys, "argv", [script, "--help"])
            runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if is_beside(script, sys.modules[name]):
                del sys.modules[name]
    assert not end.value.code, script
    return printed.getvalue()


def is_beside(script: str, module: ModuleType) -> bool:
    """Whether a module lies in the folder of a script, where others may have one of the same name."""
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).parent == (ROOT / script).parent


@pytest.mark.slow
@pytest.mark.parametrize(("page", "script", "options", "python_path"), script_calls())
def test_scripts_take_the_options(page, script, options, python_path):
    known = set(re.findall(r"--[\w-]+", help_of(script, python_path)))
    assert set(options) <= known, f"{page}: {script} has no {sorted(set(options) - known)}"

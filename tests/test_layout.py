"""The layering of the folders, and that one file is never two modules: held by walking the imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {  # each folder's siblings, besides itself; all may import penstock.errors
    "augment": set(),
    "loaders": {"augment"},
    "engine": {"augment", "loaders"},
    "benchmarks": {"augment", "loaders", "engine"},
}
FOLDERS = set(MAY_IMPORT)
TEXT = {".py", ".md", ".toml", ".sh", ".yml", ".cfg", ""}


@cache
def modules() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    files = [*ROOT.glob("penstock/*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
    return {_dotted(path.relative_to(ROOT)): path for path in files}


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    name = ".".join(parts if parts[0] == "penstock" else ("penstock", *parts))
    return name.removesuffix(".__init__")


def imports(name: str, *, top_level: bool = False) -> set[str]:
    """The modules that one imports, dotted; with `top_level` only those that are loaded along with it."""
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in _run_on_import(tree) if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: relative imports hide which package a name comes from"
            found |= {_module(f"{node.module}.{alias.name}", str(node.module)) for alias in node.names}
    return found


def _run_on_import(node: ast.AST) -> list[ast.AST]:
    """All nodes but those in functions and under `if TYPE_CHECKING` and `if __name__ == "__main__"`."""
    found = []
    for child in ast.iter_child_nodes(node):
        delayed = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if not delayed and not (
            isinstance(child, ast.If) and re.search("TYPE_CHECKING|__main__", ast.unparse(child.test))
        ):
            found += [child, *_run_on_import(child)]
    return found


def _module(dotted: str, parent: str) -> str:
    """`from a.b import c` imports the module a.b.c where there is one, else a.b."""
    return dotted if dotted in modules() else parent


def folder_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "penstock" and len(parts) > 1 and parts[1] in FOLDERS else None


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_a_folder_imports_only_those_before_it(folder: str) -> None:
    allowed = MAY_IMPORT[folder] | {folder}
    wrong = [
        f"{name} imports {other}"
        for name in modules()
        if folder_of(name) == folder
        for other in imports(name)
        if folder_of(other) not in {None, *allowed}
    ]
    assert not wrong


def test_nothing_imports_benchmarks_or_tests() -> None:
    wrong = [
        f"{name} imports {other}"
        for name in modules()
        for other in imports(name)
        if other.split(".")[0] == "tests" or (folder_of(other) == "benchmarks" and folder_of(name) != "benchmarks")
    ]
    assert not wrong


def test_the_base_imports_no_folder() -> None:
    for name in ("penstock", "penstock.errors", "penstock.files", "penstock.cli"):
        assert not {folder_of(other) for other in imports(name)} - {None}, name


def test_no_file_is_imported_by_its_bare_name() -> None:
    """`import loaders` would load the same file as `penstock.loaders` a second time."""
    sources = {str(path.relative_to(ROOT)): path for path in (*modules().values(), *ROOT.glob("tests/*.py"))}
    bare = re.compile(rf"^\s*(?:import|from)\s+(?:{'|'.join(FOLDERS)})\b", re.MULTILINE)
    assert not [name for name, path in sources.items() if bare.search(path.read_text(encoding="utf-8"))]


def test_no_import_cycles() -> None:
    graph = {name: {other for other in imports(name, top_level=True) if other in modules()} for name in modules()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in graph[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_optional_packages_are_imported_where_they_are_used() -> None:
    """A user without them can import everything, and a user with them does not wait for them."""
    code = (
        "import sys, penstock.loaders, penstock.engine.train\n"
        "print(*(name for name in ('nvidia.dali', 'ffcv', 'albumentations', 'timm', 'sklearn') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_the_package_links_to_the_folder(folder: str) -> None:
    link = ROOT / "penstock" / folder
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{folder}"  # relative, so that a clone works anywhere


def test_files_that_run_by_path_see_the_package() -> None:
    """Their own folder must not be on the path, where engine/queue.py would shadow the standard library's."""
    for name, path in modules().items():
        source = path.read_text(encoding="utf-8")
        if folder_of(name) and "run_command(main)" in source and "read_options" in source:
            depth = len(path.relative_to(ROOT).parts) - 1
            assert f"sys.path[0] = str(Path(__file__).resolve().parents[{depth}])" in source, path


def test_no_file_names_a_home_folder() -> None:
    home = re.compile(r"(?<![\w.~$])/(?:home|Users|root)/\w")
    hidden = {".git", ".venv", "penstock"}  # penstock: links to what is walked anyway
    files = [p for p in ROOT.iterdir() if p.is_file()]
    files += [
        p for top in ROOT.iterdir() if top.is_dir() and top.name not in hidden for p in top.rglob("*") if p.is_file()
    ]
    texts = [p for p in files if p.suffix in TEXT and "cache" not in str(p.relative_to(ROOT))]
    assert not [str(p.relative_to(ROOT)) for p in texts if home.search(p.read_text(encoding="utf-8", errors="replace"))]

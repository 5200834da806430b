"""The rules of the package's layout, read from its source: one direction of imports, SQL in one file, no swallowing."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import outtray

SOURCE = Path(outtray.__file__).parent

# Each module may import those before it. A new file is placed here by its author.
ORDER = (
    "errors",
    "enums",
    "encoding",
    "paths",
    "options",
    "config_file",
    "settings",
    "consent",
    "identity",
    "environment",
    "forking",
    "journal",
    "outbox",
    "outbox.sql",
    "outbox.files",
    "outbox.filelock",
    "outbox.sync",
    "outbox.places",
    "outbox.gate",
    "outbox.reserve",
    "outbox.connection",
    "outbox.records",
    "outbox.pages",
    "outbox.generation",
    "outbox.ledger",
    "outbox.transaction",
    "outbox.opening",
    "outbox.handle",
    "outbox.database",
    "outbox.waiting",
    "outbox.store",
    "outbox.shared",
    "outbox.sources",
    "outbox.recovery",
    "outbox.erasure",
    "outbox.upkeep",
    "outbox.look",
    "outbox.inspect",
    "remembering",
    "secrets",
    "sessions",
    "request",
    "destinations",
    "destinations.answers",
    "destinations.zenml",
    "delivery",
    "delivery.backoff",
    "delivery.lock",
    "delivery.target",
    "delivery.report",
    "delivery.outlook",
    "delivery.drain",
    "delivery.flush",
    "delivery.status",
    "delivery.detached",
    "delivery.flusher",
    "client",
    "context",
    "models",
    "tray",
    "utils",
    "",  # outtray/__init__.py
)
# On top, beside each other; whole folders, whose files may import each other.
ON_TOP = ("testing", "bridges", "cli", "__main__")
MAY_USE = {"cli": {"testing", "bridges"}, "__main__": {"cli"}}

SQL = re.compile(
    r"\s*(?:(?-i:SELECT|PRAGMA|VACUUM|ATTACH|SAVEPOINT|COMMIT|ROLLBACK)(?:\s|$)"
    r"|select\s.+\sfrom\s|insert\s+(?:or\s+\w+\s+)?into\s|update\s+(?:or\s+\w+\s+)?\w+\s+set\s|delete\s+from\s"
    r"|replace\s+into\s|pragma\s+\w+|(?:create|drop|alter)\s+(?:unique\s+|temp\w*\s+)?(?:table|index|view|trigger)\b"
    r"|begin\s+(?:immediate|exclusive|deferred)\b|vacuum$|with\s+\w+\s+as\s*\()",
    re.IGNORECASE | re.DOTALL,
)

Rule = Callable[[Path], list[str]]


def modules_of(root: Path) -> dict[str, ast.Module]:
    """Return the syntax trees of the package at *root* by dotted name below it; its own is ""."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text("utf-8"))
    return found


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def nodes_of(tree: ast.AST) -> Iterator[ast.AST]:
    """Give all nodes, inside functions too, but for what only type checkers read."""
    for child in ast.iter_child_nodes(tree):
        if is_for_type_checkers(child):
            assert isinstance(child, ast.If)
            for other in child.orelse:
                yield other
                yield from nodes_of(other)
            continue
        yield child
        yield from nodes_of(child)


def imports_of(name: str, tree: ast.Module, known: set[str], is_package: bool) -> set[str]:
    """Return the modules of the package that module *name* imports, by dotted name below the package."""
    found: set[str] = set()
    for node in nodes_of(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                own = ["outtray", *filter(None, name.split("."))]
                parents = own[: len(own) - node.level + is_package]
                base = ".".join([*parents, *filter(None, [base])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner.removeprefix("outtray.") in known else base)
    ours = {one for one in found if one == "outtray" or one.startswith("outtray.")}
    return {one.removeprefix("outtray").removeprefix(".") for one in ours}


def top_of(name: str) -> str | None:
    folder = name.partition(".")[0]
    return folder if folder in ON_TOP else None


def unplaced(root: Path) -> list[str]:
    """Every module has its place in the order."""
    return [f"{name} is not in ORDER" for name in modules_of(root) if name not in ORDER and top_of(name) is None]


def upward_imports(root: Path) -> list[str]:
    """A module imports only what stands before it; what is on top uses itself, and what `MAY_USE` says."""
    modules = modules_of(root)
    found = []
    for name, tree in modules.items():
        is_package = (root / name.replace(".", "/") / "__init__.py").exists()
        for other in imports_of(name, tree, set(modules), is_package):
            if other == name:
                continue
            top, other_top = top_of(name), top_of(other)
            if top is None:
                fine = other in ORDER and name in ORDER and ORDER.index(other) < ORDER.index(name)
            else:
                fine = other_top is None or other_top == top or other_top in MAY_USE.get(top, set())
            if not fine:
                found.append(f"{name or 'outtray'} imports {other or 'outtray'}")
    return found


def uses_of_utils(root: Path) -> list[str]:
    """Nothing imports `utils`: it is for application code. (The package's own names are loaded lazily, by text.)"""
    modules = modules_of(root)
    return [
        f"{name or 'outtray'} imports utils"
        for name, tree in modules.items()
        if "utils" in imports_of(name, tree, set(modules), (root / name.replace(".", "/") / "__init__.py").exists())
    ]


def sql_elsewhere(root: Path) -> list[str]:
    """No SQL outside outbox/sql.py."""
    found = []
    for name, tree in modules_of(root).items():
        if name == "outbox.sql":
            continue
        docstrings = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in docstrings:
                continue
            if SQL.match(node.value):
                found.append(f"{name}:{node.lineno} holds SQL: {node.value[:40]}")
    return found


def prints(root: Path) -> list[str]:
    """Only the command line prints."""
    return [
        f"{name}:{node.lineno} prints"
        for name, tree in modules_of(root).items()
        if top_of(name) not in ("cli", "__main__")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]


def swallowed(root: Path) -> list[str]:
    """No handler of a whole family of errors is empty, and none is suppressed."""
    wide = {"", "Exception", "BaseException"}
    found = []
    for name, tree in modules_of(root).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                names = {ast.unparse(kind) if kind is not None else "" for kind in kinds}
                if names & wide and all(ast.unparse(line) in ("pass", "...") for line in node.body):
                    found.append(f"{name}:{node.lineno} swallows {', '.join(sorted(names))}")
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
                found += [f"{name}:{node.lineno} suppresses" for kind in node.args if ast.unparse(kind) in wide]
    return found


RULES: tuple[Rule, ...] = (unplaced, upward_imports, uses_of_utils, sql_elsewhere, prints, swallowed)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Rule) -> None:
    assert rule(SOURCE) == [], rule.__doc__


def test_the_order_names_only_modules_that_exist() -> None:
    assert set(ORDER) <= set(modules_of(SOURCE))


def test_the_readme_names_every_module_in_that_order() -> None:
    text = (SOURCE.parent.parent / "README.md").read_text()
    shown = text.partition("has the order):\n\n```\n")[2].partition("```")[0]
    words = iter(shown.replace("/", "").split())
    names = [module.rpartition(".")[2] or "__init__" for module in ORDER if not module.startswith("destinations.")]
    missing = [name for name in names if name not in words]  # "in" goes on from where it found the one before
    assert missing == []


PLANTED: tuple[tuple[Rule, str, str], ...] = (
    (unplaced, "novel.py", ""),
    (unplaced, "outbox/novel.py", ""),
    (upward_imports, "errors.py", "from outtray.enums import AnalyticsEvent"),
    (upward_imports, "errors.py", "from outtray import enums"),
    (upward_imports, "errors.py", "import outtray.enums"),
    (upward_imports, "errors.py", "from . import enums"),
    (upward_imports, "errors.py", "from .enums import AnalyticsEvent"),
    (upward_imports, "errors.py", "import outtray"),
    (upward_imports, "errors.py", "from outtray import __version__"),
    (upward_imports, "errors.py", "def late():\n    from outtray import enums"),
    (upward_imports, "outbox/sql.py", "from outtray.outbox import gate"),
    (upward_imports, "outbox/sql.py", "from . import gate"),
    (upward_imports, "outbox/sql.py", "from .. import tray"),
    (upward_imports, "delivery/lock.py", "def late():\n    from outtray.delivery import flush"),
    (
        upward_imports,
        "journal.py",
        "TYPE_CHECKING = False\nif TYPE_CHECKING:\n    pass\nelse:\n    from outtray import tray",
    ),
    (upward_imports, "tray.py", "from outtray.cli import main"),
    (upward_imports, "testing/x.py", "from outtray.cli import main"),
    (upward_imports, "testing/x.py", "from outtray import bridges"),
    (upward_imports, "bridges/x.py", "from outtray.testing import FakeServer"),
    (uses_of_utils, "tray.py", "def late():\n    from outtray import utils"),
    (uses_of_utils, "cli/x.py", "from outtray.utils import track_decorator"),
    (sql_elsewhere, "outbox/store.py", "x = 'SELECT 1'"),
    (sql_elsewhere, "outbox/store.py", "x = f'SELECT {1} FROM messages'"),
    (sql_elsewhere, "outbox/store.py", "x = '''\n  insert or replace into messages values (1)'''"),
    (sql_elsewhere, "outbox/store.py", "x = 'pragma user_version'"),
    (sql_elsewhere, "cli/x.py", "x = 'update messages set id = 1'"),
    (sql_elsewhere, "cli/x.py", "x = 'DELETE FROM messages'"),
    (sql_elsewhere, "cli/x.py", "x = 'CREATE TEMP TABLE a (b)'"),
    (sql_elsewhere, "cli/x.py", "x = 'BEGIN IMMEDIATE'"),
    (prints, "tray.py", "print('x')"),
    (prints, "testing/x.py", "def late():\n    print('x')"),
    (swallowed, "tray.py", "try:\n    x()\nexcept Exception:\n    pass"),
    (swallowed, "tray.py", "try:\n    x()\nexcept:\n    ..."),
    (swallowed, "tray.py", "try:\n    x()\nexcept (ValueError, Exception):\n    pass"),
    (swallowed, "tray.py", "import contextlib\nwith contextlib.suppress(Exception):\n    x()"),
)

ALLOWED = (
    ("errors.py", "TYPE_CHECKING = False\nif TYPE_CHECKING:\n    from outtray.tray import Tray"),
    ("tray.py", '"""SELECT what is to be said."""\nx = "Update the settings, then select another url from the list"'),
    ("outbox/sql.py", "x = 'SELECT 1'"),
    ("outbox/gate.py", "from outtray.outbox.filelock import FileLock\nfrom outtray.errors import OutboxBusy"),
    ("cli/x.py", "from outtray import bridges, testing, tray\nprint('x')"),
    ("tray.py", "try:\n    x()\nexcept FileExistsError:\n    pass"),
)


def tree_with(root: Path, path: str, text: str) -> Path:
    for name in [*ORDER, *ON_TOP[:3]]:
        is_folder = name in ("", "outbox", "delivery", "destinations", *ON_TOP)
        file = root / name.replace(".", "/") / "__init__.py" if is_folder else root / f"{name.replace('.', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    (root / path).write_text(text + "\n")
    return root


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED, ids=lambda value: getattr(value, "__name__", None))
def test_what_breaks_a_rule_is_found(tmp_path: Path, rule: Rule, path: str, text: str) -> None:
    assert len(rule(tree_with(tmp_path / "outtray", path, text))) == 1


@pytest.mark.parametrize(("path", "text"), ALLOWED)
def test_what_breaks_no_rule_is_not_found(tmp_path: Path, path: str, text: str) -> None:
    root = tree_with(tmp_path / "outtray", path, text)
    assert [finding for rule in RULES for finding in rule(root)] == []

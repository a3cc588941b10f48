"""The project's own conventions, as far as no checker checks them."""

import ast
from collections import Counter
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Each is a place that the type checker does not see: lower it when one goes.
MOST_ANY = 14
# Public functions of three and more parameters that say nothing of them: lower it likewise.
MOST_WITHOUT_ARGUMENTS = 15
# Docstrings that begin with a question instead of what one gets: lower it likewise.
MOST_QUESTIONS = 0
# Functions of eight and more parameters: lower it likewise.
MOST_LONG_SIGNATURES = 0


@lru_cache
def modules() -> dict[str, ast.Module]:
    """The modules of the product and its tools, by their paths."""
    paths = [path for folder in ("nas", "search_spaces", "tools") for path in (ROOT / folder).rglob("*.py")]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in sorted(paths)}


def uses_of_any(module: ast.Module) -> int:
    """How often ``Any`` stands in a module, imports aside."""
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(module))


def test_uses_of_any_are_counted_without_imports_and_comments() -> None:
    text = "from typing import Any\n# Any\ndef f(a: Any) -> object:\n    x: list[Any] = [a]\n    return x\n"
    assert uses_of_any(ast.parse(text)) == 2


def test_the_type_checker_sees_nearly_everything() -> None:
    found = Counter({path: uses_of_any(module) for path, module in modules().items()})
    assert found.total() <= MOST_ANY, found.most_common(10)


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Names of what a function or method takes."""
    given = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    return [each.arg for each in given if each.arg not in ("self", "cls")]


def without_arguments(module: ast.Module) -> list[str]:
    """Public functions of three and more parameters, methods too, whose docstring has no section for them."""
    found = []
    scopes: list[ast.Module | ast.ClassDef] = [module]
    while scopes:
        for node in scopes.pop().body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                scopes.append(node)
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            text = ast.get_docstring(node) or ""
            referred = "Args:" in text or text.startswith("See :")
            if len(parameters(node)) >= 3 and not referred:
                found.append(node.name)
    return found


def test_public_functions_say_what_they_take() -> None:
    text = "def f(a, b, c):\n    'Nothing.'\nclass C:\n    def g(self, a, b):\n        'See.'\n"
    assert without_arguments(ast.parse(text)) == ["f"]
    found = {path: names for path, module in modules().items() if (names := without_arguments(module))}
    assert sum(map(len, found.values())) <= MOST_WITHOUT_ARGUMENTS, found


def questions(module: ast.Module) -> list[str]:
    """First lines of docstrings that begin with What, How or Whether."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) or "" for node in ast.walk(module) if isinstance(node, documented)]
    return [text.splitlines()[0] for text in found if text.startswith(("What ", "How ", "Whether "))]


def test_docstrings_say_what_one_gets() -> None:
    text = "def f():\n    'What it is.'\nclass C:\n    'Whatever.'\n    def g():\n        'Whether so.'\n"
    assert sorted(questions(ast.parse(text))) == ["What it is.", "Whether so."]
    found = {path: lines for path, module in modules().items() if (lines := questions(module))}
    assert sum(map(len, found.values())) <= MOST_QUESTIONS, found


def long_signatures(module: ast.Module) -> list[str]:
    """Functions and methods that take eight or more things."""
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and len(parameters(node)) >= 8:
            found.append(node.name)
    return found


def test_few_functions_take_very_much() -> None:
    text = "def f(a, b, c, d, e, f, g, *, h): ...\nclass C:\n    def g(self, a, b, c, d, e, f, g): ...\n"
    assert long_signatures(ast.parse(text)) == ["f"]
    found = {path: names for path, module in modules().items() if (names := long_signatures(module))}
    assert sum(map(len, found.values())) <= MOST_LONG_SIGNATURES, found

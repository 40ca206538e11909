"""What is installed is what is in the checkout, and the pages made from the code are fresh."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"pqc": "pqc", "passes": "pqc/passes", "schedules": "pqc/schedules", "models": "pqc/models"}
DATA = (".yaml", ".onnx", ".md", ".npz", ".json")

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def files() -> set[str]:
    """Where each file of the four folders belongs in an installation."""
    found = set()
    for folder, target in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            if path.suffix == ".py" or (path.suffix in DATA and folder in ("schedules", "models")):
                found.add(f"{target}/{path.relative_to(ROOT / folder).as_posix()}")
    return found


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {Path(file).parent.as_posix().replace("/", ".") for file in files() if file.endswith(".py")} == set(listed)


@pytest.mark.slow
def test_the_wheel_holds_what_the_checkout_holds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == files()


def test_generated_pages_are_fresh() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "docs/generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_public_functions_are_the_verbs() -> None:
    from pqc import workflows
    from pqc.cli import cli

    verbs = {name.replace("-", "_") for name, command in cli.commands.items() if not hasattr(command, "commands")} - {
        "list",
        "import",  # a word of Python: import_model
    }
    assert verbs | {"import_model"} <= set(workflows.__all__)
    assert all(callable(getattr(workflows, name)) for name in workflows.__all__)
    for name in verbs:
        assert getattr(workflows, name).__doc__


def test_run_time_needs_neither_torch_nor_a_framework() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['tensorflow'] = sys.modules['keras'] = None\n"
        "from pqc import engine, workflows; engine.bindings(); import pqc.cli, pqc.training.trainer, pqc.report.page\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_passes_are_not_imported_by_the_engine() -> None:
    """Passes import the engine, never the reverse; only the pipeline and the catalogue know their table."""
    allowed = {"from pqc.passes import TABLE", "from pqc.passes import TABLE as PASSES"}
    for path in (ROOT / "pqc").rglob("*.py"):
        lines = [line.strip() for line in path.read_text().splitlines() if "pqc.passes" in line and "import" in line]
        assert set(lines) <= allowed, path

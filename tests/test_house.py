"""The house rules that the build checks, and that the checks can fail."""

import subprocess
import sys
from pathlib import Path

from tests.file_sizes import BUDGET, over_budget

PROJECT = Path(__file__).resolve().parents[1]
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")


def lint_imports(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([LINT_IMPORTS, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False)


def test_an_import_across_rooms_breaks_the_build(tmp_path: Path) -> None:
    for room in ("api", "services", "worker", "deploy"):
        for path in (PROJECT / room).rglob("*.py"):
            copy = tmp_path / path.relative_to(PROJECT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    (tmp_path / "pyproject.toml").write_bytes((PROJECT / "pyproject.toml").read_bytes())
    clean = lint_imports(tmp_path)
    assert clean.returncode == 0, clean.stdout
    with (tmp_path / "services/contracts/base.py").open("a", encoding="utf-8") as file:
        file.write("\nimport torch\n")
    broken = lint_imports(tmp_path)
    assert broken.returncode == 1
    assert "The gateway's rooms are free of torch BROKEN" in broken.stdout


def test_a_file_past_the_budget_is_named(tmp_path: Path) -> None:
    small, large = tmp_path / "small.py", tmp_path / "large.py"
    small.write_text("x = 1\n" * BUDGET, encoding="utf-8")
    large.write_text("x = 1\n" * (BUDGET + 1), encoding="utf-8")
    (problem,) = over_budget([small, large])
    assert str(large) in problem

"""What decides every job's numbers alike: the code, the libraries, the device, the type of numbers."""

from pathlib import Path

import pytest
import torch

from services.methods.origin import runner, source_sha256

CPU = torch.device("cpu")


def test_the_same_code_on_the_same_device_is_the_same_runner() -> None:
    assert runner(CPU, torch.float32) == runner(torch.device("cpu"), torch.float32)


def test_another_device_or_type_of_numbers_is_another_runner() -> None:
    runners = {runner(CPU, torch.float32), runner(CPU, torch.float64), runner(torch.device("meta"), torch.float32)}
    assert len(runners) == 3


@pytest.mark.parametrize(
    ("path", "decides"),
    [("engine/executor.py", True), ("methods/new.py", True), ("figures/bars.py", False), ("engine/notes.md", False)],
)
def test_any_change_of_code_that_computes_is_another_source(tmp_path: Path, path: str, decides: bool) -> None:
    def code(name: str, changed: bytes) -> str:
        root = tmp_path / name
        for file in ("engine/executor.py", path):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(b"x = 1")
        (root / path).write_bytes(changed)
        return source_sha256(root)

    assert code("one", b"x = 1") == code("same", b"x = 1")
    assert (code("one", b"x = 1") != code("other", b"x = 2")) is decides

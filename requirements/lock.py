"""Pin what is installed: writes gateway.txt, worker.txt and dev.txt from the extras of pyproject.toml.

Each file holds the exact versions of everything its extras need, read from the environment that runs this script.
torch is pinned apart (torch.txt), so that a CPU build can be installed before anything asks for it.
"""

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
APART = {"torch", "lensd"}


def main() -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    gateway = project["dependencies"] + extras["gateway"]
    worker = project["dependencies"] + extras["worker"]
    _write("gateway.txt", gateway)
    _write("worker.txt", worker)
    _write("dev.txt", gateway + worker + extras["local"] + extras["dev"])


def _write(name: str, requirements: list[str]) -> None:
    pins: dict[str, str] = {}
    pending = [Requirement(line) for line in requirements]
    while pending:
        requirement = pending.pop()
        key = canonicalize_name(requirement.name)
        if key in APART or (key in pins and not requirement.extras):
            continue
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:
            sys.exit(f"{requirement} is not installed: install it, then lock again")
        pins[key] = found.version.split("+")[0]
        for line in found.requires or ():
            needed = Requirement(line)
            environments = [{"extra": extra} for extra in ("", *requirement.extras)]
            if needed.marker is None or any(needed.marker.evaluate(environment) for environment in environments):
                pending.append(needed)
    lines = "".join(f"{key}=={version}\n" for key, version in sorted(pins.items()))
    (HERE / name).write_text(f"# Written by `make lock`.\n{lines}", encoding="utf-8")


if __name__ == "__main__":
    main()

"""What comes into the gateway's process, checked in a fresh one: static checks do not see through third parties."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "transformer_lens", "sae_lens")


@pytest.mark.parametrize("module", ["api", "api.app", "api.__main__", "api.cli", "api.openapi"])
def test_the_gateway_never_imports_torch(module: str) -> None:
    code = f"import importlib, json, sys; importlib.import_module({module!r}); print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not set(HEAVY) & set(json.loads(run.stdout))


def test_importing_the_gateway_needs_no_environment_and_connects_to_nothing() -> None:
    code = (
        "import socket; socket.socket.connect = None; "
        "import api.__main__, api.cli, api.settings; "
        "api.__main__.build(api.settings.GatewaySettings(home='/nonexistent'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PATH": ""})

"""A small client: posts a job, waits for it, and reads the arrays of its result.

The server and the key come from the environment: `LENSD_URL` (default http://127.0.0.1:8321) and `LENSD_KEY`.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

Json = dict[str, Any]
Array = npt.NDArray[np.float64]

WAIT_SECONDS = 60
POLL_SECONDS = 1.0


class JobError(Exception):
    """A job was refused, failed, or was cancelled; the message is the server's."""


class Lensd:
    """One server. `seconds` counts what its engine has worked for the jobs of this client."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self.seconds = 0.0

    def run(self, job: Json) -> Json:
        """The result of a job, however long it takes."""
        answer = self._client.post("/v1/jobs", json=job, headers={"Prefer": f"wait={WAIT_SECONDS}"})
        state = self._read(answer)
        while state["status"] in ("queued", "running"):
            time.sleep(POLL_SECONDS)
            state = self._read(self._client.get(f"/v1/jobs/{state['id']}"))
        if state["status"] != "succeeded":
            raise JobError(f"job {state['id']} {state['status']}: {state['error']}")
        result: Json = state["result"]
        self.seconds += result["usage"]["engine_seconds"]
        return result

    def model(self, model: str) -> Json:
        """Its sizes and sites."""
        return self._read(self._client.get(f"/v1/models/{model}"))

    def tokens(self, model: str, text: str) -> list[str]:
        """How the model's tokenizer cuts a text, without BOS."""
        answer = self._client.post(f"/v1/models/{model}/tokenize", json={"prompt": text, "bos": False})
        strings: list[str] = self._read(answer)["strings"]
        return strings

    def array(self, tensor: Json) -> Array:
        """A tensor of a result in its shape; the mean where it is one over many inputs."""
        if tensor["encoding"] == "statistic":
            return self.array(tensor["mean"])
        if tensor["encoding"] == "external":
            answer = self._client.get(tensor["href"])
            answer.raise_for_status()
            flat = np.frombuffer(answer.content, dtype="<f4").astype(np.float64)
        else:
            flat = np.array([np.nan if value is None else value for value in tensor["values"]])
        return flat.reshape(tensor["shape"])

    def standard_error(self, tensor: Json) -> Array:
        """Of the mean over many inputs."""
        return self.array(tensor["standard_error"])

    @staticmethod
    def _read(answer: httpx.Response) -> Json:
        if answer.is_error:
            raise JobError(f"{answer.status_code}: {answer.text}")
        body: Json = answer.json()
        return body


@contextmanager
def connect() -> Iterator[Lensd]:
    """The server that the environment names."""
    url, key = os.environ.get("LENSD_URL", "http://127.0.0.1:8321"), os.environ.get("LENSD_KEY")
    if not key:
        raise SystemExit("set LENSD_KEY to an API key of the server: `make up` prints one at its first start")
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(30, read=120), trust_env=False) as client:
        yield Lensd(client)

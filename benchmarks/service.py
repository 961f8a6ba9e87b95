"""The service over HTTP against the same work in a notebook's way: one by one, TransformerLens and SAELens.

    python -m benchmarks.service [--threads 2] [--clients 32] [--jobs 192]

1. Mixed small jobs (features and direct logit attribution on prompts of 10 to 30 tokens): many clients at once over
   HTTP, and the same list one by one in one process. Each side runs twice, in turn, on new prompts; medians.
2. One small job at a time on the idle service, end to end, minus the same method in process on the same prompt, the two
   in turn, so that the machine's drift falls on both alike.
3. A small job, then the same one again, which the result cache answers; the ratio pair by pair.

No job of 1 and 2 was ever asked before: each run has a tenant of its own.
"""

import argparse
import http.client
import json
import os
import random
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from sae_lens import SAE

from benchmarks.report import circumstances, table, write_section
from deploy.local.logs import StreamLog
from deploy.local.settings import LocalSettings
from deploy.local.stack import Stack
from services.catalogue.catalogue import Catalogue, model_folder, open_catalogue, sae_folder
from services.catalogue.resolve import Limits, resolve
from services.contracts.job import JobSpec
from services.engine.engine import Engine, EngineLimits
from services.engine.ticket import JobTicket
from services.methods.context import MethodContext, SaeInUse
from services.methods.registry import run_method
from services.models.load import LoadedModel, load_model
from services.saes.bundle import load_sae

MODEL, SAE_ID = "smollm2-135m", "smollm2-135m-l15-resid-post"
WORDS = (
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "that",
    "it",
    "was",
    "his",
    "her",
    "with",
    "for",
    "on",
    "at",
    "by",
    "from",
)
WARM_UP = 5
NAMES = (" Mary", " John", " Anna", " Tom")
SPEC: TypeAdapter[JobSpec] = TypeAdapter(JobSpec)

Body = dict[str, Any]


def bodies(count: int, seed: int) -> list[Body]:
    """Alternating attribution and features jobs on seeded prompts."""
    draw = random.Random(seed)  # noqa: S311 - a sample, no secret
    jobs: list[Body] = []
    for index in range(count):
        prompt = " ".join(draw.choice(WORDS) for _ in range(draw.randint(10, 30)))
        answer, foil = draw.sample(NAMES, 2)
        features: Body = {"kind": "features", "sae": SAE_ID, "prompts": [prompt], "promoted_logits": 0}
        attribution: Body = {
            "kind": "attribution",
            "method": {"type": "direct_logit_attribution"},
            "examples": [{"prompt": prompt, "answer": answer, "foil": foil}],
        }
        jobs.append({"model": MODEL, **(features if index % 2 else attribution)})
    return jobs


class Notebook:
    """The same work by the libraries' own means."""

    def __init__(self, home: Path, catalogue: Catalogue, model: LoadedModel) -> None:
        self.bridge = model.bridge
        self.catalogue = catalogue
        self.sae = SAE.load_from_disk(str(sae_folder(home, SAE_ID)), device="cpu")

    @torch.no_grad()
    def run(self, body: Body) -> None:
        inputs = resolve(SPEC.validate_json(json.dumps(body)), self.catalogue, Limits()).inputs
        if body["kind"] == "features":
            self._features(torch.tensor([inputs.prompts[0].ids]))
            return
        (example,) = inputs.examples
        assert example.answer is not None
        assert example.foil is not None
        self._attribution(torch.tensor([example.prompt.ids]), example.answer, example.foil)

    def _features(self, tokens: torch.Tensor) -> None:
        hook = "blocks.15.hook_resid_post"
        _, cache = self.bridge.run_with_cache(tokens, names_filter=hook, stop_at_layer=16)
        features = self.sae.encode(cache[hook][0])
        self.sae.decode(features)
        features.topk(10, dim=1)

    def _attribution(self, tokens: torch.Tensor, answer: int, foil: int) -> None:
        bridge = self.bridge
        _, cache = bridge.run_with_cache(tokens)
        direction = bridge.W_U[:, answer] - bridge.W_U[:, foil]
        scale = cache["ln_final.hook_scale"][0, -1]
        gain = bridge.original_model.model.norm.weight
        layers = range(bridge.cfg.n_layers)
        heads = torch.stack(
            [
                torch.einsum("hd,hdm->hm", cache[f"blocks.{layer}.attn.hook_z"][0, -1], bridge.blocks[layer].attn.W_O)
                for layer in layers
            ]
        )
        mlps = torch.stack([cache[f"blocks.{layer}.hook_mlp_out"][0, -1] for layer in layers])
        (heads / scale * gain) @ direction
        (mlps / scale * gain) @ direction


@dataclass(frozen=True)
class Server:
    """Where the service answers, and a key for it."""

    port: int
    key: str

    def session(self) -> Callable[[Body], float]:
        """Posts jobs over one connection and waits for their results; seconds per job."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json", "Prefer": "wait=60"}

        def post(body: Body) -> float:
            started = time.perf_counter()
            connection.request("POST", "/v1/jobs", json.dumps(body), headers)
            answer = connection.getresponse()
            job = json.loads(answer.read())
            if job.get("status") != "succeeded":
                raise RuntimeError(f"{answer.status}: {job}")
            return time.perf_counter() - started

        return post

    def burst(self, jobs: Sequence[Body], clients: int) -> float:
        """Jobs per second of `clients` clients that share the list."""
        with ThreadPoolExecutor(clients) as pool:
            sessions = [self.session() for _ in range(clients)]
            started = time.perf_counter()
            shares = [jobs[index::clients] for index in range(clients)]
            list(pool.map(lambda pair: [pair[0](body) for body in pair[1]], zip(sessions, shares, strict=True)))
        return len(jobs) / (time.perf_counter() - started)


@contextmanager
def served(home: Path, port: int) -> Iterator[Server]:
    with tempfile.TemporaryFile("w+") as log:
        settings = LocalSettings(home=home, port=port)
        with Stack(settings, StreamLog(log)) as stack:
            yield Server(port, stack.issue_key(f"bench-{secrets.token_hex(4)}", timedelta(hours=1)))


def burst(notebook: Notebook, server: Server, count: int, clients: int) -> tuple[str, ...]:
    """One line of the table: jobs per second of both sides."""
    server.burst(bodies(2 * clients, seed=0), clients)
    for body in bodies(4, seed=0):
        notebook.run(body)
    ours, theirs = [], []
    for seed in (1, 2):
        jobs = bodies(count, seed)
        ours.append(server.burst(jobs, clients))
        started = time.perf_counter()
        for body in jobs:
            notebook.run(body)
        theirs.append(len(jobs) / (time.perf_counter() - started))
    fast, slow = statistics.median(ours), statistics.median(theirs)
    title = f"{count} small jobs, {clients} clients over HTTP, against one by one in process"
    return title, f"{fast:.1f} jobs/s", f"{slow:.1f} jobs/s", f"{fast / slow:.1f}×", "≥ 2.5×"


def overhead(home: Path, catalogue: Catalogue, model: LoadedModel, server: Server, threads: int) -> str:
    """What the service adds to one small job on an idle machine."""
    warm_up, jobs = ([body for body in bodies(count, seed=count) if "sae" in body] for count in (2 * WARM_UP, 400))
    sae = SaeInUse(load_sae(sae_folder(home, SAE_ID)), catalogue.sae(SAE_ID))
    tokenizer = catalogue.tokenizer(MODEL)
    with Engine(EngineLimits(threads=threads)) as engine:
        engine.warm_up(model)

        def in_process(body: Body) -> float:
            spec = SPEC.validate_json(json.dumps(body))
            inputs = resolve(spec, catalogue, Limits()).inputs
            started = time.perf_counter()
            run_method(spec, MethodContext(model, engine, JobTicket("job", "bench"), inputs, tokenizer, sae))
            return time.perf_counter() - started

        post = server.session()
        for body in warm_up:
            in_process(body)
            post(body)
        pairs = [(in_process(body), post(body)) for body in jobs]
    alone, end_to_end = zip(*pairs, strict=True)
    added = sorted((there - here) * 1e3 for here, there in zip(alone, end_to_end, strict=True))
    return (
        f"One small job (features, 10 to 30 tokens) on the idle service, {len(jobs)} of them one after another: median "
        f"{statistics.median(end_to_end) * 1e3:.1f} ms end to end, {statistics.median(alone) * 1e3:.1f} ms in process; "
        f"the service adds {statistics.median(added):.1f} ms at the median (bar 10 ms), "
        f"{added[int(0.99 * len(added))]:.1f} ms at the 99th percentile (bar 30 ms), job by job."
    )


def answers(server: Server, count: int = 100) -> str:
    """What asking again costs, against the run."""
    post = server.session()
    pairs = [(post(body), post(body)) for body in bodies(count, seed=5)]
    runs, again = zip(*pairs, strict=True)
    ratio = statistics.median(run / answer for run, answer in pairs)
    return (
        f"The same small job again, {count} of them: median {statistics.median(again) * 1e3:.1f} ms from the result "
        f"cache, {statistics.median(runs) * 1e3:.1f} ms the run before it; {ratio:.1f}× faster, pair by pair."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--jobs", type=int, default=192)
    parser.add_argument("--port", type=int, default=8397)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    os.environ["LENSD_THREADS"] = str(given.threads)
    home = Path(os.environ.get("LENSD_HOME", ".lensd")).resolve()
    catalogue = open_catalogue(home)
    model = load_model(
        model_folder(home, MODEL), catalogue.model(MODEL), device=torch.device("cpu"), dtype=torch.float32
    )
    before = os.getloadavg()[0]
    with served(home, given.port) as server:
        line = burst(Notebook(home, catalogue, model), server, given.jobs, given.clients)
        added = overhead(home, catalogue, model, server, given.threads)
        asked_again = answers(server)
    where = circumstances(
        f"python -m benchmarks.service --threads {given.threads} --clients {given.clients} --jobs {given.jobs}",
        given.threads,
        (before, os.getloadavg()[0]),
    )
    head = ("work", "lensd", "TransformerLens and SAELens", "faster", "bar")
    write_section("Service", f"{table(head, [line])}\n\n{added}\n\n{asked_again}\n\n{where}")


if __name__ == "__main__":
    main()

"""A continuation under way: a chain of rows, one for every new token.

1. The first row is the prompt. Its keys and values are kept; they are the intervened run's own.
2. Each further row has one more token, and starts there: before it attention finds what was kept.
3. A row reads the log probabilities at its last position; the next token is chosen from them.

So a step is a row like any other to whoever schedules and runs it. Models that only run whole passes, and continuations
that found no room for their keys and values, run all positions at every step.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

from torch import Tensor

from services.contracts.errors import ErrorCode, JobFailed
from services.contracts.model import ModelFacts
from services.engine.check import site_shape
from services.engine.decoding import Continuation, Generated, OnToken, Onward, StopReason
from services.engine.lane import Lane
from services.engine.outcome import Outcome
from services.engine.past import Past, PastBudget
from services.engine.planner import bucket
from services.engine.readout import TokenLogProbs
from services.engine.row import Intervention, Row, Value
from services.engine.sampling import choose
from services.engine.scheduler import Task
from services.engine.ticket import JobTicket
from services.models.load import LoadedModel


class Decoding:
    """One continuation's state between its steps; `index` is its place among those submitted with it.

    Once its first step is queued, each further one is handed to `queue` on the engine's thread.
    """

    def __init__(
        self,
        model: LoadedModel,
        continuation: Continuation,
        ticket: JobTicket,
        index: int,
        *,
        budget: PastBudget,
        queue: Callable[[Sequence[Task]], None],
        on_token: OnToken,
    ) -> None:
        self.future: Future[Generated] = Future()
        self._model = model
        self._continuation = continuation
        self._ticket = ticket
        self._index = index
        self._queue = queue
        self._on_token = on_token
        self._reach = continuation.reach(model.facts.context)
        self._past = Past(self._reach, budget)
        self._tokens = continuation.tokens
        self._log_probs: list[float] = []

    @property
    def steps(self) -> int:
        """Rows still to run when nothing stops it early."""
        return self._reach - len(self._tokens) + 1

    def next_step(self) -> Task:
        """A row over the tokens so far, from where the past ends."""
        model, end = self._model, len(self._tokens)
        if model.is_long(end) != model.is_long(self._past.length):
            self._past.forget()
        start = self._past.length
        interventions = tuple(within(model.facts, self._continuation, start, end))
        row = Row(self._tokens, interventions, readout=TokenLogProbs(end - 1, None))
        lane = Lane(row, self._ticket.owner, start=start, past=self._past)
        task = Task(
            model=model,
            lane=lane,
            kind=(model, "decoding", bucket(lane.reach), model.is_long(end)),
            order=(self._rank(), self._index),
            tokens=lane.reach,
            cost=lane.reach * model.facts.layers,
            ticket=self._ticket,
            foreseen={},
        )
        task.future.add_done_callback(self._after_step)
        return task

    def _rank(self) -> int:
        """Prompts go first, so that many texts share their steps; those that found no room wait until some is free."""
        if not self._log_probs:
            return 0
        return 1 if self._past.length else 2

    def _after_step(self, step: Future[Outcome]) -> None:
        try:
            generated = self._advanced(step.result())
            if generated is None:
                self._queue([self.next_step()])
                return
        except Exception as error:  # the step's own, or that of choosing a token: this continuation's alone
            self._past.release()
            self.future.set_exception(error)
        else:
            self._past.release()
            self.future.set_result(generated)

    def _advanced(self, outcome: Outcome) -> Generated | None:
        """Choose the next token; the whole result once there is no other step to run."""
        log_probs = outcome.values()
        if bool(log_probs.isnan().any()):
            message = f"the model's logits are not numbers after {len(self._log_probs)} new tokens: intervene less"
            raise JobFailed(ErrorCode.METHOD_FAILED, message)
        token = choose(log_probs, self._continuation.sampling, len(self._log_probs))
        log_prob = float(log_probs[token])
        self._tokens = (*self._tokens, token)
        self._log_probs.append(log_prob)
        self._on_token(self._index, token, log_prob)
        stopped = self._stopped(token)
        if stopped is None:
            return None
        if self.steps > 0:  # progress counts them as done
            self._ticket.charge(rows=self.steps, token_layers=0.0, seconds=0.0)
        new = self._tokens[len(self._continuation.tokens) :]
        return Generated(new, tuple(self._log_probs), stopped, outcome.execution)

    def _stopped(self, token: int) -> StopReason | None:
        if token in self._continuation.stop:
            return "stop_token"
        if len(self._log_probs) == self._continuation.max_new_tokens:
            return "max_new_tokens"
        return "context" if self.steps == 0 else None


def within(facts: ModelFacts, continuation: Continuation, start: int, end: int) -> Iterator[Intervention]:
    """What changes at positions `start`..`end` - 1, with those positions spelled out."""
    for intervention in continuation.interventions:
        value: Value = intervention.value
        if isinstance(intervention, Onward):
            positions = tuple(range(max(start, intervention.first), end))
        elif intervention.positions is None:
            positions = tuple(range(start, end))
        else:
            kept = [place for place, position in enumerate(intervention.positions) if start <= position < end]
            positions = tuple(intervention.positions[place] for place in kept)
            if isinstance(value, Tensor) and value.ndim > len(site_shape(facts, intervention.site, end)):
                value = value[kept]
        if positions:
            yield Intervention(intervention.site, positions, intervention.operation, value)

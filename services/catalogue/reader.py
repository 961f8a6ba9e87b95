"""Reading a job's prompts, examples and pairs against one model's tokenizer and facts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from services.catalogue.tokenizer import Tokenizer
from services.contracts.errors import ErrorCode, InvalidSpec, LensdError, Violation
from services.contracts.inputs import TokenizedExample, TokenizedPair
from services.contracts.metric import ANSWER_METRICS, FOIL_METRICS, CrossEntropy, Metric, ProbDiff
from services.contracts.model import ModelFacts
from services.contracts.prompt import Answer, Example, Pair, Prompt
from services.contracts.result import PromptTokens

MAX_VIOLATIONS = 100

BosRule = Literal["request", "sae", "tokenizer"]


@dataclass
class PromptReader:
    """Collects what is wrong instead of stopping at the first."""

    facts: ModelFacts
    tokenizer: Tokenizer
    bos: bool
    rule: BosRule
    violations: list[Violation] = field(default_factory=list)

    def refuse(self, pointer: str, code: ErrorCode, message: str) -> None:
        self.violations.append(Violation(pointer, code, message))

    def refuse_all(self, violations: Iterator[Violation]) -> None:
        self.violations.extend(violations)

    def raise_violations(self) -> None:
        if self.violations:
            raise InvalidSpec(self.violations[:MAX_VIOLATIONS])

    def prompt(self, prompt: Prompt, pointer: str) -> PromptTokens | None:
        try:
            tokens = self.tokenizer.read(prompt, self.bos)
        except LensdError as error:
            self.refuse(pointer, error.code, error.message)
            return None
        if len(tokens.ids) > self.facts.context:
            self.refuse(
                pointer,
                ErrorCode.PROMPT_TOO_LONG,
                f"the prompt has {len(tokens.ids)} tokens: {self.facts.id} reads at most {self.facts.context}",
            )
            return None
        return tokens

    def example(self, example: Example, metric: Metric | None, pointer: str) -> TokenizedExample | None:
        tokens = self.prompt(example.prompt, f"{pointer}/prompt")
        if tokens is None:
            return None
        position = self.metric_position(metric, len(tokens.ids))
        answer, foil = self.answers(example, example.prompt, tokens, metric, pointer)
        return TokenizedExample(prompt=tokens, answer=answer, foil=foil, metric_position=position)

    def pair(self, pair: Pair, metric: Metric | None, pointer: str) -> TokenizedPair | None:
        clean = self.prompt(pair.clean, f"{pointer}/clean")
        corrupted = self.prompt(pair.corrupted, f"{pointer}/corrupted")
        if clean is None or corrupted is None:
            return None
        if len(clean.ids) != len(corrupted.ids):
            self.refuse(
                pointer,
                ErrorCode.UNEQUAL_LENGTHS,
                f"clean has {len(clean.ids)} tokens and corrupted {len(corrupted.ids)}; a pair needs equal lengths: "
                f"clean {_shown(clean)}, corrupted {_shown(corrupted)}",
            )
            return None
        answer, foil = self.answers(pair, pair.clean, clean, metric, pointer)
        return TokenizedPair(
            clean=clean,
            corrupted=corrupted,
            answer=answer,
            foil=foil,
            metric_position=self.metric_position(metric, len(clean.ids)),
            positions=self.named_positions(pair, len(clean.ids), pointer),
            differing=tuple(index for index, (a, b) in enumerate(zip(clean.ids, corrupted.ids, strict=True)) if a != b),
        )

    def metric_position(self, metric: Metric | None, length: int) -> int | None:
        if metric is None:
            return None
        if isinstance(metric, CrossEntropy):
            if length < 2:
                self.refuse(
                    "/metric", ErrorCode.UNSUPPORTED_METRIC, "cross_entropy needs prompts of at least two tokens"
                )
            return None
        return self.position(metric.position, length, "/metric/position")

    def position(self, position: int, length: int, pointer: str) -> int:
        if not -length <= position < length:
            self.refuse(
                pointer,
                ErrorCode.UNKNOWN_POSITION,
                f"position {position} does not exist in a prompt of {length} tokens: 0..{length - 1}, or −{length}..−1 "
                "from the end",
            )
        return position % length

    def named_positions(self, pair: Pair, length: int, pointer: str) -> dict[str, int]:
        return {
            name: self.position(position, length, f"{pointer}/positions/{name.replace('~', '~0').replace('/', '~1')}")
            for name, position in pair.positions.items()
        }

    def answers(
        self, item: Example | Pair, prompt: Prompt, tokens: PromptTokens, metric: Metric | None, pointer: str
    ) -> tuple[int | None, int | None]:
        found: dict[str, int | None] = {"answer": None, "foil": None}
        for name, needed_by in (("answer", ANSWER_METRICS), ("foil", FOIL_METRICS)):
            given: Answer | None = getattr(item, name)
            if given is not None:
                found[name] = self.answer(prompt, tokens, given, f"{pointer}/{name}")
            elif metric is not None and metric.type in needed_by:
                self.refuse(pointer, ErrorCode.INVALID_ANSWER, f"the metric {metric.type} needs {name!r} here")
        if found["answer"] is not None and found["answer"] == found["foil"]:
            self.refuse(f"{pointer}/foil", ErrorCode.INVALID_ANSWER, "the foil is the same token as the answer")
        return found["answer"], found["foil"]

    def answer(self, prompt: Prompt, tokens: PromptTokens, answer: Answer, pointer: str) -> int | None:
        try:
            return self.tokenizer.answer(prompt, tokens, answer, self.bos)
        except LensdError as error:
            self.refuse(pointer, error.code, error.message)
            return None

    def sets(
        self, metric: Metric | None, prompts: Sequence[tuple[Prompt, PromptTokens]]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The token ids of prob_diff's two sets, the same after every prompt."""
        if not isinstance(metric, ProbDiff):
            return (), ()
        answers = tuple(self._member(a, prompts, f"/metric/answers/{i}") for i, a in enumerate(metric.answers))
        foils = tuple(self._member(f, prompts, f"/metric/foils/{i}") for i, f in enumerate(metric.foils))
        if shared := set(answers) & set(foils):
            self.refuse("/metric/foils", ErrorCode.INVALID_ANSWER, f"tokens {sorted(shared)} are in both sets")
        return answers, foils

    def stops(self, stops: Sequence[Answer], pointer: str) -> tuple[int, ...]:
        """The ids of tokens that end a text: one token each, wherever it stands."""
        found = []
        for index, stop in enumerate(stops):
            try:
                found.append(self.tokenizer.one_token(stop))
            except LensdError as error:
                self.refuse(f"{pointer}/{index}", error.code, error.message)
        return tuple(dict.fromkeys(found))

    def _member(self, answer: Answer, prompts: Sequence[tuple[Prompt, PromptTokens]], pointer: str) -> int:
        ids = {self.answer(prompt, tokens, answer, pointer) for prompt, tokens in prompts}
        if len(ids) > 1:
            self.refuse(pointer, ErrorCode.INVALID_ANSWER, f"{answer!r} is a different token after different prompts")
        return next((token for token in ids if token is not None), 0)


def _shown(tokens: PromptTokens) -> str:
    strings = list(tokens.strings[:40])
    return f"{strings}…" if len(tokens.strings) > len(strings) else f"{strings}"

"""Prompts of indirect object identification, from the templates and words of Wang et al. 2022 (arXiv:2211.00593).

"When Mary and John went to the shops, John gave the bag to" is completed by the indirect object (IO, Mary), not by the
subject (S, John), which has been named twice: at S1 and at S2. A corrupted prompt has other names in the same places:

- `s2_flip`: S2 is the IO, so that the other name becomes the answer;
- `abc`: three names that are neither IO nor S, so that nobody is named twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Corruption = Literal["s2_flip", "abc"]

TEMPLATES = (
    "Then, {first} and {second} went to the {place}. {subject} gave a {object} to",
    "Then, {first} and {second} had a lot of fun at the {place}. {subject} gave a {object} to",
    "Then, {first} and {second} were working at the {place}. {subject} decided to give a {object} to",
    "Then, {first} and {second} were thinking about going to the {place}. {subject} wanted to give a {object} to",
    "Then, {first} and {second} had a long argument, and afterwards {subject} said to",
    "After {first} and {second} went to the {place}, {subject} gave a {object} to",
    "When {first} and {second} got a {object} at the {place}, {subject} decided to give it to",
    "When {first} and {second} got a {object} at the {place}, {subject} decided to give the {object} to",
    "While {first} and {second} were working at the {place}, {subject} gave a {object} to",
    "While {first} and {second} were commuting to the {place}, {subject} gave a {object} to",
    "After the lunch, {first} and {second} went to the {place}. {subject} gave a {object} to",
    "Afterwards, {first} and {second} went to the {place}. {subject} gave a {object} to",
    "Then, {first} and {second} had a long argument. Afterwards {subject} said to",
    "The {place} {first} and {second} went to had a {object}. {subject} gave it to",
    "Friends {first} and {second} found a {object} at the {place}. {subject} gave it to",
)
PLACES = ("store", "garden", "restaurant", "school", "hospital", "office", "house", "station")
OBJECTS = ("ring", "kiss", "bone", "basketball", "computer", "necklace", "drink", "snack")
NAMES = (
    "Michael Christopher Jessica Matthew Ashley Jennifer Joshua Amanda Daniel David James Robert John Joseph Andrew "
    "Ryan Brandon Jason Justin Sarah William Jonathan Stephanie Brian Nicole Nicholas Anthony Heather Eric Elizabeth "
    "Adam Megan Melissa Kevin Steven Thomas Timothy Christina Kyle Rachel Laura Lauren Amber Brittany Danielle Richard "
    "Kimberly Jeffrey Amy Crystal Michelle Tiffany Jeremy Benjamin Mark Emily Aaron Charles Rebecca Jacob Stephen "
    "Patrick Sean Erin Zachary Jamie Kelly Samantha Nathan Sara Dustin Paul Angela Tyler Scott Katherine Andrea "
    "Gregory Erica Mary Travis Lisa Kenneth Bryan Lindsey Kristen Jose Alexander Jesse Katie Lindsay Shannon Vanessa "
    "Courtney Christine Alicia Cody Allison Bradley Samuel"
)

Cut = Callable[[str], list[str]]


@dataclass(frozen=True)
class Prompt:
    """One filled-in template, and who is who in it."""

    template: str
    words: dict[str, str]
    first: str
    second: str
    subject: str

    @property
    def indirect_object(self) -> str:
        return self.second if self.subject == self.first else self.first

    def text(self, first: str, second: str, subject: str) -> str:
        return self.template.format(first=first, second=second, subject=subject, **self.words)

    @property
    def clean(self) -> str:
        return self.text(self.first, self.second, self.subject)


Drawn = Sequence[tuple[Prompt, tuple[str, str, str]]]
"""Prompts, each with the three names of its ABC corruption."""


def single_token_names(cut: Cut) -> list[str]:
    """The paper's names that are one token of this tokenizer after a space."""
    return [name for name in NAMES.split() if len(cut(f" {name}")) == 1]


def sample(names: Sequence[str], count: int, seed: int) -> Drawn:
    """Seeded prompts, half of them with the subject first, each with three other names for the ABC corruption."""
    generator = np.random.default_rng(seed)

    def choose(options: Sequence[str]) -> str:
        return options[int(generator.integers(len(options)))]

    drawn = []
    for number in range(count):
        first, second, *others = (names[int(index)] for index in generator.permutation(len(names))[:5])
        subject = first if number % 2 else second
        prompt = Prompt(choose(TEMPLATES), {"place": choose(PLACES), "object": choose(OBJECTS)}, first, second, subject)
        drawn.append((prompt, (others[0], others[1], others[2])))
    return drawn


def pairs(drawn: Drawn, corruption: Corruption, cut: Cut) -> list[Any]:
    """The pairs of a job, their positions named IO, S1, S1+1, S2 and END."""
    made = []
    for prompt, others in drawn:
        flipped = (prompt.first, prompt.second, prompt.indirect_object)
        corrupted = prompt.text(*(flipped if corruption == "s2_flip" else others))
        names = {"answer": f" {prompt.indirect_object}", "foil": f" {prompt.subject}"}
        made.append({"clean": prompt.clean, "corrupted": corrupted, **names, "positions": positions(prompt, cut)})
    return made


def examples(drawn: Drawn) -> list[Any]:
    """The clean prompts alone."""
    return [
        {"prompt": prompt.clean, "answer": f" {prompt.indirect_object}", "foil": f" {prompt.subject}"}
        for prompt, _ in drawn
    ]


def positions(prompt: Prompt, cut: Cut) -> dict[str, int]:
    """Where the names are, counted from the prompt's first token."""
    tokens = cut(prompt.clean)
    s1, s2 = (index for index, token in enumerate(tokens) if token == f" {prompt.subject}")
    return {
        "IO": tokens.index(f" {prompt.indirect_object}"),
        "S1": s1,
        "S1+1": s1 + 1,
        "S2": s2,
        "END": len(tokens) - 1,
    }

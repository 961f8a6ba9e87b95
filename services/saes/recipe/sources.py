"""The texts the recipe trains on: Debian packages and one PyPI wheel whose licences let excerpts be republished.

FOLDOC is left out although its licence would do: it repeats the Jargon File, so held-out entries would not be unseen.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from services.saes.recipe import readers
from services.saes.recipe.readers import Document

Archive = Literal["debian", "pypi"]


@dataclass(frozen=True)
class Source:
    """One body of text. `tokens` caps what is taken from it; about 1/24 more of it is held out."""

    name: str
    archive: Archive
    packages: tuple[str, ...]
    licence: str
    attribution: str
    public_domain: bool
    tokens: int
    read: Callable[[Path], Iterator[Document]]


_WESNOTH = ("dm", "did", "dw", "ei", "httt", "l", "low", "nr", "sof", "thot", "trow", "utbs")

SOURCES = (
    Source(
        name="wikipedia",
        archive="pypi",
        packages=("gensim==4.3.3",),
        licence="CC-BY-SA-3.0",
        attribution="English Wikipedia contributors, a sample of 2016 in the test data of gensim",
        public_domain=False,
        tokens=620_000,
        read=readers.wikipedia,
    ),
    Source(
        name="anarchist-faq",
        archive="debian",
        packages=("anarchism",),
        licence="GPL-2.0-only",
        attribution="An Anarchist FAQ, the Anarchist FAQ Editorial Collective, 1995-2017",
        public_domain=False,
        tokens=400_000,
        read=readers.anarchist_faq,
    ),
    Source(
        name="austen",
        archive="debian",
        packages=("r-cran-janeaustenr",),
        licence="public domain (collection: MIT)",
        attribution="Jane Austen's six novels, as collected in the R package janeaustenr by Julia Silge",
        public_domain=True,
        tokens=380_000,
        read=readers.austen,
    ),
    Source(
        name="wesnoth",
        archive="debian",
        packages=tuple(f"wesnoth-1.16-{campaign}" for campaign in _WESNOTH),
        licence="GPL-2.0-or-later",
        attribution="Dialogue of the campaigns of The Battle for Wesnoth, David White and contributors",
        public_domain=False,
        tokens=280_000,
        read=readers.wesnoth,
    ),
    Source(
        name="debian-handbook",
        archive="debian",
        packages=("debian-handbook",),
        licence="CC-BY-SA-3.0 or GPL-2.0-or-later",
        attribution="The Debian Administrator's Handbook, Raphaël Hertzog and Roland Mas",
        public_domain=False,
        tokens=150_000,
        read=readers.debian_handbook,
    ),
    Source(
        name="jargon-file",
        archive="debian",
        packages=("dict-jargon",),
        licence="public domain",
        attribution="The on-line hacker Jargon File, version 4.4.7, 29 Dec 2003",
        public_domain=True,
        tokens=200_000,
        read=readers.jargon_file,
    ),
    Source(
        name="python-manual",
        archive="debian",
        packages=("python3.11-doc",),
        licence="PSF-2.0",
        attribution="The Python manual, Python Software Foundation",
        public_domain=False,
        tokens=110_000,
        read=readers.python_manual,
    ),
)

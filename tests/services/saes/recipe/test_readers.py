"""Each reader on a package folder written by hand."""

import bz2
import gzip
import struct
import zlib
from pathlib import Path

import pytest

from services.saes.recipe import readers


def _write(root: Path, path: str, content: bytes) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(content)


def test_wikipedia_articles_lose_their_markup(tmp_path: Path) -> None:
    filler = "Plain words follow. " * 100
    wikitext = (
        "{{Infobox|a={{nested}}}}\n[[File:x.svg|thumb|A [[caption]] of it]]\n"
        "'''Albedo''' is the [[diffuse reflection|reflectivity]] of a [[surface]].&lt;ref name=a&gt;gone&lt;/ref&gt;\n"
        f"{{| class=x\n| cell\n|}}\n==Use==\n* a list\n{filler}\n==References==\ngone too"
    )
    page = f"<page><title>Albedo &amp; co</title><ns>0</ns><text xml:space='preserve'>{wikitext}</text></page>"
    stub = "<page><title>Stub</title><ns>0</ns><text>#REDIRECT [[Albedo]]</text></page>"
    _write(tmp_path, "t/enwiki-latest-pages-articles1.xml-p1-shortened.bz2", bz2.compress((page + stub).encode()))
    (article,) = readers.wikipedia(tmp_path)
    assert article.name == "Albedo & co"
    assert article.text == f"Albedo is the reflectivity of a surface.\n\nUse\n\n{filler.strip()}"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Rdata\.rdb"):
        list(readers.austen(tmp_path))


def test_anarchist_faq_paragraphs_are_unwrapped_and_plain(tmp_path: Path) -> None:
    markdown = b'# A.1 What?\n\n_"Order"_ is **not**\nchaos; see [section B](b.html) _mutualism_ , snake_case.\n'
    _write(tmp_path, "usr/share/doc/anarchism/markdown/secA1.md.gz", gzip.compress(markdown))
    (section,) = readers.anarchist_faq(tmp_path)
    assert section.name == "secA1"
    assert section.text == 'A.1 What?\n\n"Order" is not chaos; see section B mutualism, snake_case.'


def test_novels_are_read_from_serialised_r_strings(tmp_path: Path) -> None:
    def record(*lines: str) -> bytes:
        strings = b"".join(struct.pack(">ii", 0x00040009, len(line)) + line.encode() for line in lines)
        plain = b"X\n\0\0\0\3\0\4\2\1\0\3\5\0\0\0\0\5UTF-8" + struct.pack(">ii", 16, len(lines)) + strings
        return struct.pack(">I", len(plain)) + zlib.compress(plain)

    _write(tmp_path, "data/Rdata.rdb", record("EMMA", "", "Handsome,", "clever.") + record("PERSUASION", "", "_Sir_."))
    emma, persuasion = readers.austen(tmp_path)
    assert (emma.name, emma.text) == ("Emma", "EMMA\n\nHandsome, clever.")
    assert (persuasion.name, persuasion.text) == ("Persuasion", "PERSUASION\n\nSir.")


def test_a_campaign_is_what_its_characters_say(tmp_path: Path) -> None:
    scenario = (
        b'[part]\nstory=_"It <i>began</i>."\n[/part]\nname= _ "Not said"\nmessage= _ "He said ""no"" to {X}me."\n'
    )
    _write(tmp_path, "usr/share/games/wesnoth/1.16/data/campaigns/Dead_Water/scenarios/01.cfg", scenario)
    (campaign,) = readers.wesnoth(tmp_path)
    assert (campaign.name, campaign.text) == ("Dead Water", 'It began.\n\nHe said "no" to me.')


def test_handbook_pages_are_their_paragraphs(tmp_path: Path) -> None:
    words = "All about packages. " * 100
    page = f'<div class="toc">Menu</div><div class="para">First <b>bold</b>\n one.</div><p>{words}</p><pre>code</pre>'
    _write(tmp_path, "usr/share/doc/debian-handbook/html/en-US/apt.html", page.encode())
    (document,) = readers.debian_handbook(tmp_path)
    assert (document.name, document.text) == ("apt", f"First bold one.\n\n{words.strip()}")


def test_dictionary_entries_are_joined_into_documents(tmp_path: Path) -> None:
    entries = "00-database-url\n  about\nfoo n.\n\n    A {metasyntactic\n    variable}.\n\nbar n.\n\n    Another.\n\n"
    _write(tmp_path, "usr/share/dictd/jargon.dict.dz", gzip.compress(entries.encode()))
    (document,) = readers.jargon_file(tmp_path, document_chars=40)
    assert (document.name, document.text) == (
        "foo n.",
        "foo n.\n\nA metasyntactic variable.\n\nbar n.\n\nAnother.",
    )


def test_the_python_manual_loses_its_directives(tmp_path: Path) -> None:
    words = "A sentence about lists. " * 100
    text = f"Lists\n=====\n\n.. index:: list\n\nSee :func:`~copy.copy` and :ref:`the guide <guide>`: ``x``.\n\n{words}"
    _write(tmp_path, "usr/share/doc/python3.11/html/_sources/tutorial/lists.rst.txt", text.encode())
    (document,) = readers.python_manual(tmp_path)
    assert document.name == "tutorial/lists"
    assert document.text.split("\n\n")[1] == "See copy.copy and the guide: `x`."

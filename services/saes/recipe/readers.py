"""From an unpacked package to documents of plain English text, one function per source."""

import bz2
import gzip
import html
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path


@dataclass(frozen=True)
class Document:
    """The unit that is either trained on or held out, never both: an article, a novel, a campaign."""

    name: str
    text: str


def _only(root: Path, pattern: str) -> Path:
    found = sorted(root.rglob(pattern))
    if len(found) != 1:
        raise FileNotFoundError(
            f"expected one {pattern} under {root.name}, found {len(found)}: has the package changed?"
        )
    return found[0]


def _unwrap(text: str) -> str:
    """Joins hard-wrapped lines into paragraphs separated by one blank line."""
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip())


def _without_emphasis(text: str) -> str:
    """Drops the asterisks and underscores that mark emphasis, keeping those inside words."""
    return re.sub(r"(?<!\w)[*_]+|[*_]+(?!\w)", "", text)


def wikipedia(root: Path) -> Iterator[Document]:
    """Articles of a MediaWiki dump, stripped of markup; redirects and stubs are left out."""
    dump = bz2.decompress(_only(root, "enwiki-latest-pages-articles1*-shortened.bz2").read_bytes()).decode("utf-8")
    for page in re.findall(r"<page>(.*?)</page>", dump, re.DOTALL):
        title = re.search(r"<title>(.*?)</title>", page)
        body = re.search(r"<text[^>]*>(.*?)</text>", page, re.DOTALL)
        if title and body and "<ns>0</ns>" in page:
            text = _plain_wikitext(html.unescape(body[1]))
            if len(text) > 1500:
                yield Document(html.unescape(title[1]), text)


def _plain_wikitext(text: str) -> str:
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<ref[^>]*/>", "", text)
    text = re.sub(r"<(ref|math|gallery|timeline|code|source|table)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = _innermost_first(r"\{\{[^{}]*\}\}", text)
    text = _innermost_first(r"\{\|(?:(?!\{\|).)*?\|\}", text)
    text = _innermost_first(
        r"\[\[(?:File|Image|Category):[^\[\]]*\]\]",
        re.sub(r"\[\[(?!File:|Image:|Category:)(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", text),
    )
    text = re.sub(r"\[https?://\S+\s*([^\]]*)\]", r"\1", text)
    text = re.sub(r"<[^>]+>", "", html.unescape(text))
    text = text.replace("'''", "").replace("''", "")
    text = re.split(
        r"\n==\s*(?:See also|References|Notes|External links|Further reading|Bibliography|Sources)\s*==", text
    )[0]
    lines = (line for line in text.splitlines() if not re.match(r"[|!{}*#:;]", line.strip()))
    text = "\n".join(re.sub(r"^=+\s*(.*?)\s*=+$", r"\n\1\n", line) for line in lines)
    text = re.sub(r"\(\s*[;,]?\s*\)", "", text)
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n"))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _innermost_first(pattern: str, text: str) -> str:
    """Deletes nested constructs from the inside out."""
    compiled = re.compile(pattern, re.DOTALL)
    for _ in range(8):
        text, count = compiled.subn("", text)
        if count == 0:
            break
    return text


def anarchist_faq(root: Path) -> Iterator[Document]:
    """The sections of the FAQ, from Markdown."""
    for path in sorted((root / "usr/share/doc/anarchism/markdown").glob("sec*.md*")):
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
        text = re.sub(r"(?m)^[#>]+\s*", "", text).replace("\\", "")
        yield Document(path.name.split(".")[0], re.sub(r" +([,.;:])", r"\1", _unwrap(_without_emphasis(text))))


def austen(root: Path) -> Iterator[Document]:
    """The six novels, from R's lazy-load database: (length, zlib stream) records of serialised string vectors."""
    data = _only(root, "Rdata.rdb").read_bytes()
    while data:
        stream = zlib.decompressobj()
        record = stream.decompress(data[4:])
        data = stream.unused_data
        lines = _r_strings(record)
        yield Document(lines[0].title(), _unwrap(_without_emphasis("\n".join(lines))))


def _r_strings(record: bytes) -> list[str]:
    """The character vector of an XDR-serialised R object (type 16 of type-9 strings)."""
    start = record.index(b"\x00\x00\x00\x10") + 4
    (count,) = struct.unpack_from(">i", record, start)
    offset, lines = start + 4, []
    for _ in range(count):
        (length,) = struct.unpack_from(">i", record, offset + 4)
        offset += 8
        lines.append(record[offset : offset + max(length, 0)].decode("utf-8"))
        offset += max(length, 0)
    return lines


def wesnoth(root: Path) -> Iterator[Document]:
    """One document per campaign: its story and what its characters say, in the order of the scenarios."""
    campaign = next((root / "usr/share/games/wesnoth/1.16/data/campaigns").iterdir())
    spoken = re.compile(r'(?:message|story)\s*=[^"\n]*_\s*"((?:[^"]|"")*)"')
    scenarios = [path.read_text(encoding="utf-8") for path in sorted(campaign.rglob("scenarios/**/*.cfg"))]
    lines = [line.replace('""', '"') for scenario in scenarios for line in spoken.findall(scenario)]
    said = [" ".join(re.sub(r"<[^>]*>|\{[^}]*\}", "", line).split()) for line in lines]
    yield Document(campaign.name.replace("_", " "), "\n\n".join(line for line in said if line))


def debian_handbook(root: Path) -> Iterator[Document]:
    """The pages of the handbook, from HTML."""
    for path in sorted((root / "usr/share/doc/debian-handbook/html/en-US").glob("*.html")):
        text = _paragraphs(path.read_text(encoding="utf-8"))
        if len(text) > 1500:
            yield Document(path.stem, text)


class _ParagraphParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self._open = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "p" or (tag == "div" and ("class", "para") in attrs):
            self._open += 1
            self.paragraphs.append("")
        elif tag == "div" and self._open:
            self._open += 1

    def handle_endtag(self, tag: str) -> None:
        if tag in ("p", "div") and self._open:
            self._open -= 1

    def handle_data(self, data: str) -> None:
        if self._open:
            self.paragraphs[-1] += data


def _paragraphs(page: str) -> str:
    parser = _ParagraphParser()
    parser.feed(page)
    return "\n\n".join(" ".join(text.split()) for text in parser.paragraphs if text.strip())


def jargon_file(root: Path, document_chars: int = 8000) -> Iterator[Document]:
    """Dictionary entries begin at the left margin; consecutive ones are joined into documents of a readable length."""
    text = gzip.decompress(_only(root, "jargon.dict.dz").read_bytes()).decode("utf-8")
    text = re.sub(r"\{\s*([^{}]+?)\s*\}", r"\1", text).strip()
    entries: list[str] = []
    for entry in re.split(r"\n(?=\S)", text):
        if not entry.startswith("00-database"):
            entries.append(_unwrap(entry))
        if sum(map(len, entries)) > document_chars:
            yield Document(entries[0].split("\n")[0], "\n\n".join(entries))
            entries = []


def python_manual(root: Path) -> Iterator[Document]:
    """The tutorial, how-tos, FAQ and library reference, from reStructuredText without its directives."""
    sources = root / "usr/share/doc/python3.11/html/_sources"
    for path in sorted(
        path for part in ("tutorial", "howto", "faq", "library") for path in (sources / part).glob("*.txt")
    ):
        text = re.sub(r"(?m)^\s*(?:\.\. .*|:[\w-]+:.*|[=~\-^*#\"']{3,})$", "", path.read_text(encoding="utf-8"))
        text = re.sub(r":[\w:]+:`[!~]?([^`<]*?)(?:\s*<[^`]*>)?`", r"\1", text).replace("``", "`").replace("**", "")
        text = re.sub(r"[ \t]+\n", "\n", re.sub(r"\n{3,}", "\n\n", text)).strip()
        if len(text) > 1500:
            yield Document(f"{path.parent.name}/{path.name.split('.')[0]}", text)

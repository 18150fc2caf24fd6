"""Find what prose claims, numbers and comparisons, sentence by sentence, and check that something supports it.

A number counts as computed if it appears in the text output of a cell above, at the precision of the prose or a finer
one, or in the code of a cell above, or if its sentence rests on a committed table that has it. References to a section,
an equation, another tutorial or a year are not claims.
"""

# Prose has typographic signs.
# ruff: noqa: RUF001

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from nbformat import NotebookNode

_CITED = (
    "sections? figures? tables? equations? eqs?\\.? tutorials? steps? layers? exercises? versions? chapters? appendix"
)
_ONE = r"\(?\d+(?:\.\d+)*\)?"
_BLOCKS = (r"<details>.*?</details>", r"^(```+|~~~+).*?^\1", r"\$\$.+?\$\$", r"^ *#+ [^\n]*$")
"""Parts that are no sentences."""
NO_CLAIMS = [
    re.compile(pattern, re.DOTALL | re.MULTILINE | re.IGNORECASE)
    for pattern in (
        *_BLOCKS,
        r"(`+)(?!`).+?(?<!`)\1(?!`)",
        r"\$[^$\n]+(?:\n[^$\n]+)*\$",
        r"\[[^\[\]]*\]\([^()\s]*\.ipynb\)",  # another tutorial
        r"(?<=\])\([^()\s]*\)",  # a link's target
        r"https?://\S+",
        r"<[^<>]+>",
        r"\*\*Takes\*\*[^.\n]*",
        r"(?<=\()(?:19|20)\d\d[a-z]?(?=\))|(?<=et al\. )(?:19|20)\d\d|(?<=, )(?:19|20)\d\d(?=\))",
        r"\b\d{4}\.\d{4,5}(?:v\d+)?\b",  # arXiv
        rf"\b(?:{'|'.join(_CITED.split())})\s+{_ONE}(?:(?:,| and| or| to|,? *[–-]) *{_ONE})*(?!\d|[.,]\d)",
        r"^ *\d+[.)] ",
        r"\b95 ?% (?:t )?intervals?\b",
        r"\b\d+\.\d+\.\d+\b",  # a version
    )
]
_NUMBER = re.compile(
    r"(?<![\w.,])(?<![A-Za-z]-)"  # L1, reviews-4l and GPT-2 are names
    r"(?P<sign>(?<![\w)\]])[-−])?"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?P<decimals>\.\d+)?(?P<exponent>e[-+]?\d+)?"
    r"(?P<percent> ?%| per ?cent\b)?",
)


class Number(NamedTuple):
    """A number as written in the text."""

    text: str
    value: float
    """A fraction, if a percent sign follows."""
    unit: float
    """Unit of the last digit: 0.01 for 0.85, and for 85 %."""

    def says(self, other: "Number") -> bool:
        """Whether ``other``, rounded like this one, equals it; a less precise ``other`` never does."""
        return other.unit <= self.unit * 1.001 and abs(self.value - other.value) <= self.unit * 0.5001


def numbers(text: str) -> Iterator[Number]:
    """All numbers of a text that are not part of a word."""
    for match in _NUMBER.finditer(text):
        decimals = match["decimals"] or ""
        exponent = int((match["exponent"] or "e0")[1:]) - (2 if match["percent"] else 0)
        value = float(match["digits"].replace(",", "") + decimals) * 10.0**exponent
        yield Number(
            match[0].strip(), -value if match["sign"] else value, 10.0 ** (exponent - max(len(decimals) - 1, 0))
        )


def claims(markdown: str) -> list[Number]:
    """The numbers of prose, without those in code, mathematics, links, headings, solutions and references."""
    return list(numbers(_claiming(markdown)))


def unsupported(markdown: str, support: Sequence[Number]) -> list[Number]:
    """The claims that no number of ``support`` says."""
    return [claim for claim in claims(markdown) if not any(claim.says(number) for number in support)]


def _claiming(markdown: str) -> str:
    """``markdown`` with a gap in place of whatever claims nothing."""
    for pattern in NO_CLAIMS:
        markdown = pattern.sub(" … ", markdown)
    return markdown


def numbers_in_code(source: str) -> Iterator[Number]:
    """The numbers in a cell's code; they are exact, so their unit is zero."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            assert isinstance(node.value, int | float)
            yield Number(str(node.value), float(node.value), 0.0)


def text_of(cell: NotebookNode) -> str:
    """A cell's output, as text."""
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


def numbers_shown(cell: NotebookNode) -> list[Number]:
    """The numbers in a code cell's output and in its code."""
    return [*numbers(text_of(cell)), *numbers_in_code(cell.source)]


_NO_PROSE = [
    re.compile(pattern, re.DOTALL | re.MULTILINE) for pattern in (r"<(?:picture|!--).*?(?:</picture>|-->)", *_BLOCKS)
]
_ENDS = re.compile(
    r"\n\s*\n|\n(?=\s*(?:[-|*]|\d+\.) )|(?<=[.!?])(?<!^\d\.)(?<!^ \d\.)(?<!^  \d\.)[*_)\"”]*\s+(?=[A-Z(*$`\"“\[])",
    re.MULTILINE,
)
_COMPARES = re.compile(
    r"\b(?:more|less|fewer|least|most|better|worse|best|worst|higher|lower|highest|lowest|larger|largest|smaller|smallest|"
    r"greater|greatest|longer|shorter|stronger|strongest|weaker|weakest|nearer|nearest|closer|closest|further|furthest|"
    r"sooner|milder|faster|slower|fastest|slowest|narrower|wider|rarer|easier|harder|than|equal(?:ly)?|the same|alike|"
    r"twice|double|half|nearly|hardly|almost|rises?|falls?|grows?|gains?|loses?|beats?|exceeds?|"
    r"as (?:well|much|many|good))\b",
    re.IGNORECASE,
)


def plain(text: str) -> str:
    """``text`` in one line, without emphasis."""
    return re.sub(r"\s+", " ", re.sub(r"\*+|(?<!\w)_|_(?!\w)", "", text)).strip(" -|")


def sentences(markdown: str) -> list[str]:
    """Sentences, list items and rows of tables, as they are written."""
    for pattern in _NO_PROSE:
        markdown = pattern.sub("\n\n", markdown)
    return [part for part in _ENDS.split(markdown) if plain(part)]


def compares(sentence: str) -> bool:
    """Whether it states a comparison; a question, or an expression in code or mathematics, does not."""
    claiming = _claiming(sentence)
    return not claiming.rstrip('*_)"” \n').endswith("?") and _COMPARES.search(claiming) is not None


def uncomputed(cells: Sequence[NotebookNode], tabled: Callable[[str], Sequence[Number]] = lambda _: ()) -> list[str]:
    """The numbers of a notebook's prose that no cell above computes, each with its sentence.

    ``tabled`` gives the numbers of the tables that a sentence rests on.
    """
    known: list[Number] = []
    found = []
    for cell in cells:
        if cell.cell_type == "code":
            known += numbers_shown(cell)
        elif cell.cell_type == "markdown":
            for sentence in sentences(cell.source):
                bare = unsupported(sentence, [*known, *tabled(sentence)])
                found += [f"{claim.text} in {plain(sentence)!r}" for claim in bare]
    return found

"""Every number and comparison in the tutorials, and every result in the README, rests on something that is shown."""

import re
import sys
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "experiments"))
from claims import fingerprint, over_seeds  # type: ignore[import-not-found]
from prose_numbers import (  # type: ignore[import-not-found]
    claims,
    compares,
    numbers_shown,
    plain,
    sentences,
    text_of,
    uncomputed,
    unsupported,
)
from supports import (  # type: ignore[import-not-found]
    claims_of,
    holds,
    holds_in_every_seed,
    numbers_of,
    supports,
    table,
    unmeasured,
)

ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / "tutorials").glob("*.ipynb"))
README_SECTIONS = ("How fast, and how good", "What gating buys")
EVERY_SEED = ("each of five seeds", "in each seed", "5 of 5 seeds")
TUTORIALS_WITH_CLAIMS = [path for path in PATHS if path.stem in supports()]

each_tutorial = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
each_with_claims = pytest.mark.parametrize("path", TUTORIALS_WITH_CLAIMS, ids=lambda path: path.stem)


def prose_of(path: Path) -> list[str]:
    cells = nbformat.read(path, as_version=4).cells
    return [plain(one) for cell in cells if cell.cell_type == "markdown" for one in sentences(cell.source)]


def results_in_readme() -> list[str]:
    """Sentences of the sections on speed and on what gating buys, without the picture's description."""
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", (ROOT / "README.md").read_text(encoding="utf-8"))
    sections = [text.split(f"## {title}\n")[1].split("\n## ")[0] for title in README_SECTIONS]
    return [sentence for section in sections for sentence in sentences(section)]


@each_tutorial
def test_every_number_in_prose_is_computed_in_a_cell_above_or_in_the_table_of_claims(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert uncomputed(cells, lambda sentence: numbers_of(path.stem, plain(sentence))) == []


@each_tutorial
def test_every_comparison_in_prose_rests_on_a_measured_claim_on_a_cell_above_or_on_reasoning(path: Path) -> None:
    listed = unmeasured().get(path.stem, {})
    printed, known, bare = "", [], []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            printed += text_of(cell)
            known += numbers_shown(cell)
            continue
        for sentence in filter(compares, sentences(cell.source)):
            said = plain(sentence)
            rests_on_numbers = claims(sentence) and not unsupported(sentence, known)
            shown = [text for start, text in listed.get("shown", ()) if said.startswith(start)]
            assert all(text in printed for text in shown), f"no output above has {shown}, for {said!r}"
            reasoned = any(said.startswith(start) for start in listed.get("reasoned", ()))
            if not (rests_on_numbers or shown or reasoned or claims_of(path.stem, said)):
                bare.append(said)
    assert bare == [], "let a claim of docs/experiments/claims.toml support it, or list it in unmeasured.toml"


@each_tutorial
def test_every_sentence_that_is_listed_as_unmeasured_stands_in_the_tutorial(path: Path) -> None:
    prose, listed = prose_of(path), unmeasured().get(path.stem, {})
    starts = [*listed.get("reasoned", ()), *(start for start, _ in listed.get("shown", ()))]
    assert [start for start in starts if not any(said.startswith(start) for said in prose)] == []


@each_with_claims
def test_every_claim_is_one_sentence_and_holds_over_five_seeds(path: Path) -> None:
    prose = prose_of(path)
    for claim in supports()[path.stem]["claims"]:
        said = [sentence for sentence in prose if plain(claim["says"]) in sentence]
        assert len(said) == 1, f"{len(said)} sentences say {claim['says']!r}"
        assert holds(path.stem, claim), claim
        if any(words in said[0] for words in EVERY_SEED):
            assert holds_in_every_seed(path.stem, claim), claim


@each_with_claims
def test_the_claims_were_measured_with_the_code_that_the_tutorial_has(path: Path) -> None:
    rows = table("claims.csv")
    assert set(rows[rows.tutorial == path.stem].code) == {fingerprint(path.stem)}, "run `make claims`"


def test_the_table_of_claims_has_a_row_for_each_measure_with_five_seeds_and_no_other() -> None:
    wanted = {(name, claim["measure"]) for name, of in supports().items() if name != "README" for claim in of["claims"]}
    rows = table("claims.csv")
    assert sorted(zip(rows.tutorial, rows.measure, strict=True)) == sorted(wanted), "run `make claims`"
    assert all(len(over_seeds(row)) == 5 for _, row in rows.iterrows())


def test_every_result_in_the_readme_stands_in_a_committed_table() -> None:
    said = results_in_readme()
    for claim in supports()["README"]["claims"]:
        assert any(plain(claim["says"]) in plain(sentence) for sentence in said), claim["says"]
    reasoned = unmeasured()["README"]["reasoned"]
    for sentence in said:
        support = numbers_of("README", plain(sentence))
        assert unsupported(sentence, support) == [], sentence
        rests = support or any(plain(sentence).startswith(start) for start in reasoned)
        assert rests or not compares(sentence), sentence

"""The check of the tutorials' numbers finds wrong numbers, and accepts what is not a claim."""

# Prose has typographic signs.
# ruff: noqa: RUF001

import sys
from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from prose_numbers import claims, compares, numbers, plain, sentences, uncomputed  # type: ignore[import-not-found]


def texts(markdown: str) -> list[str]:
    return [number.text for number in claims(markdown)]


@pytest.mark.parametrize(
    ("prose", "found"),
    [
        ("It falls from 0.85 to 0.64, by 25 %.", ["0.85", "0.64", "25 %"]),
        ("Of 3,686 reviews 12.5% are left; −0.3 in the mean.", ["3,686", "12.5%", "−0.3"]),
        ("Between 3 and 5-fold, 3–5 of them (7).", ["3", "5", "3", "5", "7"]),
        ("A list 1, 2, 3: in section 5.1 it is 12.", ["1", "2", "3", "12"]),
        ("**Takes** 10 minutes. **Needs** 8 GB.", ["8"]),
        ("In 2024 there were 2024 of them.", ["2024", "2024"]),
        ("After step 200 of 300, 1e-3 is left.", ["300", "1e-3"]),
        ("| L0 | 63.1 |\n|---|---|", ["63.1"]),
    ],
)
def test_numbers_in_prose_are_claims(prose: str, found: list[str]) -> None:
    assert texts(prose) == found


@pytest.mark.parametrize(
    "prose",
    [
        "# 02 · Shrinkage\n## 3 · The lab",
        "Set `l1 = 8`, or ``a ` 3``.",
        "Here $x = 3$ and $$\n\\gamma = \\tfrac{1}{2}\n$$ hold, as $a +\n2$ does.",
        "```python\nx = 3\n```",
        "<details><summary>Solution</summary>\n\n```python\nx = 3\n```\n\nIt is 3.\n</details>",
        '<img width="300"> and <kbd>2</kbd>'.replace(">2<", ">two<"),
        "[the paper](https://arxiv.org/abs/2404.16014), arXiv 2404.16014v2, https://example.org/7",
        "Bricken et al. (2023); Elhage et al. 2022; (Rajamanoharan et al., 2024)",
        "see section 5.1, figure 6, figures 1 and 6, equation (10), eq. 6-8, tutorials 02, 03 and 04, Tutorial 07",
        "[02 · Shrinkage](02_shrinkage.ipynb) and [05](05_language_model.ipynb)",
        "step 2, layer 1, layers 0 to 3, version 1, table 3",
        "1. first\n2. second\n   3) third",
        "L1, L0, reviews-4l, GPT-2, R2D2, x86_64",
        "**Takes** 10 minutes, 12 with the exercises.",
        "Bands are 95 % intervals, the 95% interval",
    ],
)
def test_references_code_and_mathematics_are_no_claims(prose: str) -> None:
    assert texts(prose) == []


def notebook(code: str, output: str, prose: str) -> list[nbformat.NotebookNode]:
    cell = nbformat.v4.new_code_cell(code, outputs=[nbformat.v4.new_output("stream", name="stdout", text=output)])
    return [cell, nbformat.v4.new_markdown_cell(prose)]


@pytest.mark.parametrize(
    ("prose", "output"),
    [
        ("0.85", "gamma 0.8497"),
        ("9 %", "0.0889"),
        ("0.09", "it is 9%"),
        ("3,686", "3686 reviews"),
        ("3686", "3,686"),
        ("−0.3", "-0.31"),
        ("64", "63.9"),
        ("12.5 per cent", "12.5%"),
        ("0.5", "a shape of (2, 0.5)"),
    ],
)
def test_what_a_cell_above_put_out_is_computed(prose: str, output: str) -> None:
    assert uncomputed(notebook("pass", output, prose)) == []


@pytest.mark.parametrize(
    ("prose", "output"),
    [
        ("0.85", "0.86"),
        ("0.850", "0.85"),
        ("9 %", "9"),
        ("9", "9%"),
        ("3,686", "3,687"),
        ("0.3", "-0.3"),
        ("−0.3", "0.3"),
        ("64", "L64"),
        ("64", "65.6"),
        ("1.5", ""),
    ],
)
def test_what_no_cell_above_put_out_is_not_computed(prose: str, output: str) -> None:
    (missing,) = uncomputed(notebook("pass", output, f"There it is: {prose}"))
    assert missing.startswith(prose)


def test_code_above_counts_and_code_below_does_not() -> None:
    cells = notebook("x = [1_024, 0.5, 3e-4]  # 77", "", "1,024 of them, 0.50, 0.0003")
    assert uncomputed(cells) == []
    assert len(uncomputed(cells[::-1])) == 3
    assert len(uncomputed(notebook("x = '77'  # 77", "", "77"))) == 1


@given(st.floats(-1e6, 1e6), st.integers(0, 4), st.integers(0, 3), st.sampled_from(["", "%"]))
def test_a_number_is_found_at_any_finer_precision_and_not_beside_it(
    value: float, decimals: int, finer: int, sign: str
) -> None:
    written, printed = f"{value:,.{decimals}f}{sign}", f"{value:.{decimals + finer}f}{sign}"
    assert uncomputed(notebook("pass", f"= {printed}", f"is {written} here")) == []
    beside = f"{float(f'{value:.{decimals}f}') + 2 * 10.0**-decimals:.{decimals}f}{sign}"
    assert len(uncomputed(notebook("pass", f"= {beside}", f"is {written} here"))) == 1


@given(st.floats(-1e9, 1e9), st.integers(0, 6))
def test_a_number_is_read_as_python_reads_it(value: float, decimals: int) -> None:
    (plain,), (grouped,) = (list(numbers(f"a {value:{style}.{decimals}f}.")) for style in ("", ","))
    assert plain.value == grouped.value == float(f"{value:.{decimals}f}")


def test_prose_is_taken_apart_into_sentences_list_items_and_rows_without_code_and_solutions() -> None:
    markdown = """# A heading that is more than it says

It *rises* to 0.93. The rest falls.

- One item
  over two lines
1. Another

| a | b |
| c | d |

<details><summary>Solution</summary>It is more.</details>

```python
more = 3.
```
"""
    assert [plain(one) for one in sentences(markdown)] == [
        "It rises to 0.93.",
        "The rest falls.",
        "One item over two lines",
        "1. Another",
        "a | b",
        "c | d",
    ]


@pytest.mark.parametrize(
    "said", ["L0 falls.", "It is *better* so.", "As much as before", "Nearly all", "twice as wide"]
)
def test_a_sentence_with_a_comparison_is_noticed(said: str) -> None:
    assert compares(said)


@pytest.mark.parametrize(
    "said", ["Is it better?", "Set `more`.", "Here $x$ is small.", "**Which is more?**", "It is on."]
)
def test_a_question_and_code_compare_nothing(said: str) -> None:
    assert not compares(said)


def test_a_number_that_a_table_has_supports_its_own_sentence_alone() -> None:
    cells = [nbformat.v4.new_markdown_cell("Over seeds it is 0.5. Elsewhere it is 0.5.")]
    (bare,) = uncomputed(cells, lambda sentence: [*numbers("0.500")] if "seeds" in sentence else [])
    assert bare == "0.5 in 'Elsewhere it is 0.5.'"

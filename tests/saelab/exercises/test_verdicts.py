"""What a learner is told, whatever the exercise."""

from typing import Any

import pytest
import torch

from saelab.exercises import Verdict
from saelab.exercises.verdicts import Mistake, exercise, expect, expect_choice, expect_gradients


@exercise
def twice(answer: Any) -> None:
    expect("twice 3", answer(torch.tensor(3.0)), 6.0, "add it to itself", [Mistake(9.0, "this is its square")])


def test_a_right_answer_passes_and_says_nothing_more() -> None:
    verdict = twice(lambda x: x + x)
    assert verdict == Verdict("twice", "passed") and verdict.passed
    assert repr(verdict) == "Passed: twice"


def test_a_wrong_answer_is_told_what_was_seen_what_was_expected_and_a_hint_of_its_own() -> None:
    verdict = twice(lambda x: x * x)
    assert (verdict.state, verdict.seen, verdict.expected) == ("failed", "twice 3: 9", "6")
    assert verdict.hint == "this is its square"
    assert twice(lambda x: x).hint == "add it to itself"
    assert repr(verdict) == "Not yet: twice\nseen: twice 3: 9\nexpected: 6\nhint: this is its square"


def test_a_mistake_of_another_shape_than_what_is_right_has_its_hint_too() -> None:
    @exercise
    def total(answer: Any) -> None:
        x = torch.tensor([1.0, 2.0])
        expect("the sum", answer(x), 3.0, "one number", [Mistake([1.0, 2.0], "these are not added up")])

    assert total(lambda x: x.sum()).passed
    verdict = total(lambda x: x)
    assert verdict.hint == "these are not added up" and verdict.expected == "one number"
    assert total(lambda x: x + 1).hint == "one number"


def unwritten(x: object) -> object:
    raise NotImplementedError


@pytest.mark.parametrize("nothing", [None, ..., unwritten, lambda x: ...])
def test_nothing_written_yet_is_open_and_no_exception(nothing: Any) -> None:
    verdict = twice(nothing)
    assert verdict.state == "open" and not verdict.passed
    assert verdict.hint.endswith(" above, and run the cell again")


def test_what_is_still_to_be_given_is_said() -> None:
    def half_written(x: object) -> object:
        raise NotImplementedError("replace each None above")

    assert twice(half_written).hint == "replace each None above, and run the cell again"
    assert twice(unwritten).hint == "write the function above, and run the cell again"


def test_an_exception_of_the_learner_is_shown_with_its_line_and_not_raised() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        return x.no_such_thing  # type: ignore[no-any-return, attr-defined]

    verdict = twice(broken)
    assert verdict.state == "failed" and "AttributeError" in verdict.seen and "x.no_such_thing" in verdict.seen


@pytest.mark.parametrize(
    ("answer", "seen", "hint"),
    [
        (lambda x: None, "None", "return"),
        (lambda x: "six", "six", "numbers"),
        (lambda x: torch.full((2,), 6.0), "shape (2,)", "add it"),
        (lambda x: float("nan"), "NaN", "division by zero"),
    ],
)
def test_what_is_no_number_is_told_apart_from_a_wrong_one(answer: Any, seen: str, hint: str) -> None:
    verdict = twice(answer)
    assert verdict.state == "failed" and seen in verdict.seen and hint in verdict.hint


def test_a_prediction_in_words_has_a_hint_for_each_wrong_option() -> None:
    @exercise
    def rises(answer: str) -> None:
        expect_choice(answer, "falls", {"rises": "look at the left end", "stays": "drag further"})

    assert rises(" Falls ").passed
    assert rises("rises").hint == "look at the left end" and rises("stays").hint == "drag further"
    assert "'falls', 'rises', 'stays'" in rises("up").expected
    assert "falls" not in rises("rises").expected, "the hint is no solution"
    assert rises("").state == "failed"


@pytest.mark.parametrize(
    ("answer", "seen", "hint"),
    [
        (lambda a, b: a * b.detach(), "gradient of the product with respect to b: 0", "b is detached"),
        (lambda a, b: a.detach() * b, "gradient of the product with respect to a: 0", "both factors learn"),
        (lambda a, b: a.detach() * b.detach(), "gradient of the product: none", "both factors learn"),
        (lambda a, b: 6.0, "gradient of the product: none", "both factors learn"),
    ],
)
def test_gradients_are_compared_tensor_by_tensor(answer: Any, seen: str, hint: str) -> None:
    @exercise
    def product(answer: Any) -> None:
        a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
        mistakes = [Mistake(a * b.detach(), "b is detached")]
        expect_gradients("the product", answer(a, b), {"a": a, "b": b}, a * b, "both factors learn", mistakes)

    assert product(lambda a, b: b * a).passed
    verdict = product(answer)
    assert (verdict.seen, verdict.hint) == (seen, hint)


def test_answers_show_as_text_never_as_markup() -> None:
    verdict = Verdict("x", "failed", seen="<b>bold</b>", expected="1", hint="& so on")
    assert "<b>bold</b>" not in verdict._repr_html_() and "&lt;b&gt;bold" in verdict._repr_html_()


def test_no_class_of_the_learners_own_decides_what_is_equal() -> None:
    class Always(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return torch.tensor(6.0, dtype=torch.float64) if func is torch.Tensor.double else cls([6.0])

    class Anything(str):
        def lower(self) -> "Anything":
            return self

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = str.__hash__

    @exercise
    def falls(answer: str) -> None:
        expect_choice(answer, "falls", {"rises": "look at the left end"})

    assert twice(lambda x: torch.tensor([1.0]).as_subclass(Always)).state == "failed"
    assert twice(lambda x: torch.nn.Parameter(x + x)).passed
    assert falls(Anything("rises")).state == "failed"

"""Tools that all checks share: compare an answer on a case, recognise usual mistakes, and report a verdict."""

import functools
import html
import math
import textwrap
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor

State = Literal["passed", "failed", "open"]
Answer = TypeVar("Answer")

_HEADS: dict[State, str] = {"passed": "Passed", "failed": "Not yet", "open": "Open"}
_COLORS: dict[State, str] = {"passed": "#009E73", "failed": "#D55E00", "open": "#888888"}


@dataclass(frozen=True)
class Verdict:
    """The result of a check. A notebook shows it if it is the last line of a cell."""

    exercise: str
    """The name of the check."""
    state: State
    """``"open"`` means that nothing has been written yet."""
    seen: str = ""
    expected: str = ""
    hint: str = ""
    """These three are empty if the answer passed; an open exercise has only a hint."""

    @property
    def passed(self) -> bool:
        return self.state == "passed"

    def __repr__(self) -> str:
        head = f"{_HEADS[self.state]}: {self.exercise}"
        return "\n".join(
            [head, *(textwrap.fill(f"{name}: {text}", 100, subsequent_indent="  ") for name, text in self._lines())]
        )

    def _repr_html_(self) -> str:
        rows = "".join(f"<div><i>{name}:</i> {html.escape(text)}</div>" for name, text in self._lines())
        return (
            f'<div style="border-left: 4px solid {_COLORS[self.state]}; padding: 2px 12px">'
            f"<div><b>{_HEADS[self.state]}</b> · {html.escape(self.exercise)}</div>{rows}</div>"
        )

    def _lines(self) -> list[tuple[str, str]]:
        named = [("seen", self.seen), ("expected", self.expected), ("hint", self.hint)]
        return [(name, text) for name, text in named if text]


class Wrong(Exception):
    """A wrong answer, with what was seen, what was expected, and a hint."""

    def __init__(self, seen: str, expected: str, hint: str) -> None:
        super().__init__(f"seen {seen}; expected {expected}; {hint}")
        self.seen, self.expected, self.hint = seen, expected, hint


class Mistake(NamedTuple):
    """A usual mistake: the value it gives on a case, and its hint."""

    gives: Any
    hint: str


def exercise(check: Callable[[Answer], None]) -> Callable[[Answer], Verdict]:
    """Turn a function that raises `Wrong` into a check of the same name that returns a `Verdict`.

    An answer that is None or ``...``, or a function that raises NotImplementedError, is open; a check may raise that
    too, with a message that says what is still missing. Any other exception is reported as what was seen.
    """

    @functools.wraps(check)
    def checked(answer: Answer) -> Verdict:
        return _verdict(check, answer)

    checked.__annotations__["return"] = Verdict
    return checked


def _verdict(check: Callable[[Answer], None], answer: Answer) -> Verdict:
    name = check.__name__
    if answer is None or answer is ...:
        return Verdict(name, "open", hint="give your answer above, and run the cell again")
    try:
        check(answer)
    except Wrong as wrong:
        return Verdict(name, "failed", wrong.seen, wrong.expected, wrong.hint)
    except NotImplementedError as error:
        return Verdict(name, "open", hint=f"{str(error) or 'write the function above'}, and run the cell again")
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        return Verdict(
            name,
            "failed",
            seen=f"your code raised {type(error).__name__}: {error}"
            + (f" (line {frames[-1].lineno}: {frames[-1].line})" if frames and frames[-1].line else ""),
            expected="an answer without an exception",
            hint="call it in a cell of its own to see the whole traceback",
        )
    return Verdict(name, "passed")


def expect(
    what: str,
    seen: Any,
    expected: Any,
    hint: str,
    mistakes: Iterable[Mistake] = (),
    *,
    rtol: float = 1e-3,
    atol: float = 1e-6,
) -> None:
    """Compare numbers with the expected ones; raises `Wrong`, with the hint of the mistake that gives the same numbers.

    Parameters
    ----------
    what
        Names the case for the learner: ``"gamma of x = 1 and r = 1/2"``.
    seen
        The answer's value: a number, a tensor, an array or a list.
    expected, mistakes
        The right value, and the values that usual mistakes give, of any shape. A mistake that gives the right value
        here goes undetected.
    hint
        Hint if no mistake matches.
    """
    right = _numbers(expected)

    def explained(got: Tensor) -> str:
        for mistake in mistakes:
            given = _numbers(mistake.gives)
            if given.shape == got.shape and _close(got, given, rtol, atol):
                return mistake.hint
        return hint

    got = _checked_numbers(what, seen, right, explained)
    if not _close(got, right, rtol, atol):
        wrong(what, got, right, explained(got))


def expect_gradients(
    what: str,
    seen: Any,
    leaves: Mapping[str, Tensor],
    expected: Tensor,
    hint: str,
    mistakes: Iterable[Mistake] = (),
    *,
    rtol: float = 1e-3,
) -> None:
    """Compare the gradients of an answer with the expected ones; raises `Wrong`, naming the first tensor that differs.

    Parameters
    ----------
    what
        Names what is differentiated, such as ``"the loss"``; a tensor of several numbers is summed.
    seen
        The answer's tensor, computed from ``leaves``.
    leaves
        Tensors that require a gradient, by name.
    expected, mistakes
        Tensors computed from the same leaves, correctly and with usual mistakes.
    hint
        Hint if no mistake matches.
    """
    if not isinstance(seen, Tensor) or not seen.requires_grad:
        wrong(f"gradient of {what}", "none", "a tensor through which autograd reaches " + ", ".join(leaves), hint)
    got, right = _gradients(seen, leaves), _gradients(expected, leaves)
    name = next((name for name in leaves if not _close(got[name], right[name], rtol, 1e-6)), None)
    if name is None:
        return
    for mistake in mistakes:
        given = _gradients(mistake.gives, leaves)
        if all(_close(got[leaf], given[leaf], rtol, 1e-6) for leaf in leaves):
            hint = mistake.hint
            break
    wrong(f"gradient of {what} with respect to {name}", got[name], right[name], hint)


def _gradients(output: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradient of each leaf; zeros if none reaches it."""
    found = torch.autograd.grad(output.sum(), list(leaves.values()), retain_graph=True, materialize_grads=True)
    return {name: gradient.cpu().double() for name, gradient in zip(leaves, found, strict=True)}


def wrong(what: str, seen: Any, expected: Any, hint: str) -> NoReturn:
    """Raise `Wrong` with these numbers or texts."""
    raise Wrong(f"{what}: {shown(seen)}", shown(expected), hint)


def expect_choice(answer: str, right: str, others: Mapping[str, str], of: str = "") -> None:
    """Check a prediction in words; raises `Wrong`. ``others`` are the wrong options, each with its hint.

    ``of`` names the prediction if there are several.
    """
    of = of and f"{of}: "
    options = sorted([right, *others])
    given = str.lower(str.strip(answer)) if isinstance(answer, str) else answer  # makes a subclass a plain string
    if given == right:
        return
    if given not in others:
        allowed = f"{of}one of {', '.join(map(repr, options))}"
        raise Wrong(f"{of}{shown(answer)}", allowed, "write one of these, in quotes")
    raise Wrong(f"{of}{given!r}", f"{of}another option", others[given])


def shown(value: Any) -> str:
    """Short text for ``value``: numbers with four digits, and only the first of many."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | Tensor | np.ndarray | np.generic):
        text = repr(value)
        return text if len(text) <= 120 else text[:117] + "..."
    numbers = _numbers(value)
    if numbers.dim() == 0:
        return f"{float(numbers):.4g}"
    if numbers.numel() > 8:
        first = ", ".join(f"{number:.4g}" for number in numbers.flatten()[:4].tolist())
        return f"shape {tuple(numbers.shape)}: {first}, ..."
    return str([f"{number:.4g}" for number in numbers.flatten().tolist()]).replace("'", "")


def _numbers(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        with torch._C.DisableTorchFunctionSubclass():  # keeps the learner's own tensor classes out of comparisons
            return Tensor.as_subclass(value, Tensor).detach().cpu().double()
    return torch.as_tensor(np.asarray(value, dtype=np.float64))


def _checked_numbers(what: str, seen: Any, right: Tensor, explained: Callable[[Tensor], str]) -> Tensor:
    if seen is ...:
        raise NotImplementedError
    if seen is None:
        raise Wrong(f"{what}: None", shown(right), "the function returned nothing; does it end with return?")
    try:
        got = _numbers(seen)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"{what}: {shown(seen)}", shown(right), "return numbers: a float or a tensor") from None
    if got.shape != right.shape:
        raise Wrong(
            f"{what}: shape {tuple(got.shape)}",
            f"shape {tuple(right.shape)}" if right.dim() else "one number",
            explained(got),
        )
    if got.isnan().any() and not right.isnan().any():
        raise Wrong(
            f"{what}: NaN", shown(right), "there is a division by zero, or the root or logarithm of a negative number"
        )
    return got


def _close(a: Tensor, b: Tensor, rtol: float, atol: float) -> bool:
    scale = float(b.abs().max()) if b.numel() and math.isfinite(float(b.abs().max())) else 1.0
    return torch.allclose(a, b, rtol=rtol, atol=max(atol, rtol * 1e-2 * scale), equal_nan=True)

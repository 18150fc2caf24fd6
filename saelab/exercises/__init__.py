"""Checks of the tutorials' exercises: ``from saelab.exercises import check``, then ``check.NAME(answer)`` in a cell.

A check runs the answer on cases that catch the usual mistakes and reports what was seen, what was expected and a hint,
but never the solution. It raises nothing, so a notebook with open or wrong exercises still runs to the end.
"""

from saelab.exercises import check
from saelab.exercises.verdicts import Verdict

__all__ = ["Verdict", "check"]

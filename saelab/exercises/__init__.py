"""Checks of the tutorials' exercises: ``from saelab.exercises import check``, then ``check.NAME(answer)`` in a cell.

A check runs the answer on cases that catch the usual mistakes, and says what was seen, what was expected and a hint;
never the solution. It raises nothing: a notebook whose exercises are open, or wrong, still runs to its end.
"""

from saelab.exercises import check
from saelab.exercises.verdicts import Verdict

__all__ = ["Verdict", "check"]

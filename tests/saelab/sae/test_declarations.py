import math

import numpy as np
import pytest

from saelab.sae.base import L1_COEFFICIENT
from saelab.sae.declarations import Knob
from saelab.sae.elementwise import GATE_THRESHOLD

K = Knob(name="k", label="k", short="k", meaning="Features on.", default=32, range=(1, 64), is_whole=True, minimum=1)


@pytest.mark.parametrize(
    ("knob", "value", "number"),
    [
        (L1_COEFFICIENT, 4, 4.0),
        (L1_COEFFICIENT, 0, 0.0),
        (L1_COEFFICIENT, 1e300, 1e300),  # beyond the slider's range
        (L1_COEFFICIENT, np.float32(0.5), 0.5),
        (GATE_THRESHOLD, -7, -7.0),
        (K, 3.0, 3),
        (K, np.int64(3), 3),
    ],
)
def test_a_knob_takes_any_number_that_makes_sense(knob: Knob, value: object, number: float) -> None:
    checked = knob.checked(value)
    assert checked == number and type(checked) is (int if knob.is_whole else float)


@pytest.mark.parametrize(
    ("knob", "value", "error", "sentence"),
    [
        (L1_COEFFICIENT, -1, ValueError, "l1_coefficient must be a finite number of at least 0, not -1"),
        (L1_COEFFICIENT, math.nan, ValueError, "l1_coefficient must be a finite number of at least 0, not nan"),
        (L1_COEFFICIENT, math.inf, ValueError, "not inf"),
        (GATE_THRESHOLD, -math.inf, ValueError, "gate_threshold must be a finite number, not -inf"),
        (K, 0, ValueError, "k must be a whole number of at least 1, not 0"),
        (K, 2.5, ValueError, "k must be a whole number of at least 1, not 2.5"),
        (L1_COEFFICIENT, "4", TypeError, "l1_coefficient must be a number, not '4'"),
        (L1_COEFFICIENT, None, TypeError, "l1_coefficient must be a number, not None"),
        (L1_COEFFICIENT, True, TypeError, "l1_coefficient must be a number, not True"),
    ],
)
def test_what_a_knob_cannot_take_gets_a_sentence(
    knob: Knob, value: object, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        knob.checked(value)

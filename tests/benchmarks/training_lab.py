"""Measure a learner's wait: seconds from `TrainingLab()` in a fresh process to its first chart, and steps a second."""

import statistics
import subprocess
import sys
import time

CODE = """
import time; t = time.perf_counter()
from saelab_widgets import TrainingLab
lab = TrainingLab()
first = time.perf_counter() - t
lab.start(); time.sleep(2); step, t = lab.trainer.n_steps_done, time.perf_counter()
time.sleep(5); rate = (lab.trainer.n_steps_done - step) / (time.perf_counter() - t)
lab.pause(); print(first, rate)
"""


def main() -> None:
    results = []
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
        results.append([float(value) for value in run.stdout.split()])
        time.sleep(1)
    first, rate = (statistics.median(column) for column in zip(*results, strict=True))
    print(f"first chart after {first:.1f} s; then {rate:.0f} steps/s beside the kernel (medians of {len(results)})")


if __name__ == "__main__":
    main()

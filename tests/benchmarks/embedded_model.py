"""Measure the figures of the embedded model's card: `make benchmarks`.

Prints seconds to open the model in a fresh process, and probe accuracy by layer with its spread over random splits.
"""

import statistics
import subprocess
import sys

import numpy as np
import torch

import saelab
from saelab.data.labelled import SENTIMENT_PROMPT, LabelledActivations
from saelab.evaluation.probing import probe

OPEN = (
    "import time; t = time.perf_counter(); import saelab; a = time.perf_counter(); saelab.load_language_model();"
    "print(a - t, time.perf_counter() - a)"
)


def main() -> None:
    runs = [subprocess.run([sys.executable, "-c", OPEN], capture_output=True, text=True, check=True) for _ in range(5)]
    imports, opens = zip(*(map(float, run.stdout.split()) for run in runs), strict=True)
    print(f"import saelab: {statistics.median(imports):.2f} s; load_language_model: {statistics.median(opens):.2f} s")

    model = saelab.load_language_model()
    frame = saelab.load_sentiment()
    labels = torch.tensor(frame.label.to_numpy())
    folds = np.random.default_rng(0).permutation(len(frame)) % 5
    for layer in range(model.cfg.n_layers):
        hook = f"blocks.{layer}.hook_resid_post"
        x = saelab.harvest_pooled(model, hook, list(frame.text + SENTIMENT_PROMPT), progress=False)
        reports = []
        for fold in range(5):
            train, test = torch.tensor(folds != fold), torch.tensor(folds == fold)
            reports.append(
                probe(LabelledActivations(x[train], labels[train]), LabelledActivations(x[test], labels[test]))
            )
        train_accuracy = statistics.mean(report.train_accuracy for report in reports)
        test_accuracies = [report.test_accuracy for report in reports]
        print(
            f"{hook}: train {train_accuracy:.3f}, test {statistics.mean(test_accuracies):.3f} "
            f"(five folds, from {min(test_accuracies):.3f} to {max(test_accuracies):.3f})"
        )


if __name__ == "__main__":
    main()

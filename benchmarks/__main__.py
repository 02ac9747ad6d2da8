"""Run every benchmark, print the ratios, and write them where asked: python -m benchmarks [--threads 1] [--out FILE]."""

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks import hooked_forward, training_step
from hooked_rnn.training.run_directory import versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    results = []
    for module in (hooked_forward, training_step):
        for result in module.comparisons(arguments.threads):
            ratios = f"{result.ratio_median:.2f} ({result.ratio_min:.2f} to {result.ratio_max:.2f})"
            print(f"{result.name:<64} {ratios:<24} {1e3 * result.seconds_median:8.1f} ms")
            results.append(result.to_dict())
    if arguments.out is not None:
        command = " ".join(["python -m benchmarks", *sys.argv[1:]])
        record = {"command": command, "versions": versions(), "results": results}
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

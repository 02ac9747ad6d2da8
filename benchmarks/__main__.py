"""Print the ratios of a benchmark, and write them where asked: python -m benchmarks [NAME ...] [--threads 1] [--out FILE]."""

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks import (
    beside_others,
    grokking,
    hooked_forward,
    long_sequences,
    peak_memory,
    prefixes,
    subsets,
    training_step,
)
from hooked_rnn.training.run_directory import versions

BENCHMARKS = {
    "hooked_forward": hooked_forward,
    "long_sequences": long_sequences,
    "peak_memory": peak_memory,
    "training_step": training_step,
    "prefixes": prefixes,
    "subsets": subsets,
    "grokking": grokking,
    "beside_others": beside_others,
}
QUICK = ("hooked_forward", "training_step", "prefixes", "subsets")
"""Those that run where none is named; grokking takes a quarter of an hour, long_sequences some minutes, beside_others wants nnsight."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], default=list(QUICK), metavar="NAME")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    results = []
    for name in arguments.names:
        for result in BENCHMARKS[name].comparisons(arguments.threads):
            ratios = f"{result.ratio_median:.3f} ({result.ratio_min:.3f} to {result.ratio_max:.3f})"
            print(f"{result.name:<72} {ratios:<26} {1e3 * result.seconds_median:10.1f} ms  {result.note}", flush=True)
            results.append(result.to_dict())
    if arguments.out is not None:
        command = " ".join(["python -m benchmarks", *sys.argv[1:]])
        record = {"command": command, "versions": versions(), "results": results}
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

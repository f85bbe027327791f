"""Readers of numbers by the width of their registers: `python bench/micro/widths.py [--rounds 60]`.

For each datatype and kind of text: the time to read 150,528 numbers with vectors of 256 and of 512 bits, as a multiple
of the portable reader's (0 bits, what any CPU has). The best of interleaved rounds on one core; below 1 is quicker. On
a CPU without a width, the next smaller one is measured again.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from fastinfer.codec.decode import decode

COUNT = 3 * 224 * 224
INTEGERS = {"UINT8": 8, "INT8": 7, "UINT16": 16, "INT16": 15, "UINT32": 32, "INT32": 31, "UINT64": 64, "INT64": 63}
FLOATS = {"FP16": "e", "BF16": "f", "FP32": "f", "FP64": "d"}


def texts(datatype: str) -> dict[str, list[str]]:
    """Numbers as clients write them, by kind."""
    random = np.random.default_rng(0)
    if datatype in INTEGERS:
        bits = INTEGERS[datatype]
        found = {"small": random.integers(0, min(100, 2**bits), COUNT)}
        if bits > 8:
            found["large"] = random.integers(0, min(2**bits - 1, 2**63 - 1), COUNT)
        return {kind: [str(value) for value in values] for kind, values in found.items()}
    normal = random.standard_normal(COUNT)
    return {
        "pixels": [str(value) for value in random.integers(0, 256, COUNT)],
        "4 digits": [f"{value:.4f}" for value in random.random(COUNT)],
        "shortest": [repr(float(value)) for value in normal]
        if datatype == "FP64"
        else [str(value) for value in normal.astype(np.float16 if datatype == "FP16" else np.float32)],
        "17 digits": [repr(float(value)) for value in normal],
    }


def body(datatype: str, numbers: list[str]) -> bytes:
    data = ",".join(numbers)
    return f'{{"inputs":[{{"name":"x","shape":[{COUNT}],"datatype":"{datatype}","data":[{data}]}}]}}'.encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    print(f"{'':18}{'0 bits, µs':>12}{'256':>8}{'512':>8}")
    for datatype in (*INTEGERS, *FLOATS):
        for kind, numbers in texts(datatype).items():
            text = body(datatype, numbers)
            best = dict.fromkeys((0, 256, 512), float("inf"))
            for _ in range(rounds):
                for width in best:
                    began = time.perf_counter()
                    decode(text, width=width)
                    best[width] = min(best[width], time.perf_counter() - began)
            ratios = "".join(f"{best[width] / best[0]:8.2f}" for width in (256, 512))
            print(f"{datatype:8}{kind:10}{best[0] * 1e6:12.0f}{ratios}")


if __name__ == "__main__":
    main()

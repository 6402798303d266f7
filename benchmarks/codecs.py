"""Speed of codecs: megabytes of float32 a second, encoded and decoded as a payload, in one thread.

    python -m benchmarks.codecs [--millions 4 | --pairs 24] [--repeats 15]

One matrix of so many million numbers, or so many pairs of LoRA (rank 4, 128 x 128) in tensors of their own. All codecs
take turns, and the ratio to float16 is taken within each turn, in CPU seconds, so that what else the machine does
weighs on all of them. Medians over the turns, of the ratio with its quartiles.
"""

from __future__ import annotations

import argparse
import time
from statistics import median, quantiles

import torch

from fedelta.codecs.base import Codec
from fedelta.codecs.cast import Cast
from fedelta.codecs.quantize import Integers
from fedelta.codecs.sign import Sign
from fedelta.codecs.sparse import RandomK, TopK
from fedelta.codecs.wire import Decoder, encode
from fedelta.params import Params, ParamSpec, TensorSpec
from fedelta.seeds import stream

CODECS: tuple[Codec, ...] = (
    Cast(name="float16"),
    Cast(),
    Integers(),
    Integers(name="int4"),
    Integers(name="int4", rounding="stochastic"),
    Sign(),
    TopK(),
    RandomK(),
)


def seconds(codec: Codec, params: Params, spec: ParamSpec) -> tuple[float, float]:
    """CPU seconds to encode and to decode."""
    start = time.process_time()
    payload, _ = encode(params, spec, codec)
    middle = time.process_time()
    Decoder(spec, codec).decode(payload)
    return middle - start, time.process_time() - middle


def main() -> None:
    """Prints a row for each codec."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=float, default=4)
    parser.add_argument("--pairs", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shapes = {"w": (int(arguments.millions * 1e6) // 1000, 1000)}
    if arguments.pairs:
        pair = {"lora_A": (4, 128), "lora_B": (128, 4)}
        shapes = {f"{place}.{name}": shape for place in range(arguments.pairs) for name, shape in pair.items()}
    spec = ParamSpec({name: TensorSpec(shape, name) for name, shape in shapes.items()})
    params = {name: 1e-2 * torch.randn(shape, generator=stream(0, name)) for name, shape in shapes.items()}
    turns = [[seconds(codec, params, spec) for codec in CODECS] for _ in range(arguments.repeats)]
    megabytes = 4 * sum(tensor.numel() for tensor in params.values()) / 1e6
    print("codec         encode MB/s   decode MB/s   both / float16")
    for place, codec in enumerate(CODECS):
        encoding, decoding = (median(turn[place][side] for turn in turns) for side in (0, 1))
        lower, middle, upper = quantiles((sum(turn[0]) / sum(turn[place]) for turn in turns), n=4)
        name = f"{codec.name}{' st.' if isinstance(codec, Integers) and codec.rounding == 'stochastic' else ''}"
        speeds = f"{megabytes / encoding:>12,.0f} {megabytes / decoding:>13,.0f}"
        print(f"{name:<12} {speeds} {middle:>7.2f} ({lower:.2f}-{upper:.2f})")


if __name__ == "__main__":
    main()

"""Write the trained weights as a `.nemo` file, in half precision.

    python package.py WEIGHTS.pt ../sortformer-small-4spk.nemo
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from model import build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    model = build().eval()
    model.load_state_dict(torch.load(arguments.weights)["model"])
    # Not the preprocessor: its mel filters would be rounded.
    for part in (model.encoder, model.sortformer_modules, model.transformer_encoder):
        part.half()
    model.save_to(str(arguments.target))
    print(arguments.target, arguments.target.stat().st_size / 1e6, "MB")


if __name__ == "__main__":
    main()

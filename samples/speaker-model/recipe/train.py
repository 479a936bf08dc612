"""Train the small Sortformer on simulated conversations, on a few CPU cores.

    python train.py MANIFEST.json SHARDS PRINTS.npy OUTPUT --minutes 60 [--workers 2] [--start FILE]

Each worker simulates its own conversations and updates shared weights without a lock (Hogwild).
The sequences are what streaming inference sees: a speaker cache, chosen by NeMo's own code from
the true speakers, and the next 13 seconds. Two losses that help beside Sortformer's own (sorted
by arrival, and in the best order): which of the training's speakers it is, by the likeness to
their voice prints, and whether two frames are of one speaker. Their layers are not part of the
result.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp
from model import WIDTH, build
from simulate import SPEAKERS, SUBSAMPLING, Voices, conversation
from torch import nn
from torch.nn import functional

CACHE, CHUNK = 96, 160
PEAK_RATE = 6e-4
"""With 2e-3 it collapses after some 800 steps: then it tells speech from silence, and nobody apart."""
WARM_UP_STEPS = 60
SHARPNESS = 16
"""Factor of the likeness to voice prints, before the softmax."""
MIN_ALONE = 6
"""Frames in which somebody speaks alone, from which their mean is classified."""
AVERAGE = 0.99
"""Decay of the average of the weights, which is what is kept."""
PERMUTATIONS = torch.tensor(list(itertools.permutations(range(SPEAKERS))))


class Helpers(nn.Module):
    """Layers of the losses that only training needs."""

    def __init__(self, prints: torch.Tensor) -> None:
        """Classify by `prints`, (classes, width); what all have in common tells nothing."""
        super().__init__()
        self.register_buffer("prints", functional.normalize(prints - prints.mean(0), dim=1))
        self.print = nn.Linear(WIDTH, prints.shape[1])
        self.identity = nn.Linear(WIDTH, 64)
        self.scale = nn.Parameter(torch.tensor([5.0, -1.0]))

    def speaker_loss(self, encoded, classes):
        """Return the cross entropy of frames (n, WIDTH) with their classes (n)."""
        likeness = functional.normalize(self.print(encoded), dim=1) @ self.prints.T
        return functional.cross_entropy(SHARPNESS * likeness, classes)


def stage(frames: float) -> tuple[int, int, int, float, bool]:
    """Return frames and rows of a batch, most people, longest median turn, and whether cached."""
    if frames < 0.3e6:
        return CACHE, 20, 3, 200, False
    return CACHE + CHUNK, 9, 4, 300, True


def draw(rng, voices: Voices, frames: int, rows: int, most: int, longest: float):
    weights = np.array([0.1, 0.4, 0.3, 0.2])[:most]
    drawn = [
        conversation(rng, voices, frames, 1 + rng.choice(most, p=weights / weights.sum()), longest)
        for _ in range(rows)
    ]
    mels, speech, classes = (np.stack(column) for column in zip(*drawn, strict=True))
    return torch.from_numpy(mels), torch.from_numpy(speech).float(), torch.from_numpy(classes)


def embed(model, mels):
    return model.encoder.pre_encode(x=mels, lengths=torch.full((len(mels),), mels.shape[1]))[0]


def with_cache(model, mels, speech, classes):
    """Replace all but the last frames by the cache that NeMo would keep of them.

    Speakers are shuffled as in NeMo's training; the order in the cache is the order of the outputs.
    """
    history = mels.shape[1] // SUBSAMPLING - CHUNK
    with torch.no_grad():
        past = embed(model, mels[:, : history * SUBSAMPLING])
    known = speech[:, :history]
    certain = known * (0.6 + 0.39 * torch.rand_like(known))
    silent = (known.sum(2) == 0).float()
    mean_silence = (past * silent[..., None]).sum(1) / silent.sum(1).clamp(min=1)[:, None]
    cache, cached, order = model.sortformer_modules._compress_spkcache(
        past, certain, mean_silence, permute_spk=True
    )
    now = embed(model, mels[:, history * SUBSAMPLING :])
    targets = torch.cat([(cached > 0.5).float(), speech[:, history:]], 1)
    targets = torch.stack([row[:, o] for row, o in zip(targets, order, strict=True)])
    classes = torch.stack([row[o] for row, o in zip(classes, order, strict=True)])
    return torch.cat([cache, now], 1), targets, classes


def pairwise(probabilities, targets):
    """Return the cross entropy of each output with each speaker, (B, outputs, speakers)."""
    p = probabilities.clamp(1e-6, 1 - 1e-6)
    yes, no = p.log(), (1 - p).log()
    cross = torch.einsum("bti,btj->bij", yes, targets)
    return -(cross + torch.einsum("bti,btj->bij", no, 1 - targets)) / p.shape[1]


def losses(helpers: Helpers, rng, encoded, probabilities, targets, classes):
    costs = pairwise(probabilities, targets)
    sorted_loss = costs.diagonal(dim1=1, dim2=2).mean()
    orders = torch.stack([costs[:, range(SPEAKERS), order] for order in PERMUTATIONS], 1)
    best_loss = orders.mean(2).min(1).values.mean()
    alone = targets.sum(2) == 1
    sole = targets * alone[..., None]
    person = targets.argmax(2)
    picked = torch.from_numpy(rng.choice(encoded.shape[1], 80, replace=False))
    alone, person, some = alone[:, picked], person[:, picked], encoded[:, picked]
    identity = functional.normalize(helpers.identity(some), dim=2)
    likeness = helpers.scale[0] * identity @ identity.transpose(1, 2) + helpers.scale[1]
    both = alone[:, :, None] & alone[:, None, :]
    same = (person[:, :, None] == person[:, None, :]).float()
    affinity = functional.binary_cross_entropy_with_logits(likeness[both], same[both])
    single = helpers.speaker_loss(some[alone], classes.gather(1, person)[alone])
    counts = sole.sum(1)
    means = torch.einsum("bts,btc->bsc", sole, encoded) / counts.clamp(min=1)[..., None]
    heard = (counts >= MIN_ALONE) & (classes >= 0)
    mean = helpers.speaker_loss(means[heard], classes[heard])
    return sorted_loss, best_loss, affinity, 0.5 * (single + mean)


def run(worker: int, model, helpers, average, shared, arguments) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(worker)
    rng = np.random.default_rng([arguments.seed, worker])
    manifest = json.loads(arguments.manifest.read_text())
    voices = Voices(arguments.shards, sorted({row["speaker"] for row in manifest}))
    while not voices.refresh():
        time.sleep(5)
    parameters = [*model.parameters(), *helpers.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.rate, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    started, end_s = time.time(), arguments.minutes * 60
    running, saved = None, time.time()
    for step in itertools.count():
        gone = (time.time() - started) / end_s
        if gone >= 1:
            break
        warm = min(1.0, (step + 1) / WARM_UP_STEPS)
        late = min(1.0, max(0.02, (1 - gone) / 0.4))
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * warm * late
        frames, rows, most, longest, cached = stage(float(shared[0]) + arguments.frames)
        if cached and rng.random() < 0.6:
            history = int(rng.integers(CACHE + 12, 300))
            mels, speech, classes = draw(rng, voices, history + CHUNK, rows, most, longest)
            sequence, targets, classes = with_cache(model, mels, speech, classes)
        else:
            mels, targets, classes = draw(rng, voices, frames, rows, most, longest)
            sequence = embed(model, mels)
        lengths = torch.full((len(sequence),), sequence.shape[1])
        encoded, lengths = model.frontend_encoder(sequence, lengths, bypass_pre_encode=True)
        probabilities = model.forward_infer(encoded, lengths)
        parts = losses(helpers, rng, encoded, probabilities, targets, classes)
        loss = 0.7 * parts[0] + 0.3 * parts[1] + 0.4 * parts[2] + 0.1 * parts[3]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        shared[0] += sequence.shape[0] * sequence.shape[1]
        with torch.no_grad():
            decay = min(AVERAGE, (1 + step) / (10 + step))
            for mean, now in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
        values = torch.tensor([*(part.item() for part in parts)])
        running = values if running is None else 0.97 * running + 0.03 * values
        if step % 25 == 0:
            print(
                f"{worker} step {step} {time.time() - started:.0f} s cpu {time.process_time():.0f}"
                f" frames {shared[0] / 1e6:.2f}M shards {voices.refresh()} sorted/best/affinity/speaker"
                f" {' '.join(f'{v:.3f}' for v in running.tolist())}",
                flush=True,
            )
        if worker == 0 and time.time() - saved > 180:
            saved = time.time()
            save(average, helpers, arguments.output, float(shared[0]))
    if worker == 0:
        save(average, helpers, arguments.output, float(shared[0]))


def save(average, helpers, path: Path, frames: float) -> None:
    partial = path.with_suffix(".partial")
    torch.save(
        {"model": average.state_dict(), "helpers": helpers.state_dict(), "frames": frames}, partial
    )
    partial.replace(path)


def whiten(model, voices_folder: Path) -> None:
    """Begin with the principal components of the stacked mel frames, at nearly equal power."""
    mel = np.load(sorted(voices_folder.glob("???.npz"))[0])["mel"].astype(np.float32)
    patches = mel[: len(mel) // SUBSAMPLING * SUBSAMPLING].reshape(-1, SUBSAMPLING * mel.shape[1])
    rng = np.random.default_rng(0)
    patches = patches + rng.uniform(-6, 2, (len(patches), 1)).astype(np.float32)
    mean = patches.mean(0)
    powers, components = np.linalg.eigh(np.cov(patches.T))
    components, powers = components[:, ::-1][:, :WIDTH], powers[::-1][:WIDTH]
    weight = (components / np.sqrt(powers + powers[0] * 1e-3)).T.astype(np.float32)
    with torch.no_grad():
        model.encoder.pre_encode.proj_out.weight.copy_(torch.from_numpy(weight.copy()))
        model.encoder.pre_encode.proj_out.bias.copy_(torch.from_numpy((-weight @ mean).copy()))


def attend_to_likeness(model) -> None:
    """Begin with attention of the head to frames that are alike: queries equal keys."""
    with torch.no_grad():
        for layer in model.transformer_encoder.layers:
            attention = layer.first_sub_layer
            attention.query_net.weight.normal_(0, WIDTH**-0.5)
            attention.key_net.weight.copy_(attention.query_net.weight)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("shards", type=Path)
    parser.add_argument("prints", type=Path, help="made by prints.py")
    parser.add_argument("output", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=PEAK_RATE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="weights to continue from")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    prints = torch.from_numpy(np.load(arguments.prints))
    model, helpers, average = build(), Helpers(prints), build()
    arguments.frames = 0.0
    if arguments.start:
        stored = torch.load(arguments.start)
        model.load_state_dict(stored["model"])
        helpers.load_state_dict(stored["helpers"])
        arguments.frames = stored["frames"]
    else:
        while not list(arguments.shards.glob("???.npz")):
            time.sleep(5)
        whiten(model, arguments.shards)
        attend_to_likeness(model)
    average.load_state_dict(model.state_dict())
    for module in (model, helpers, average):
        module.share_memory()
    shared = torch.zeros(1, dtype=torch.float64).share_memory_()
    # Not spawned: NeMo's modules cannot be pickled.
    others = [
        mp.get_context("fork").Process(target=run, args=(n, model, helpers, average, shared, arguments))
        for n in range(1, arguments.workers)
    ]
    for process in others:
        process.start()
    run(0, model, helpers, average, shared, arguments)
    for process in others:
        process.join()


if __name__ == "__main__":
    main()

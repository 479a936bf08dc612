"""Silero's voice activity detector, as a `SpeechDetector`.

Its TorchScript model runs step by step from Python and takes ten times as long; its ONNX model
needs one more runtime. So only the weights are read. All steps of a stretch of audio run through
the convolutions in one batch and through the LSTM in one call: equal to 2e-6, and 1.4 ms of one
core for a second of audio.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from parakeet_api.speech.activity import STEP
from parakeet_api.transcript import Pcm

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor

_CONTEXT = 64
"""Samples of the preceding step that each step includes."""
_STFT_STEP = 128
_STFT_BINS = 129
_STRIDES = (1, 2, 2, 1)
_LSTM = (209, 210, 211)
"""Suffixes of the LSTM's weights in the file: input, state, biases."""
_FULL_SCALE = 32768.0


def weights_file() -> Path:
    """Return the path of the detector's weights in the package `silero-vad`.

    The package itself is not imported: it sets torch's number of threads for the whole process.
    """
    package = find_spec("silero_vad")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the package silero-vad is not installed")
    return Path(package.origin).parent / "data" / "silero_vad_16k_sequence.onnx"


class SileroDetector:
    """Detects speech; thread-safe, and loaded on first use."""

    def __init__(self) -> None:
        self._network: _Network | None = None
        # One thread for all callers: torch creates a thread pool for each thread that calls it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="speech-detector")

    def probabilities(self, samples: Pcm) -> NDArray[np.float32]:
        """Return the probability of speech for each 512 samples; shape `(ceil(n / 512),)`."""
        if not len(samples):
            return np.zeros(0, np.float32)
        return self._thread.submit(self._run, samples).result()

    def listen(self) -> SpeechListener:
        """Create a listener for streamed audio."""
        return SpeechListener(self)

    def continued(self, samples: Pcm, state: _State | None) -> tuple[NDArray[np.float32], _State]:
        """Continue from the state returned by the last call; see `SpeechListener.hear`."""
        return self._thread.submit(self._continue, samples, state).result()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _run(self, samples: Pcm) -> NDArray[np.float32]:
        return self._continue(samples, None)[0]

    def _continue(self, samples: Pcm, state: _State | None) -> tuple[NDArray[np.float32], _State]:
        if self._network is None:
            self._network = _Network()
        return self._network.probabilities(samples, state)


class SpeechListener:
    """Run the detector on one audio stream; for one thread at a time."""

    def __init__(self, detector: SileroDetector) -> None:
        self._detector = detector
        self._state: _State | None = None

    def hear(self, samples: Pcm) -> NDArray[np.float32]:
        """Return the probability of speech for each of the next steps.

        `samples` are one or more whole steps of 512; the detector's state is kept between calls.
        """
        probabilities, self._state = self._detector.continued(samples, self._state)
        return probabilities


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """State of the detector between calls."""

    context: NDArray[np.float32]
    """The last samples, shape `(64,)`."""
    lstm: tuple[Tensor, Tensor]


class _Network:
    """The detector for 16 kHz: a Fourier transform, four convolutions, an LSTM."""

    def __init__(self) -> None:
        import onnx
        import torch
        from onnx import numpy_helper

        weights: dict[str, Tensor] = {
            weight.name: torch.from_numpy(numpy_helper.to_array(weight).copy())
            for weight in onnx.load(weights_file()).graph.initializer
        }
        self._basis = weights["stft.forward_basis_buffer"]
        self._convolutions = [
            (weights[f"encoder.{layer}.weight"], weights[f"encoder.{layer}.bias"], stride)
            for layer, stride in enumerate(_STRIDES)
        ]
        self._last = weights["output.weight"], weights["output.bias"]
        inputs, states, biases = (weights[f"onnx::LSTM_{number}"][0] for number in _LSTM)
        input_bias, state_bias = biases.chunk(2)
        self._lstm = torch.nn.LSTM(inputs.shape[1], states.shape[1]).eval()
        self._lstm.load_state_dict(
            {
                "weight_ih_l0": _in_torchs_order(inputs),
                "weight_hh_l0": _in_torchs_order(states),
                "bias_ih_l0": _in_torchs_order(input_bias),
                "bias_hh_l0": _in_torchs_order(state_bias),
            }
        )

    def probabilities(
        self, samples: Pcm, state: _State | None
    ) -> tuple[NDArray[np.float32], _State]:
        import torch
        from torch.nn import functional

        steps = -(-len(samples) // STEP)
        padded = np.zeros(_CONTEXT + steps * STEP, np.float32)
        padded[_CONTEXT : _CONTEXT + len(samples)] = samples / np.float32(_FULL_SCALE)
        if state is not None:
            padded[:_CONTEXT] = state.context
        with torch.inference_mode():
            sound = torch.from_numpy(padded).unfold(0, _CONTEXT + STEP, STEP)[:, None]
            sound = functional.pad(sound, (0, _CONTEXT), "reflect")
            spectrum = functional.conv1d(sound, self._basis, stride=_STFT_STEP)
            real, imaginary = spectrum[:, :_STFT_BINS], spectrum[:, _STFT_BINS:]
            features = (real**2 + imaginary**2).sqrt()
            for weight, bias, stride in self._convolutions:
                features = functional.conv1d(
                    features, weight, bias, padding=1, stride=stride
                ).relu()
            states, lstm = self._lstm(features[..., 0], state and state.lstm)
            speech = functional.conv1d(states.relu()[..., None], *self._last).sigmoid()
        probabilities: NDArray[np.float32] = speech[:, 0, 0].numpy()
        return probabilities, _State(padded[-_CONTEXT:].copy(), lstm)


def _in_torchs_order(gates: Tensor) -> Tensor:
    """Reorder an LSTM's gates: input, output, forget, cell to input, forget, cell, output."""
    import torch

    of_input, of_output, of_forget, of_cell = gates.chunk(4)
    return torch.cat([of_input, of_forget, of_cell, of_output])

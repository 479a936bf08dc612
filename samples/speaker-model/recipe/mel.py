"""The mel spectrogram of NeMo's preprocessor, without its dither and normalisation."""

from __future__ import annotations

from functools import cache

import torch

RATE, HOP, WINDOW, FFT, BANDS = 16_000, 160, 400, 512, 80
FLOOR = 2.0**-24


@cache
def filters() -> tuple[torch.Tensor, torch.Tensor]:
    import librosa

    bank = librosa.filters.mel(sr=RATE, n_fft=FFT, n_mels=BANDS, fmin=0, fmax=RATE / 2, norm="slaney")
    return torch.from_numpy(bank), torch.hann_window(WINDOW, periodic=False)


def log_mel(samples: torch.Tensor) -> torch.Tensor:
    """Return the logarithmic mel spectrogram of float samples (n,), shape (n // HOP, BANDS)."""
    bank, window = filters()
    count = len(samples) // HOP
    samples = torch.cat([samples[:1], samples[1:] - 0.97 * samples[:-1]])
    spectrum = torch.stft(
        samples, FFT, HOP, WINDOW, window, center=True, pad_mode="constant", return_complex=True
    )
    power = spectrum.real**2 + spectrum.imag**2
    return torch.log(bank @ power + FLOOR).T[:count]

"""What a model of speech reads of a recording."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from zograd.hub import TaskError
from zograd.hub.media import Recording


def spectrum(processor: Any, recording: Recording) -> Tensor:
    """[1, bands, frames]: what a model of speech reads of a recording. Raises TaskError for one that is too long."""
    extractor = processor.feature_extractor
    samples, rate = recording.samples(extractor.sampling_rate), extractor.sampling_rate
    if len(samples) > (longest := extractor.chunk_length * rate):
        raise TaskError(
            f"{recording.name} takes {len(samples) / rate:.0f} s, and the model hears {longest / rate:.0f} s: cut it "
            f"into pieces with the text of each"
        )
    found: Tensor = extractor(samples, sampling_rate=rate, return_tensors="pt").input_features
    return found

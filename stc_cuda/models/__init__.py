"""Networks made of the neurons."""

from .checkpoint import read_official_checkpoint
from .patches import frames_to_patches, patches_to_frames
from .predictor import SpikingPredictor
from .sampling import NoSampling, ReverseScheduledSampling, SamplingSchedule, ScheduledSampling

__all__ = [
    "NoSampling",
    "ReverseScheduledSampling",
    "SamplingSchedule",
    "ScheduledSampling",
    "SpikingPredictor",
    "frames_to_patches",
    "patches_to_frames",
    "read_official_checkpoint",
]

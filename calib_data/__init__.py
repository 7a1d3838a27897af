"""Images and masks: reading them, the layouts they lie in, calibration subsets, and the built-in synthetic set."""

from calib_data.dataset import Dataset, Sample, overlap
from calib_data.sources import open_dataset

__all__ = ["Dataset", "Sample", "open_dataset", "overlap"]

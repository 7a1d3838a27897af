"""Images and masks: reading them, the layouts they lie in, calibration subsets, and the built-in synthetic set."""

from sodeploy.calib_data.dataset import Dataset, Sample, overlap
from sodeploy.calib_data.mask_sets import open_photographs
from sodeploy.calib_data.sources import open_dataset, open_datasets

__all__ = ["Dataset", "Sample", "open_dataset", "open_datasets", "open_photographs", "overlap"]

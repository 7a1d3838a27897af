"""The selection of `make test-quick`."""

# Folders and files below this one whose tests take less than a minute together.
QUICK = (
    "calib_data",
    "runtime",
    "quant/test_calibrate.py",
    "quant/test_drift.py",
    "quant/test_emit.py",
    "quant/test_kernels_report.py",
    "quant/test_plan_commands.py",
    "quant/test_planning.py",
    "quant/test_ranges.py",
    "quant/test_targets.py",
    "training/test_augment.py",
    "training/test_journal.py",
    "training/test_recipe.py",
    "test_terminal.py",
)

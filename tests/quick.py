"""The selection of `make test-quick`."""

# Folders and files below this one whose tests take less than a minute together on two cores: data sets, the CPU
# runtime, sessions, contracts, reports, plans, emitted graphs, recipes, and the pipeline on an emulated GPU.
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

# Tests among them that compile kernels for many GPUs or start one process after another: seconds each.
NOT_QUICK = (
    "quant/test_calibrate.py::TestCommand",
    "quant/test_plan_commands.py::test_bad_input_is_one_line",
    "quant/test_plan_commands.py::test_the_commands",
    "runtime/test_bench.py::test_an_interrupt",
    "runtime/test_bench.py::test_scores_do_not_depend",
    "runtime/test_bench.py::test_the_command",
    "runtime/test_cuda_kernels.py",
    "runtime/test_cuda_processing.py::test_the_kernels_stay_within_their_memory",
    "runtime/test_evaluate.py::test_the_command",
    "runtime/test_interrupted_infer.py",
    "runtime/test_pictures.py::test_the_edge_of_a_cut_out",
    "runtime/test_infer_videos.py",
    "runtime/test_label.py::test_every_image",
    "runtime/test_label.py::test_no_such_cluster",
    "runtime/test_metrics.py::test_other_processes_score",
    "runtime/test_openvino_session.py::test_infer_takes_the_engine",
    "runtime/test_serve_page.py",
    "runtime/test_serve_process.py",
    "runtime/test_video_files.py::test_every_sound",
)

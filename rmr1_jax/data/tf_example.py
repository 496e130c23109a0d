"""An Example as a serialised tf.train.Example, the record format of TFDS.

The protocol buffer is declared here, in a pool of its own, so that neither TensorFlow nor
tensorflow_datasets is imported to read or write a record. `FEATURES` is what TFDS is told about it.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

from rmr1_jax.data.example import Example
from rmr1_jax.judging import Message, Preference, Role, Side

TEXTS = ("id", "source", "label", "response_a", "response_b", "trace")
CONVERSATIONS = ("messages", "messages_b")
FLAG = "rendered"


def _message_class() -> Any:
    def field(name: str, number: int, type: str, *, repeated: bool = False) -> dict[str, Any]:
        declared = {"name": name, "number": number}
        declared["label"] = "LABEL_REPEATED" if repeated else "LABEL_OPTIONAL"
        if type[0] == ".":
            return declared | {"type": "TYPE_MESSAGE", "typeName": type}
        return declared | {"type": type}

    kinds = [field("bytes_list", 1, ".r.BytesList"), field("int64_list", 3, ".r.Int64List")]
    entry = [field("key", 1, "TYPE_STRING"), field("value", 2, ".r.Feature")]
    messages: list[dict[str, Any]] = [
        {"name": "BytesList", "field": [field("value", 1, "TYPE_BYTES", repeated=True)]},
        {"name": "Int64List", "field": [field("value", 1, "TYPE_INT64", repeated=True)]},
        {
            "name": "Feature",
            "field": [kind | {"oneofIndex": 0} for kind in kinds],
            "oneofDecl": [{"name": "kind"}],
        },
        {
            "name": "Features",
            "field": [field("feature", 1, ".r.Features.FeatureEntry", repeated=True)],
            "nestedType": [{"name": "FeatureEntry", "field": entry, "options": {"mapEntry": True}}],
        },
        {"name": "Example", "field": [field("features", 1, ".r.Features")]},
    ]
    file = {"name": "record", "package": "r", "syntax": "proto3", "messageType": messages}
    pool = descriptor_pool.DescriptorPool()
    pool.Add(json_format.ParseDict(file, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("r.Example"))


_Proto = _message_class()


def tfds_features() -> Any:
    """The same features as TFDS declares them. Imports tensorflow_datasets."""
    import tensorflow_datasets as tfds

    features = tfds.features
    conversation = {"role": features.Text(), "content": features.Text()}
    return features.FeaturesDict(
        {
            **{name: features.Text() for name in TEXTS},
            **{name: features.Sequence(conversation) for name in CONVERSATIONS},
            FLAG: features.Scalar(dtype=np.bool_),
        }
    )


def encode(example: Example) -> bytes:
    """The record of an example; equal examples give equal bytes.

    `messages` holds the conversation that both responses answer, or the prompt where `rendered`;
    `messages_b` is empty unless response B ends another conversation. No label and no trace are
    stored as empty texts.
    """
    preference = example.preference
    if preference is not None and (preference.id, preference.label) != (example.id, example.label):
        raise ValueError(f"example {example.id!r} and its preference differ in id or label")
    record = _Proto()
    feature = record.features.feature
    texts = {
        "id": example.id,
        "source": example.source,
        "label": example.label or "",
        "response_a": preference.response_a if preference else "",
        "response_b": preference.response_b if preference else "",
        "trace": example.trace or "",
    }
    for name, text in texts.items():
        feature[name].bytes_list.value.append(text.encode("utf-8"))
    feature[FLAG].int64_list.value.append(int(preference is None))
    conversations: dict[str, Sequence[Message]] = {
        "messages": preference.context if preference else example.prompt,
        "messages_b": (preference.context_b or ()) if preference else (),
    }
    for name, messages in conversations.items():
        for part in ("role", "content"):
            values = feature[f"{name}/{part}"].bytes_list
            values.SetInParent()  # an empty list is not an absent one
            values.value.extend(getattr(message, part).encode("utf-8") for message in messages)
    return cast(bytes, record.SerializeToString(deterministic=True))


def decode(record: bytes) -> Example:
    """The example of a record. Raises ValueError for bytes that are none."""
    try:
        proto = _Proto.FromString(record)
    except Exception as error:  # protobuf's DecodeError, of whatever implementation is in use
        raise ValueError("is no tf.train.Example") from error
    feature = proto.features.feature

    def texts(name: str) -> list[str]:
        if name not in feature:
            raise ValueError(f"has no feature {name}")
        return [value.decode("utf-8") for value in feature[name].bytes_list.value]

    def text(name: str) -> str:
        return texts(name)[0]

    def conversation(name: str) -> tuple[Message, ...]:
        pairs = zip(texts(f"{name}/role"), texts(f"{name}/content"), strict=True)
        return tuple(Message(cast(Role, role), content) for role, content in pairs)

    id, label = text("id"), cast(Side | None, text("label") or None)
    messages = conversation("messages")
    rendered = bool(feature[FLAG].int64_list.value[0])
    preference = None
    if not rendered:
        preference = Preference(
            id=id,
            context=messages,
            response_a=text("response_a"),
            response_b=text("response_b"),
            label=label,
            context_b=conversation("messages_b") or None,
        )
    return Example(
        id=id,
        source=text("source"),
        label=label,
        preference=preference,
        prompt=messages if rendered else (),
        trace=text("trace") or None,
    )

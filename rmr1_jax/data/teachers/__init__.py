"""Who can be asked for traces, behind one protocol."""

from rmr1_jax.data.teachers.formats import FORMATS, AnthropicFormat, Format, OpenAIFormat
from rmr1_jax.data.teachers.http import HttpTeacher, check_url
from rmr1_jax.data.teachers.program import ProgramTeacher
from rmr1_jax.data.teachers.protocol import ExampleRefused, Reply, Request, Teacher, TryAgain

__all__ = [
    "FORMATS",
    "AnthropicFormat",
    "ExampleRefused",
    "Format",
    "HttpTeacher",
    "OpenAIFormat",
    "ProgramTeacher",
    "Reply",
    "Request",
    "Teacher",
    "TryAgain",
    "check_url",
]

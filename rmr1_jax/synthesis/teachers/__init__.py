"""Who can be asked for traces, behind one protocol."""

from rmr1_jax.synthesis.teachers.api_formats import FORMATS, AnthropicFormat, Format, OpenAIFormat
from rmr1_jax.synthesis.teachers.http_teacher import HttpTeacher, check_url
from rmr1_jax.synthesis.teachers.program_teacher import ProgramTeacher
from rmr1_jax.synthesis.teachers.protocol import ExampleRefused, Reply, Request, Teacher, TryAgain

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

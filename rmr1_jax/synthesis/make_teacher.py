"""From a teacher's section of the configuration to the teacher."""

from rmr1_jax.config import SynthesizeConfig, TeacherConfig
from rmr1_jax.errors import UserError
from rmr1_jax.synthesis.local_teacher import LocalTeacher
from rmr1_jax.synthesis.teachers import (
    FORMATS,
    Format,
    HttpTeacher,
    ProgramTeacher,
    Teacher,
    check_url,
)

PASSES = (1, 2)
Formats = dict[int, Format | None]  # by pass; None for a teacher that is no endpoint


def teacher_config(config: SynthesizeConfig, number: int) -> TeacherConfig:
    """The section of pass 1 or 2."""
    return config.teacher1 if number == 1 else config.teacher2


def teacher_formats(config: SynthesizeConfig) -> Formats:
    """How each pass's endpoint is spoken to. Raises UserError."""
    return {
        number: _format(teacher_config(config, number), f"teacher{number}") for number in PASSES
    }


def make_teacher(config: SynthesizeConfig, number: int, format: Format | None) -> Teacher:
    """The teacher of a pass; `check` tells whether it can be asked. Raises UserError."""
    options, section = teacher_config(config, number), f"teacher{number}"
    if format is not None:
        return HttpTeacher(
            format,
            section=section,
            url=options.url,
            key_variable=options.key_variable,
            timeout=options.timeout,
            concurrency=options.concurrency,
        )
    if options.kind == "local":
        return LocalTeacher(
            options.model,
            section=section,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
        )
    return ProgramTeacher(options.accuracy, options.haste, section=section)


def teacher_settings(teacher: TeacherConfig) -> dict[str, object]:
    """What makes its replies another teacher's; limits and concurrency do not."""
    names = ("kind", "model", "url", "max_new_tokens", "temperature", "accuracy")
    return {name: getattr(teacher, name) for name in names}


def _format(teacher: TeacherConfig, section: str) -> Format | None:
    if teacher.kind not in FORMATS:
        return None
    check_url(teacher.url, f"--{section}.url")
    try:
        return FORMATS[teacher.kind](teacher.model, teacher.max_new_tokens, teacher.temperature)
    except UserError as error:
        raise UserError(f"--{section}.temperature: {error}") from error

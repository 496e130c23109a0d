"""The errors that reach a user as a single clear line."""

LOST = 3
"""Exit status where a device failed, or another process is gone or did not come: a restart may
help, so whatever starts the processes may do it unasked."""


class UserError(ValueError):
    """Something the user can fix: says what is wrong, where, and how to fix it.

    `rmr1_jax.main` prints the message, without a traceback unless `--debug`, and exits with
    `status`.
    """

    status = 2


class MissingProcessError(UserError):
    """Another process of the run did not come in time."""

    status = LOST

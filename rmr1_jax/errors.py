"""The errors that reach a user as a single clear line."""

LOST = 3
"""Exit status where another process of the run is gone, or did not come: starting all again may
help, so whatever starts them may do it unasked."""


class UserError(ValueError):
    """Something the user can mend: says what is wrong, where, and how to mend it.

    `rmr1_jax.main` prints the message, without a traceback unless `--debug`, and exits with
    `status`.
    """

    status = 2


class MissingProcessError(UserError):
    """Another process of the run did not come in time."""

    status = LOST

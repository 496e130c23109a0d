"""The one exception that reaches a user as a single clear line."""


class UserError(ValueError):
    """Something the user can mend: says what is wrong, where, and how to mend it.

    `rmr1_jax.main` prints the message, without a traceback unless `--debug`, and exits with 2.
    """

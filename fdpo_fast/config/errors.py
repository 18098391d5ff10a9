"""The one error that is raised on purpose where the input is wrong."""


class UserError(ValueError):
    """A mistake in what a user has given: one sentence of what is wrong, where, and what to do.

    The command line shows it as it is; any other error comes with its traceback.
    """

"""The one error whose message is written for users."""


class UserError(Exception):
    """Bad input: one sentence that names the key or file and the fix. Commands print it and exit with 2."""

"""The one error whose message is written for users."""


class UserError(Exception):
    """Bad input: one sentence that names the key or file and the fix. Commands print it and exit with 2."""


FOREIGN = (Exception, SystemExit)  # what code that is not ours may raise; Ctrl-C is the user's


def as_exception(error: BaseException) -> Exception:
    """What such code raised, as an error like any other: it never ends the program."""
    if isinstance(error, Exception):
        return error
    return RuntimeError(f"called sys.exit({getattr(error, 'code', '')!r})")

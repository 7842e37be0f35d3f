"""The one error whose message is written for users, and errors of code that is not ours."""

from gspo_cli.signals import can_be_ctrl_c


class UserError(Exception):
    """Bad input: one sentence that names the key or file and the fix. Commands print it and exit with 2."""

    __module__ = "gspo_cli"  # where scripts import it from, as their tracebacks say


FOREIGN = BaseException  # what code that is not ours may raise; `as_exception` lets the user's Ctrl-C through


def as_exception(error: BaseException) -> Exception:
    """What such code raised, as an error like any other: it never ends the program. Raises `error` where it
    is the user's Ctrl-C."""
    if isinstance(error, Exception):
        return error
    if isinstance(error, KeyboardInterrupt) and can_be_ctrl_c(error):
        raise error
    if isinstance(error, SystemExit):
        return RuntimeError(f"called sys.exit({error.code!r})")
    return RuntimeError(f"raised {type(error).__name__}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU."""
    of_gpu = type(error).__name__ == "OutOfMemoryError"  # by name: this module is free of torch
    return of_gpu or isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)

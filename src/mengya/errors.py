"""The exception for a mistake that the user can mend, and the one for a stop that the user asked for."""


class UserError(ValueError):
    """One line that says what is wrong, where, and how to mend it.

    The command line prints it without a traceback and exits with code 2. `where` is a file, `file:line`, or a recipe
    key; `mend` is an instruction ("set model.num_heads to a divisor of 256"). A fault of ours is an `assert` instead.
    """

    def __init__(self, what: str, *, where: object = None, mend: str | None = None) -> None:
        self.what, self.where, self.mend = what, where, mend
        line = what if where is None else f"{where}: {what}"
        super().__init__(line if mend is None else f"{line} — {mend}")


class Terminated(BaseException):
    """SIGTERM came where no state of a training has to be saved first; the command line exits with 130.

    No Exception, and no KeyboardInterrupt, which a chat takes for the end of an answer: nothing is to go on after it.
    """


class Interrupted(Exception):
    """SIGINT or SIGTERM came, and the state of `step` was saved; the command line exits with 130."""

    def __init__(self, stage: str, step: int) -> None:
        super().__init__(f"{stage}: stopped at step {step}, state saved; the same command goes on from there")

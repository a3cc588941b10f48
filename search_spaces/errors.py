"""The one error users see."""


class InputError(ValueError):
    """Something given from outside is wrong. The message is one line: what, where, what to do.

    Commands print the message and exit with a code other than 0; everything else keeps its traceback.
    """

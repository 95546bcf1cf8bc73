"""What is wrong with something that the user gave, told apart from a defect of the program."""


class InputError(ValueError):
    """A file, a model, a setting or an answer from outside that cannot be used.

    The message is one line that names the file or field, the value, and the remedy; commands print it without a
    traceback and end with exit code 2 (experiments/cli.py).
    """

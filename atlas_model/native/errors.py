"""Why there are no kernels, in words for a log."""


class NativeUnavailableError(Exception):
    """The kernels cannot be built or loaded here."""


class NotCoveredError(Exception):
    """The kernels do not compute this model."""

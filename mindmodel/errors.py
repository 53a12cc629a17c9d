"""What can go wrong for a user. Every message says where, what is wrong and what would work."""


class MindModelError(Exception):
    """Base of all errors that a user can mend; the command line exits with 2."""


class RecipeError(MindModelError):
    """A recipe, or a key=value beside it, that cannot be used. The message holds one line for each fault."""


class LayoutError(MindModelError):
    """A parallel layout that this model, or this machine, cannot have."""


class DataError(MindModelError):
    """Text, a tokenizer or token shards that are missing, empty or damaged."""


class CheckpointError(MindModelError):
    """A checkpoint or a run folder that is missing, damaged, busy or of another run."""


class ConversionError(MindModelError):
    """A Hugging Face folder that cannot be read, or weights that do not fit the model."""


class LaunchError(MindModelError):
    """Processes that cannot be started or cannot meet: nodes, ports, devices, programs."""


class GraphError(MindModelError):
    """A network that MindSpore does not compile, or a saved graph that cannot be read."""


class TraceError(MindModelError):
    """A saved trace of a training step that is damaged, or two that cannot be compared."""


class TrainingError(Exception):
    """A run that failed while it ran, such as a loss that is not finite; the command line exits with 3."""


class NotFiniteError(TrainingError):
    """A step whose loss or gradient norm is not finite, and that was not applied."""

    def __init__(self, text: str, loss: float, norm: float):
        super().__init__(text)
        self.loss, self.norm = loss, norm


def first_line(error: BaseException) -> str:
    """What an error says first; its class where it says nothing. MindSpore writes pages, with ruled headings."""
    lines = (line.strip() for line in str(error).splitlines())
    said = next((line for line in lines if line and not line.startswith("-")), type(error).__name__)
    return said.partition(", Please confirm")[0].rstrip(".")

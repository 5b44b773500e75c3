"""Which errors belong to a row and become its record, and which end the stage. Torch is imported where it is
needed.
"""

from mathse.records import fail

# what an image, a template or a processor can raise: the row's own fault
INPUT_ERRORS = (OSError, ValueError, RuntimeError, IndexError, TypeError, KeyError, AttributeError)
# what a model can raise on the inputs of one row
MODEL_ERRORS = (ValueError, RuntimeError, IndexError, TypeError, KeyError)
HOPELESS = 20  # prompts in a row that the model fails on, after which the stage ends
KEPT = "the rows so far are kept; call again to go on"


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def halves(items: list) -> tuple[list, list]:
    return items[: len(items) // 2], items[len(items) // 2 :]


def is_out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def end_if_device_failed(error: Exception) -> None:
    """End the stage with exit code 1 on an error that no other split of the rows would cure."""
    text = str(error)
    if is_out_of_memory(error):
        fail(f"out of memory: set a smaller --batch-size ({one_line(error)}); {KEPT}", 1)
    if "CUDA error" in text:
        fail(f"the device failed ({one_line(error)}); {KEPT}", 1)
    if "DataLoader worker (pid" in text:  # "is killed by signal" or "exited unexpectedly"
        what = "a process that prepares images and prompts was ended from outside, perhaps out of memory"
        fail(f"{what}; {KEPT}", 1)


class FaultCounter:
    """Ends the stage when the model fails on HOPELESS prompts in a row: then the rows are not at fault."""

    def __init__(self):
        self.in_a_row = 0

    def passed(self) -> None:
        self.in_a_row = 0

    def failed(self, error: Exception) -> None:
        self.in_a_row += 1
        if self.in_a_row >= HOPELESS:
            fail(f"the model failed on {HOPELESS} prompts in a row, the last: {one_line(error)}; {KEPT}", 1)

"""Memory-mapped arrays that do not fill the memory.

Pages of a mapped file stay in a process once they were touched, and count as its memory, until the system needs them
elsewhere: a job that reads a whole file that way looks, to a scheduler with a memory limit, as big as the file.
"""

import mmap

import numpy as np


def release(*arrays: np.ndarray) -> None:
    """Hand back the pages of mapped arrays; the next access reads them again. What was written stays written.

    Arrays in memory are left alone. Without effect where the system cannot do it.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    for array in arrays:
        while isinstance(array, np.ndarray) and not isinstance(getattr(array, "_mmap", None), mmap.mmap):
            array = array.base
        if isinstance(array, np.ndarray):
            array._mmap.madvise(mmap.MADV_DONTNEED)

"""The commands of the command line, one module a group."""

import sys

from attnstore.store.processes import keep_blas_to_one_thread

# Before any command loads NumPy; the resampling of a comparison has threads of its own.
if sys.argv[1:2] == ["compare"]:
    keep_blas_to_one_thread()

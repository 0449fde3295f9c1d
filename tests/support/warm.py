"""Imported last in the process that others are forked from: does once what every run does when it is the first, and lets garbage
collections there leave alone what stands at this moment, which they would copy.

Without progress bars: tqdm makes a lock that all processes share, which one that is killed may hold, and a thread, whose locks a fork
leaves as they are. Whoever comes next would wait for them without end.
"""

import gc
import tempfile
import threading

from tiny_policy import TinyPolicy
from tqdm.std import TqdmDefaultWriteLock
from transformers.utils import logging

logging.disable_progress_bar()
with tempfile.TemporaryDirectory() as folder:
    TinyPolicy().load_model().save_pretrained(folder)
logging.enable_progress_bar()
assert threading.active_count() == 1 and not hasattr(TqdmDefaultWriteLock, "mp_lock"), "what is forked from here may hang"
gc.collect()
gc.freeze()

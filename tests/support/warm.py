"""Imported last in the process that others are forked from: does once what every run does when it is the first, and lets garbage
collections there leave alone what stands at this moment, which they would copy."""

import gc
import tempfile

from tiny_policy import TinyPolicy

with tempfile.TemporaryDirectory() as folder:
    TinyPolicy().load_model().save_pretrained(folder)
gc.collect()
gc.freeze()

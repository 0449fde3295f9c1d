"""Messages of the wire protocol, bent for tests."""

import json


def changed(message, path, value):
    """A message with one thing changed; Ellipsis removes it."""
    out = json.loads(message)
    *way, last = path
    node = out
    for step in way:
        node = node[step]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return json.dumps(out).encode()

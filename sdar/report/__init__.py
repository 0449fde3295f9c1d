"""``sdar report``: runs as one HTML page that opens from disk, with curves, tables and a viewer of episodes."""

"""Search backends: questions in, passages out."""

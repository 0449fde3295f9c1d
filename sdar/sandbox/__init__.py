"""Code runners: untrusted code in, its output out."""

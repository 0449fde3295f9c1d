"""Settings that are installed with the package: YAML files and skill banks."""

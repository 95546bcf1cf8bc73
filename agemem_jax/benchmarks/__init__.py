"""One folder a benchmark (envs/base.py says what is in it); nothing outside knows their names."""

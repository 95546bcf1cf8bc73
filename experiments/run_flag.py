"""The --run flag of the commands that read what a run has left, defined once so that they can be imported together."""

from experiments import paths

RUN = paths.define_path("run", None, "folder of a seed of a run, e.g. runs/tiny/seed_0", required=True)

"""Makes the page of a run from the files in its workdir: python -m experiments.report --workdir=runs/tiny"""

import json
from pathlib import Path

from agemem_jax.report import page
from experiments import cli, out, paths, shared_flags

WORKDIR, PAGE = shared_flags.workdir(), shared_flags.page()
PICTURE = paths.define_path("picture", None, "also draw one compact PNG of the run here")


def main() -> None:
    for name, value in (("page", PAGE.value), ("picture", PICTURE.value)):
        if value:
            paths.file_to_write(name, value)
    made = {"page": str(page.write(WORKDIR.value, PAGE.value))}
    if PICTURE.value:
        made["picture"] = str(page.write_picture(WORKDIR.value, PICTURE.value))
    print("\n".join(made.values()))
    out.write(json.loads((Path(WORKDIR.value) / "summary.json").read_text()) | made)


if __name__ == "__main__":
    cli.run(main, takes_config=False)

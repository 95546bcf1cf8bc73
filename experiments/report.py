"""Makes the page of a run from the files in its workdir: python -m experiments.report --workdir=runs/tiny"""

import json
from pathlib import Path

from agemem_jax.report import page
from experiments import cli, out, paths

WORKDIR = paths.define_path("workdir", None, "Folder of a finished run.", required=True)
PAGE = paths.define_path("page", None, "Where the page goes; WORKDIR/report.html if not given.")
PICTURE = paths.define_path("picture", None, "Also draw one compact PNG of the run here.")


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

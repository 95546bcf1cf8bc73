"""Makes the page of a run from the files in its workdir: python -m experiments.report --workdir=runs/tiny"""

import json
import sys
from pathlib import Path

from absl import app, flags

from agemem_jax.report import page
from experiments import out

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
PAGE = flags.DEFINE_string("page", None, "Where the page goes; WORKDIR/report.html if not given.")
PICTURE = flags.DEFINE_string("picture", None, "Also draw one compact PNG of the run here.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; give the folder as --workdir=FOLDER")
    try:
        made = {"page": str(page.write(WORKDIR.value, PAGE.value))}
        if PICTURE.value:
            made["picture"] = str(page.write_picture(WORKDIR.value, PICTURE.value))
        print("\n".join(made.values()))
        out.write(json.loads((Path(WORKDIR.value) / "summary.json").read_text()) | made)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)

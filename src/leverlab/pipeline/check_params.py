"""The check of a whole params file as a program: `python -m leverlab.pipeline.check_params FOLDER`.

Every stage runs it when it starts (`leverlab.stage`), so that a bad value in the section of a late stage stops the
first one; so does a tracker of LEVERLAB_REPORT_TO that is unknown or not installed. FOLDER has the pipeline's
`dvc.yaml`; the params of `worlds/` are one section each, which their stage reads and checks itself.
"""

import sys
from pathlib import Path

from leverlab.errors import LeverlabError
from leverlab.pipeline.trackers import report_to


def main(folder: Path) -> None:
    """End the process with code 1 and one line per problem when LEVERLAB_REPORT_TO or the params are not valid."""
    try:
        report_to()
        if folder == Path("."):
            from leverlab.pipeline.params import check_params_file

            check_params_file(Path("params.yaml"))
        elif folder.parent == Path("recipes"):
            from leverlab.pipeline.recipe_params import check_recipe

            check_recipe(folder)
    except LeverlabError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

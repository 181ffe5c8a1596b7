"""Python runs this at its start when the directory is on PYTHONPATH: the child processes of the suite are tapped, too.

The room is loaded under a name of its own, so that nothing else of the suite becomes importable.
"""

import os
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_NAME = "_canary"


def _start(directory: Path) -> None:
    room = Path(__file__).parent.parent
    spec = spec_from_file_location(_NAME, room / "__init__.py", submodule_search_locations=[str(room)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[_NAME] = package = module_from_spec(spec)
    spec.loader.exec_module(package)
    import_module(f"{_NAME}.taps").install(directory, streams=True)


if "CANARY_DIR" in os.environ:
    _start(Path(os.environ["CANARY_DIR"]))

"""An installed CANN toolkit: where it is, whether this environment knows it, and whether MindSpore takes it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Iterator, Optional

from mindmodel.machine import ROOT

ACL = Path("lib64", "libascendcl.so")
STANDIN = "libstandin.so"
"""What ACL links to in the stand-in of a dry run, which is no toolkit."""
TOLD_IN = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
INSTALLED_IN = ("ascend-toolkit/latest", "cann")

MINDSPORE = "2.9.0"
ACCEPTED = ("8.2", "8.3", "8.5", "9.0")
"""Versions that this MindSpore runs with without a warning.

Source: AscendEnvChecker in the wheel's run_check/_check_version.py.
"""
BUILT_WITH = "9.0"
"""The version that the operators in MindSpore's wheel were compiled with. MindFormers 1.9.0 asks for it too.

Source: lib/plugin/ascend/custom_ascendc_910b/version.info in the wheel; MindFormers' installation guide.
"""


def real_cann(root: Path = ROOT) -> Optional[Path]:
    """The folder of a CANN toolkit: the one that the environment names, else one in its usual place below root."""
    usual = [root / "usr/local/Ascend" / name for name in INSTALLED_IN]
    candidates = (path for path in (*_told(), *usual) if (path / ACL).is_file())
    return next((path for path in candidates if (path / ACL).resolve().name != STANDIN), None)


def _told() -> Iterator[Path]:
    """The toolkits that the environment names."""
    return (Path(os.environ[name]) for name in TOLD_IN if os.environ.get(name))


def is_entered(real: Path) -> bool:
    """Whether the environment is set up for a toolkit."""
    return real in _told()


def set_env(real: Path) -> Path:
    """The script that sets up the environment for a toolkit."""
    inside = real / "set_env.sh"
    return inside if inside.is_file() else real.parent / "set_env.sh"


def cann_version(real: Path) -> Optional[str]:
    """A toolkit's version, from the file that MindSpore reads it from."""
    try:
        found = re.search(r"^Version=(\S+)", (real / "compiler" / "version.info").read_text(), re.MULTILINE)
    except OSError:
        return None
    return found[1] if found else None


def fault_of(real: Path) -> str:
    """Why MindSpore should not be started with a toolkit, and what would work; empty where nothing is in the way."""
    version = cann_version(real)
    if version is None:
        return f"{real / 'compiler' / 'version.info'} does not tell its version. {_remedy()}"
    if ".".join(version.split(".")[:2]) not in ACCEPTED:
        return f"MindSpore {MINDSPORE} takes CANN {', '.join(ACCEPTED[:-1])} or {ACCEPTED[-1]}. {_remedy()}"
    if not is_entered(real):
        return f"it is not in this environment. Use source {set_env(real)}"
    return ""


def _remedy() -> str:
    return f"Install CANN {BUILT_WITH}.0, toolkit and operators of your chip, then source its set_env.sh"

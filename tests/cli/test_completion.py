"""Completion of commands and options in a real bash, set up as the documentation says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BASH = """
eval "$(sharded-eden --show-completion)"
complete -p sharded-eden
for line in "sharded-eden prec" "sharded-eden split seqs --val-s"; do
    COMP_WORDS=($line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _sharded_eden_completion sharded-eden
    echo "${COMPREPLY[@]}"
done
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    program = tmp_path / "sharded-eden"
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom sharded_eden.__main__ import main\nsys.exit(main())\n")
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    # In a shell: the name of its process decides which kind of script is printed.
    done = subprocess.run(["bash", "--norc"], input=BASH, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines() == [
        "complete -o default -F _sharded_eden_completion sharded-eden",
        "precompute",
        "--val-samples",
    ], done.stderr

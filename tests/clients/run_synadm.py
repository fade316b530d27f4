"""Runs commands of synadm in one process: each line is a list of arguments, each answer what the command printed."""

import json
import sys

from click.testing import CliRunner
from synadm.cli import root

runner = CliRunner()
for line in sys.stdin:
    result = runner.invoke(root, ["--batch", "-o", "minified", "-c", sys.argv[1], *json.loads(line)])
    print(json.dumps({"exit": result.exit_code, "output": result.output}), flush=True)

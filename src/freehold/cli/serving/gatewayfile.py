"""Options that name a gateway.toml or a ledger; what they name is read by reports/gateway_file.py.

Path: cli/serve.py, cli/ledger.py -> gateway_option, ledger_option
"""

from __future__ import annotations

from pathlib import Path

import click

gateway_option = click.option(
    "--gateway",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Use this gateway.toml. Default: `gateway` of config.toml.",
)

ledger_option = click.option(
    "--ledger",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The ledger; default: the one that gateway.toml names, or ledger.sqlite in the data folder.",
)

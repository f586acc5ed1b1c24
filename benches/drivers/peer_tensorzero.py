"""TensorZero's gateway from its wheel, until stdin ends: prints its URL. It has no ledger and no keys here."""

import json
import sys

from tensorzero import tensorzero

gateway = tensorzero._start_http_gateway(
    config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False
)
print(json.dumps({"url": gateway.base_url}), flush=True)
sys.stdin.read()
gateway.close()

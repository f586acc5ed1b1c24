#!/bin/sh
# sh cluster.sh head MY-ADDRESS | sh cluster.sh worker HEAD-ADDRESS MY-ADDRESS | sh cluster.sh deploy HEAD-ADDRESS
# Every machine first: nft -f firewall.nft. Ray encrypts nothing: keep its network private. The token is the same on all
# of them; the key is for deploy, and for what asks the app at http://HEAD-ADDRESS:@ingress@/v1.
set -eu
: "${RAY_AUTH_TOKEN:?openssl rand -hex 24 makes one}"
export RAY_AUTH_TOKEN @variables@
case "${1:-}" in
head)
  exec ray start --head --block --node-ip-address "$2" @head@ ;;
worker)
  exec ray start --block --address "$2:@gcs@" --node-ip-address "$3" @worker@ ;;
deploy)
  : "${FREEHOLD_INGRESS_KEY:?openssl rand -hex 32 makes one}"
  RAY_ADDRESS="$2:@gcs@" exec python3 app.py ;;
*)
  echo "sh cluster.sh head|worker|deploy ADDRESS ..." >&2; exit 2 ;;
esac

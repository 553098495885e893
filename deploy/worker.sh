#!/usr/bin/env bash
# A Prefect worker for this checkout: registers what prefect.yaml names and takes one run at a time.
# Needs PREFECT_API_URL. Ends on SIGTERM; its run ends with it, and goes on from there when run again.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${PREFECT_API_URL:?the address of the Prefect server, such as http://HOST:4200/api}"
export PREFECT_HOME="$PWD/.prefect" DO_NOT_TRACK=1 DVC_NO_ANALYTICS=1 GX_ANALYTICS_ENABLED=false
export DVC_SITE_CACHE_DIR="$PWD/.dvc/tmp/site"
pool=$(python -c 'import yaml; print(yaml.safe_load(open("prefect.yaml"))["deployments"][0]["work_pool"]["name"])')
until said=$(prefect --no-prompt work-pool ls 2>&1); do
  echo "worker: trying again: $PREFECT_API_URL: $(tail -n 2 <<<"$said" | head -n 1)" >&2
  sleep 5
done
prefect --no-prompt work-pool create "$pool" --type process --overwrite
prefect --no-prompt deploy --all
# More at a time would share one DVC repository.
exec prefect --no-prompt worker start --pool "$pool" --type process --limit 1 --name "$(hostname)-$$"

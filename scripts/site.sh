#!/usr/bin/env bash
# Builds the documentation as a site in build/site, and checks every link and anchor.
#   bash scripts/site.sh            builds it
#   bash scripts/site.sh --serve    builds it and shows it on http://127.0.0.1:8000
# To read it needs no network. Search needs --serve. scripts/setup.sh installs mkdocs.
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

if [ $# -gt 1 ] || [ "${1:---serve}" != --serve ]; then
  echo "$*: scripts/site.sh takes no arguments but --serve." >&2
  exit 2
fi
bash scripts/setup.sh
export NO_MKDOCS_2_WARNING=1 # its advice about another program is nothing for readers here
if ! output=$(.venv/bin/python -m mkdocs build --strict --clean 2>&1); then
  grep -v '^INFO' <<<"$output" >&2
  exit 1
fi
echo "Built: build/site/index.html"
if [ "${1:-}" = --serve ]; then
  echo "Serving http://127.0.0.1:8000; Ctrl-C ends it."
  exec .venv/bin/python -m http.server --bind 127.0.0.1 --directory build/site 8000
fi

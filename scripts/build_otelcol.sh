#!/usr/bin/env bash
# Builds the collector of deploy/otelcol/builder.yaml and prints the binary's path on stdout; all else goes to stderr.
#
#   scripts/build_otelcol.sh
#
# Does nothing when the manifest has not changed since the last build.
# SPENDMETER_OTELCOL=PATH  use this collector (a stock otelcol-contrib, say) and build nothing.
set -euo pipefail

say() { echo "build_otelcol: $*" >&2; }

if [[ -n "${SPENDMETER_OTELCOL:-}" ]]; then
  command -v "$SPENDMETER_OTELCOL" && exit 0
  say "SPENDMETER_OTELCOL=$SPENDMETER_OTELCOL is not an executable; set it to an otelcol-contrib binary, or unset it to build one"
  exit 1
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
manifest=deploy/otelcol/builder.yaml
cache=.cache/otelcol
binary=$cache/otelcol
want=$(cksum <"$manifest")

fresh() { [[ -x $binary && $(cat "$cache/manifest.cksum" 2>/dev/null) == "$want" ]]; }
tell() { echo "$PWD/$binary"; }

if fresh; then tell; exit 0; fi

if ! command -v go >/dev/null; then
  say "no Go compiler on PATH. Install Go 1.25 or newer (distributions may carry an older one),"
  say "or put otelcol-contrib on this machine and set SPENDMETER_OTELCOL to its path."
  exit 1
fi

mkdir -p "$cache/src"
if command -v flock >/dev/null; then # parallel test workers build once
  exec 9>"$cache/lock"
  flock 9
  if fresh; then tell; exit 0; fi
fi

version=$(sed -n 's/^  version: *\([0-9.]*\).*/\1/p' "$manifest")
say "building collector $version; the first build takes some minutes and 4 GB of Go caches"
started=$SECONDS
rm -f "$cache/manifest.cksum"
CGO_ENABLED=0 go run "go.opentelemetry.io/collector/cmd/builder@v$version" --config "$manifest" >&2
mv "$cache/src/otelcol" "$binary"
echo "$want" >"$cache/manifest.cksum"
say "built in $((SECONDS - started)) s"
tell

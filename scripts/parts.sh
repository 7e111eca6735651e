#!/usr/bin/env bash
# Installs the real parts that the tests run: Prometheus, Alertmanager, Chromium, PostgreSQL and npm of the distribution, and builds
# the Collector.
# Where there is no apt-get, or no right to use it, it says what to install; the tests then skip those parts by name (in CI they fail).
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
command -v prometheus >/dev/null || missing+=(prometheus)
command -v prometheus-alertmanager >/dev/null || missing+=(prometheus-alertmanager)
command -v chromium >/dev/null || missing+=(chromium)
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing+=(postgresql)
command -v npm >/dev/null || missing+=(nodejs npm)
command -v systemd-analyze >/dev/null || missing+=(systemd)
command -v openssl >/dev/null || missing+=(openssl)
command -v pkill >/dev/null || missing+=(procps)
if [ "${#missing[@]}" -gt 0 ]; then
    sudo=""
    [ "$(id -u)" -eq 0 ] || sudo="sudo -n"
    if command -v apt-get >/dev/null && $sudo true 2>/dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        $sudo apt-get update -qq
        # no service of the distribution is started by the install
        $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    else
        echo "parts: please install ${missing[*]}; tests that need them are skipped until then" >&2
    fi
fi
if command -v go >/dev/null; then
    scripts/build_tools.sh
    [ -n "${SPENDMETER_OTELCOL:-}" ] || scripts/build_otelcol.sh >/dev/null
else
    echo "parts: please install Go to build the Collector and the checkers; tests that need them are skipped until then" >&2
fi

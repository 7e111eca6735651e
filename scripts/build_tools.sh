#!/usr/bin/env bash
# Builds the small Go tools that check what is shipped into .cache/tools, which is no part of the repository:
# compose-spec's own loader for compose.yaml, and kustomize for deploy/kubernetes. About half a minute the first time.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p .cache/tools
out="$PWD/.cache/tools"
export GOTOOLCHAIN="${GOTOOLCHAIN:-auto}"

build() { # name, module at version
    [ -x "$out/$1" ] && return
    dir="$(mktemp -d)"
    GOBIN="$dir" go install "$2"
    mv "$dir"/* "$out/$1"
    rmdir "$dir"
}

build compose-spec github.com/compose-spec/compose-go/v2/cmd@v2.16.2
build kustomize sigs.k8s.io/kustomize/kustomize/v5@v5.7.1

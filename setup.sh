#!/usr/bin/env bash
# System packages for `make setup`: installs what is missing on Debian, as root.
# Everywhere else it says what the rehearsal will lack and leaves the machine alone.
set -euo pipefail

needed=(mmdebstrap systemd-container nftables slirp4netns iproute2 e2fsprogs openssh-client ca-certificates
    chromium fonts-liberation) # a browser that looks at the UI

# uv comes from a virtual environment, which Debian's Python cannot make without python3-venv.
if ! command -v uv >/dev/null && [ ! -x .uv/bin/uv ] && ! python3 -c 'import ensurepip' 2>/dev/null; then
    needed+=(python3-venv)
fi

if ! command -v apt-get >/dev/null; then
    echo "setup: no apt-get here, so no system packages: the rehearsal needs Debian, the other tests do not."
    exit 0
fi

installed=$(dpkg-query --show --showformat='${db:Status-Abbrev}${Package}\n' "${needed[@]}" 2>/dev/null || true)
missing=()
for package in "${needed[@]}"; do
    grep -qx "ii *$package" <<<"$installed" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "setup: not root, so these Debian packages stay missing: ${missing[*]} (as root: apt-get install ${missing[*]})."
    exit 0
fi

echo "setup: installing Debian packages: ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 "$@" >>"$log" 2>&1 </dev/null; }
if ! { apt update && apt install --yes --no-install-recommends "${missing[@]}"; }; then
    cat "$log" >&2
    echo "setup: apt-get failed; its output is above." >&2
    exit 1
fi

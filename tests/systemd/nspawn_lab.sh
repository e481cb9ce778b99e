#!/usr/bin/env bash
# Boots a real systemd in a container over a copy-on-write view of this machine, installs both daemons there as a user
# would, and runs lab_steps.sh. The record goes to standard output; docs/systemd.md holds one.
#
#   sudo tests/systemd/nspawn_lab.sh
#
# Needs root, systemd-nspawn (Debian: systemd-container) and the environment that ./dev setup makes. Touches nothing
# outside a temporary directory, has no network but its own loopback, and ends by itself (at most LAB_LIMIT seconds).
# Exit status 0: every step did what it should.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
environment=${EDGED_LAB_ENV:-$repository/.venv}
limit=${LAB_LIMIT:-240}

[ "$(id -u)" = 0 ] || { echo "nspawn_lab: run it as root" >&2; exit 2; }
command -v systemd-nspawn >/dev/null || { echo "nspawn_lab: systemd-nspawn is missing (apt install systemd-container)" >&2; exit 2; }
[ -x "$environment/bin/python" ] || { echo "nspawn_lab: no environment in $environment (./dev setup)" >&2; exit 2; }

# The Python that the environment was made from, and its packages: bound to /opt, since units cannot see home directories.
python=$("$environment/bin/python" -c 'import sys; print(sys.base_prefix)')
version=$("$environment/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

work=$(mktemp -d /var/tmp/edged-lab.XXXXXX)
clean_up() {
  umount "$work/root" 2>/dev/null || true
  umount "$work" 2>/dev/null || true
  rmdir "$work" 2>/dev/null || true
}
trap clean_up EXIT
mount -t tmpfs -o size=1g,mode=755 edged-lab "$work"  # upper layers of an overlay may not lie on an overlay
mkdir "$work"/{upper,scratch,root,record}
mount -t overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/scratch" edged-lab "$work/root"

# Everything is written through the merged view: the kernel may have cached what lies below.
units=$work/root/etc/systemd/system
mkdir -p "$units"
cat > "$units/lab.target" <<'UNIT'
[Unit]
Description=the lab
Requires=basic.target lab.service
After=basic.target
AllowIsolate=yes
UNIT
cat > "$units/lab.service" <<'UNIT'
[Unit]
Description=the steps of the lab
After=basic.target
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
Environment=PYTHON_VERSION=@VERSION@
ExecStart=/bin/bash /opt/edged-source/tests/systemd/lab_steps.sh
StandardOutput=append:/lab/record.txt
StandardError=append:/lab/record.txt
UNIT
sed -i "s/@VERSION@/$version/" "$units/lab.service"

timeout --kill-after=10 "$limit" systemd-nspawn --register=no --keep-unit --quiet --private-network --boot \
  --directory="$work/root" --bind="$work/record:/lab" --bind-ro="$repository:/opt/edged-source" \
  --bind-ro="$python:/opt/python" --bind-ro="$environment/lib/python$version/site-packages:/opt/edged-packages" \
  systemd.unit=lab.target systemd.show_status=no > "$work/console.txt" 2>&1 < /dev/null || true

cat "$work/record/record.txt" 2>/dev/null || cat "$work/console.txt"
tail -n 1 "$work/record/record.txt" 2>/dev/null | grep -qx "LAB PASSED"

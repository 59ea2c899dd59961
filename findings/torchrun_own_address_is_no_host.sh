#!/usr/bin/env bash
# torch 2.13.0, torchrun with the c10d rendezvous, on Linux (needs user namespaces and `ip`).
# Whether a machine is the one that serves the rendezvous is told, says the documentation of `is_host`, "by matching the
# hostname or the IP address of this machine" with the endpoint. What is matched are the addresses that the machine's own
# NAME resolves to, and not those of its interfaces: where the name leads to 127.0.0.1 or 127.0.1.1, as in /etc/hosts of
# Debian, or to another of several networks, no machine of the job is the host. The first one, given its own address,
# waits for a server that nobody starts and ends after half a minute. --rdzv_conf is_host=true mends it.
# Output: "its own address: RendezvousConnectionError; with is_host=true: ran".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip install --quiet"
$pip torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu || $pip torch==2.13.0
$pip numpy
cd "$folder"
echo 'print("ran")' > job.py
cat > try.sh <<'SCRIPT'
ip link set lo up
ip address add 10.9.9.1/32 dev lo
venv/bin/torchrun --nnodes 1 --nproc_per_node 1 --rdzv_backend c10d --rdzv_endpoint 10.9.9.1:29511 "$@" job.py 2>&1 || true
SCRIPT
own=$(unshare --user --map-root-user --net bash try.sh)
told=$(unshare --user --map-root-user --net bash try.sh --rdzv_conf is_host=true)
error=$(grep -o 'RendezvousConnectionError' <<< "$own" | head -n 1)
ran=$(grep -x 'ran' <<< "$told")
echo "its own address: $error; with is_host=true: $ran"
! grep -qx 'ran' <<< "$own"

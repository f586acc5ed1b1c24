"""TensorRT-LLM over several pods: one MPI world, whose leader starts ranks on its workers through ssh.

Its other launcher, Ray, is a prototype that its vendor gives no guarantee for; pods have no Slurm. So workers run sshd
as the pod's own user on port 2222, with one key pair of a Secret for both directions: host keys are checked, no
password is taken, and the network policy lets only pods of this deployment there. The image has to hold sshd, ssh and
mpirun, and an entry for user id 1000 in /etc/passwd. These scripts have not run on a cluster of ours.
Path: kubernetes.documents -> mpi_words, mpi_files, add_keys
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from freehold.backends.emit.gateway import FOLDER

SSH_PORT = 2222
KEYS = "/run/mpi"  # where the Secret is mounted

_COMMON = f"""\
set -eu
umask 077
keys="$HOME/ssh"
mkdir -p "$keys"
install -m 600 {KEYS}/ssh-privatekey "$keys/key"
ssh-keygen -y -f "$keys/key" >"$keys/key.pub"
"""

_WORKER = f"""\
#!/bin/bash
# A worker waits for the leader's ssh; mpirun starts its ranks.
{_COMMON}cat >"$keys/sshd_config" <<END
Port {SSH_PORT}
HostKey $keys/key
AuthorizedKeysFile $keys/key.pub
PidFile none
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
AllowTcpForwarding no
X11Forwarding no
END
exec /usr/sbin/sshd -D -e -f "$keys/sshd_config"
"""

# mpirun is called by its whole path, so that it is found on the workers too; PRTE_* are Open MPI 5's names.
_LEADER = f"""\
#!/bin/bash
# The leader waits for its workers, then starts one rank a device.
# Arguments: devices of a node, variables that ranks get, the server's words.
{_COMMON}printf '* %s\\n' "$(cut -d ' ' -f 1,2 "$keys/key.pub")" >"$keys/known"
cat >"$keys/config" <<END
Host *
  Port {SSH_PORT}
  IdentityFile $keys/key
  IdentitiesOnly yes
  UserKnownHostsFile $keys/known
  StrictHostKeyChecking yes
  BatchMode yes
  ConnectTimeout 5
END
devices=$1
passed=$(printf -- '-x %s ' PATH LD_LIBRARY_PATH $2)
shift 2
hosts="$(hostname):$devices"
for i in $(seq 1 $((LWS_GROUP_SIZE - 1))); do
  host="${{LWS_LEADER_ADDRESS%%.*}}-$i.${{LWS_LEADER_ADDRESS#*.}}"
  until ssh -F "$keys/config" "$host" true; do sleep 2; done
  hosts="$hosts,$host:$devices"
done
export OMPI_MCA_plm_rsh_agent="ssh -F $keys/config" PRTE_MCA_plm_ssh_agent="ssh -F $keys/config"
export OMPI_MCA_orte_keep_fqdn_hostnames=1 PRTE_MCA_prte_keep_fqdn_hostnames=1
exec "$(command -v mpirun)" -n $((LWS_GROUP_SIZE * devices)) -H "$hosts" --mca pml ob1 $passed \\
  trtllm-llmapi-launch "$@"
"""


def mpi_words(words: Sequence[str], devices: int, passed: Sequence[str], *, leads: bool) -> tuple[str, ...]:
    """Return what a pod runs: the leader mpirun with the server's words, a worker sshd. `passed`: variables."""
    if leads:
        return ("bash", f"{FOLDER}/mpi-leader.sh", str(devices), " ".join(passed), *words)
    return ("bash", f"{FOLDER}/mpi-worker.sh")


def mpi_files() -> dict[str, str]:
    """Return the scripts by name."""
    return {"mpi-leader.sh": _LEADER, "mpi-worker.sh": _WORKER}


def add_keys(template: dict[str, Any], secret: str) -> None:
    """Mount the key pair into a pod's template."""
    pod = template["spec"]
    pod["volumes"].append({"name": "mpi", "secret": {"secretName": secret, "defaultMode": 0o440}})
    pod["containers"][0]["volumeMounts"].append({"name": "mpi", "mountPath": KEYS, "readOnly": True})

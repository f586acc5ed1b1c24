#!/bin/bash
# A worker waits for the leader's ssh; mpirun starts its ranks.
@take_keys@
cat >"$keys/sshd_config" <<END
Port 2222
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

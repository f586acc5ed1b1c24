#!/bin/bash
# The leader waits for its workers, then starts one rank a device.
# Arguments: devices of a node, variables that ranks get, the server's words.
@take_keys@
printf '* %s\n' "$(cut -d ' ' -f 1,2 "$keys/key.pub")" >"$keys/known"
cat >"$keys/config" <<END
Host *
  Port 2222
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
  host="${LWS_LEADER_ADDRESS%%.*}-$i.${LWS_LEADER_ADDRESS#*.}"
  until ssh -F "$keys/config" "$host" true; do sleep 2; done
  hosts="$hosts,$host:$devices"
done
export OMPI_MCA_plm_rsh_agent="ssh -F $keys/config" PRTE_MCA_plm_ssh_agent="ssh -F $keys/config"
export OMPI_MCA_orte_keep_fqdn_hostnames=1 PRTE_MCA_prte_keep_fqdn_hostnames=1
exec "$(command -v mpirun)" -n $((LWS_GROUP_SIZE * devices)) -H "$hosts" --mca pml ob1 $passed \
  trtllm-llmapi-launch "$@"

#!/usr/bin/env bash
# two_hosts.sh RANKS PROGRAM…: runs it under Open MPI on two network namespaces, as on two machines with a cable between
# them. Needs root and iproute2. Says so, and leaves with 77, where the machine does not allow it.
set -euo pipefail
ranks=$1
shift
hosts=(moe$$a moe$$b)
folder=$(mktemp -d)
leave() {
  for host in "${hosts[@]}"; do ip netns delete "$host" 2>/dev/null || true; done
  rm -rf "$folder"
}
trap leave EXIT

make_hosts() {
  ip netns add "${hosts[0]}" && ip netns add "${hosts[1]}" || return
  ip link add cable netns "${hosts[0]}" type veth peer name cable netns "${hosts[1]}" || return
  for i in 0 1; do
    ip -n "${hosts[i]}" addr add "10.77.0.$((i + 1))/24" dev cable || return
    ip -n "${hosts[i]}" link set cable up || return
    ip -n "${hosts[i]}" link set lo up || return
    ip netns exec "${hosts[i]}" unshare --uts true || return
  done
}
if ! make_hosts 2>"$folder/why"; then
  echo "two_hosts.sh: no network namespaces here: $(cat "$folder/why")"
  exit 77
fi

# What mpirun takes for ssh. Each host has a name of its own, or its ranks would be taken for neighbours.
cat >"$folder/agent" <<END
#!/bin/sh
case \$1 in 10.77.0.1) host=${hosts[0]} ;; *) host=${hosts[1]} ;; esac
shift
exec ip netns exec \$host unshare --uts sh -c "hostname \$host; exec sh -c '\$*'"
END
chmod +x "$folder/agent"
link=10.77.0.0/24
"$folder/agent" 10.77.0.1 exec mpirun --allow-run-as-root --mca plm_rsh_agent "$folder/agent" --map-by node \
  --mca btl tcp,self --mca btl_tcp_if_include $link --mca oob_tcp_if_include $link --oversubscribe \
  -host "10.77.0.1:$ranks,10.77.0.2:$ranks" -n "$ranks" "$@"

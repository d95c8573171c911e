#!/bin/bash
# Waits until this instance is to go: Auto Scaling terminates it, or EC2 wants a spot instance back. Then it stops the agent,
# which gives its partitions to the others before it ends, and tells Auto Scaling to go on. Where that can't be reached,
# Auto Scaling goes on when the time of the hook is over. Run by cirrolog-drain.service.
set -uo pipefail
root=${ROOT:-} # tests have another
imds=${IMDS:-http://169.254.169.254}
# shellcheck source=/dev/null
. "$root/etc/cirrolog/instance.env"

meta() { # meta PATH: of the instance, by IMDSv2; fails where there is nothing
  local token
  token=$(curl -sf -m 5 -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 60" "$imds/latest/api/token") &&
    curl -sf -m 5 -H "X-aws-ec2-metadata-token: $token" "$imds/latest/meta-data/$1"
}

why=
until [ -n "$why" ]; do
  if [ "$(meta autoscaling/target-lifecycle-state)" = Terminated ]; then
    why="Auto Scaling terminates this instance"
  elif meta spot/instance-action > /dev/null; then
    why="EC2 takes this spot instance back"
  else
    sleep "${PAUSE:-5}"
  fi
done

echo "cirrolog-drain: $why: stopping the agent"
systemctl stop cirrolog@agent.service
echo "cirrolog-drain: the agent has stopped"

# A spot instance goes whatever is said; it has no hook then that waits.
instance=$(meta instance-id)
region=$(meta placement/region)
for _ in 1 2 3; do
  aws autoscaling complete-lifecycle-action --region "$region" --cli-connect-timeout 5 --cli-read-timeout 10 \
    --auto-scaling-group-name "$NAME" --lifecycle-hook-name "$HOOK" --instance-id "$instance" --lifecycle-action-result CONTINUE && exit 0
  sleep "${PAUSE:-5}"
done
echo "cirrolog-drain: Auto Scaling can't be told that it is done; it waits until the time of $HOOK is over"

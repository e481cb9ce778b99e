#!/usr/bin/env bash
# What nspawn_lab.sh runs inside the booted container. Every step shows its command and its result; a step that does not
# do what it should ends the lab.
set -uo pipefail
bin=/opt/edged/bin
examples=/opt/edged-source/examples

failed() { echo "LAB FAILED: $*"; journalctl --no-pager -q -n 60 -u edged -u cloudd -o cat; exit 1; }
title() { printf '\n## %s\n' "$*"; }
show() { echo "\$ $*"; eval "$*" 2>&1; }
must() { show "$@" || failed "$*"; }
must_fail() { show "$@" && failed "it should have been refused: $*"; return 0; }
until_true() { for _ in $(seq 100); do eval "$1" >/dev/null 2>&1 && return 0; sleep 0.2; done; failed "never true: $1"; }
main_pid() { systemctl show -P MainPID "$1"; }

title "The machine"
show "systemctl --version | head -1; cat /proc/1/comm"
until_true "systemctl is-active basic.target"

# Stands for: python3 -m venv /opt/edged && /opt/edged/bin/pip install 'edged-cloudd[serve,cloud]'
/opt/python/bin/python"$PYTHON_VERSION" -m venv --without-pip /opt/edged || failed "no environment"
# A Python with a shared library finds it where it was built, perhaps in a home directory that units cannot see.
echo /opt/python/lib > /etc/ld.so.conf.d/00-lab.conf && ldconfig
printf '/opt/edged-source\n/opt/edged-packages\n' > "/opt/edged/lib/python$PYTHON_VERSION/site-packages/lab.pth"
for name in edged cloudd; do
  printf '#!/opt/edged/bin/python\nfrom %s.cli.main import main\nraise SystemExit(main())\n' $name > $bin/$name
  chmod 755 $bin/$name
done
ln -s $bin/edged $bin/cloudd /usr/local/bin/

title "Install and start"
must "edged install --now"
must "edged install cloudd --now"
must "edged install | tail -2"
must "systemctl is-active edged.socket edged-page.socket edged.service cloudd.socket cloudd.service"
must "systemctl show edged cloudd -p Id -p StatusText -p NRestarts -p User"
show "ls -ld /var/lib/edged /var/lib/cloudd /run/edged /run/cloudd /var/spool/edged"
show "id edged; id cloudd"

title "The main job"
must "cloudd models add $examples/models/solder-large | tail -1"
token=$(cloudd invite --state /var/lib/cloudd --name line-3 --json | sed -n 's/.*"token": *"\([^"]*\)".*/\1/p')
[ -n "$token" ] || failed "no token"
echo "\$ edged join TOKEN --url 127.0.0.1:8440"
edged join "$token" --url 127.0.0.1:8440 || failed "join"
must "edged models add $examples/models/solder-small | tail -1"
cat > /tmp/solder.toml <<'TOML'
name = "solder"
model = "solder-small"
[hard_samples]
answer_model = "solder-large"
TOML
must "edged services add /tmp/solder.toml | tail -1"
show "edged inspect solder $examples/models/solder-small/samples/0.jpg"
until_true "cloudd answers list | grep -q solder"  # the large model is loaded by the first question
must "edged inspect solder $examples/models/solder-small/samples/*.jpg"
must "cloudd status"
must "edged status | head -20"

title "The sandbox, seen from inside the service"
pid=$(main_pid edged)
must "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/$pid/status"
must_fail "nsenter -t $pid -m touch /etc/written-by-edged"
must_fail "nsenter -t $pid -m touch /usr/written-by-edged"
must "nsenter -t $pid -m touch /var/lib/edged/.probe && rm /var/lib/edged/.probe"
show "nsenter -t $pid -m ls -A /root /home"
must "ps -o user=,args= --ppid $pid -p $pid | sed 's/ --control.*//'"

title "Who may use the command line"
must_fail "runuser -u nobody -- edged status"
useradd --no-user-group --groups edged lineuser || failed "useradd"
must "runuser -u lineuser -- edged status | head -1"
must_fail "runuser -u lineuser -- cat /var/lib/edged/edged.db"

title "A camera's folder: a member of the group drops a picture and reads the result"
runuser -u lineuser -- mkdir /var/spool/edged/in && chmod g+w /var/spool/edged/in
cat > /tmp/folder.toml <<'TOML'
name = "folder"
model = "solder-small"
[source]
kind = "folder"
path = "/var/spool/edged/in"
after = "delete"
[hard_samples]
mode = "off"
[[outputs]]
kind = "jsonl"
path = "/var/spool/edged/results.jsonl"
TOML
must "edged services add /tmp/folder.toml | tail -1"
must "runuser -u lineuser -- cp $examples/models/solder-small/samples/1.jpg /var/spool/edged/in/board-7.jpg"
until_true "[ -s /var/spool/edged/results.jsonl ] && [ ! -e /var/spool/edged/in/board-7.jpg ]"
must "ls -l /var/spool/edged; ls -A /var/spool/edged/in"
must "runuser -u lineuser -- cut -c1-160 /var/spool/edged/results.jsonl"

title "kill -9 of the supervisor: requests wait in the socket, none is refused"
cat > /tmp/hammer.sh <<'HAMMER'
good=0; bad=0; end=$((SECONDS + 8))
while [ $SECONDS -lt $end ]; do
  code=$(curl -s -m 20 -o /dev/null -w '%{http_code}' -H 'Content-Type: image/jpeg' \
    --data-binary @/opt/edged-source/examples/models/solder-small/samples/0.jpg \
    http://127.0.0.1:8700/v1/services/solder/inspect) || { bad=$((bad + 1)); echo "curl exit $? (7 = refused)"; continue; }
  [ "$code" = 200 ] && good=$((good + 1)) || { bad=$((bad + 1)); echo "HTTP $code"; }
  sleep 0.05
done
echo "answered: $([ $good -gt 20 ] && echo 'more than 20' || echo $good), lost: $bad"
HAMMER
bash /tmp/hammer.sh > /tmp/hammer.txt 2>&1 &
hammer=$!
sleep 1.5
must "kill -9 $(main_pid edged)"
wait $hammer
cat /tmp/hammer.txt
grep -q "refused\|exit 7" /tmp/hammer.txt && failed "a request was refused"
must "systemctl show edged -p NRestarts -p ActiveState"

title "kill -9 of the worker: the supervisor replaces it"
pid=$(main_pid edged)
until_true "pgrep -P $pid -f edged.serve"
worker=$(pgrep -P "$pid" -f edged.serve)
must "kill -9 $worker"
until_true "pgrep -P $pid -f edged.serve"
until_true "edged inspect solder $examples/models/solder-small/samples/0.jpg"
must "edged inspect solder $examples/models/solder-small/samples/0.jpg"
[ "$(main_pid edged)" = "$pid" ] || failed "the supervisor was restarted too"

title "Reload restarts nothing"
must "systemctl reload edged"
until_true "systemctl is-active edged"
[ "$(main_pid edged)" = "$pid" ] || failed "the supervisor was restarted"
must "systemctl is-active edged"

title "A hung supervisor is noticed by the watchdog (WatchdogSec=3 for the lab)"
mkdir -p /etc/systemd/system/edged.service.d
printf '[Service]\nWatchdogSec=3\n' > /etc/systemd/system/edged.service.d/lab.conf
must "systemctl daemon-reload && systemctl restart edged"
pid=$(main_pid edged)
sleep 5
[ "$(main_pid edged)" = "$pid" ] || failed "a healthy supervisor was killed"
must "kill -STOP $pid"
until_true "[ \$(systemctl show -P MainPID edged) != $pid ] && systemctl is-active edged"
must "journalctl -q --no-pager -o cat -u edged --grep 'watchdog|Watchdog' | head -3"

title "The spool's key as an encrypted credential; without one the daemon has started with a key file"
must "ls /var/lib/edged/keys"
mkdir -p /etc/credstore.encrypted
must "head -c 32 /dev/urandom | systemd-creds encrypt --with-key=host --name=kek - /etc/credstore.encrypted/edged.kek"
must "systemctl restart edged"
must "nsenter -t $(main_pid edged) -m ls -l /run/credentials/edged.service"
until_true "edged inspect solder $examples/models/solder-small/samples/0.jpg"
must "edged status | head -1"

title "Stop is orderly and quick"
must "systemctl stop edged.service"
must "systemctl show edged -p Result -p ActiveState"
must "curl -s -m 30 -o /dev/null -w 'a request starts it again: HTTP %{http_code}\n' http://127.0.0.1:8700/v2/health/live"

title "Uninstall"
must "edged uninstall --purge"
must "edged uninstall cloudd --purge"
left=$(find /etc /usr /var /run \( -name '*edged*' -o -name '*cloudd*' \) -newer /etc/systemd/system/lab.service \
  -not -path '/usr/local/bin/*' -not -path '/var/tmp/*')
[ -z "$left" ] || failed "left behind: $left"
must_fail "id edged"
echo "nothing is left"

echo
echo "LAB PASSED"

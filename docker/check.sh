#!/usr/bin/env bash
# Tries the Dockerfile where there is no container engine: its steps for one target, stage by stage; then the image's
# command, alone and as two workers.
#
#   docker/check.sh [SCRATCH]          needs pip's index and some gigabytes; SCRATCH is kept for the next time
#   TARGET=cuda docker/check.sh        the other image (the CUDA libraries get installed, a GPU is not needed)
#
# As root, with debootstrap: each stage is a root of its own, the base image Debian's release of the same name with its
# own Python. Every RUN is executed as written, by that root's shell after chroot, and the command as the image's user.
# Else: one folder stands for the root of every stage, paths are moved below it, and steps that need root are left out.
#
# Not tried either way: that the base image exists, the engine itself, layers.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
root=$(mkdir -p "${1:-$here/build/docker-check}" && cd "${1:-$here/build/docker-check}" && pwd)
target=${TARGET:-cpu}
wanted=" base $target-requirements wheel $target "
tag=$(sed -n 's/^ARG PYTHON_TAG=//p' "$here/docker/Dockerfile")
chrooted=""
if [[ $(id -u) == 0 ]] && command -v debootstrap >/dev/null && command -v unshare >/dev/null; then chrooted=yes; fi
stage="" user="" entrypoint="" arguments=""
failed() { echo "FAILED: $*" >&2; exit 1; }

# One instruction a line: comments out, continued lines joined.
instructions() { sed -E '/^[[:space:]]*(#|$)/d' "$here/docker/Dockerfile" | sed -E -e ':a' -e '/\\$/N; s/[[:space:]]*\\\n[[:space:]]*/ /; ta'; }

# Where a path of a stage lies on this machine.
place() { echo "$root/${chrooted:+$1/}${2#/}"; }

# Absolute paths of the image in a command, where there is one folder for all moved below it.
moved() {
    if [[ $chrooted ]]; then echo "$1"; return; fi
    local paths="(^|[[:space:]\"'=:])/((opt|src|wheels|workspace)([/[:space:]\":]|\$))"
    sed -E -e ":a; s#$paths#\1@ROOT@/\2#; ta" -e "s#@ROOT@#$root#g" <<<"$1"
}

# COMMAND: run in the stage as the image's shell does, with its environment, in its folder, as its user. The stage's file
# of settings stands before the command.
inside() {
    local text home
    text=$(cat "$root/$stage.settings" && echo "$1")
    if [[ ! $chrooted ]]; then
        HOME=$([[ $user ]] && echo "$root/workspace" || echo ~) sh -c "$(moved "$text")"
        return
    fi
    home=$(awk -F: -v id="${user%:*}" '$3 == (id ? id : 0) {print $6}' "$root/$stage/etc/passwd")
    # shellcheck disable=SC2016
    unshare --mount sh -ec '
        mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev"
        exec chroot --userspec="$2" "$1" env -i HOME="$3" PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin sh -c "$4"
    ' sh "$root/$stage" "${user:-0:0}" "$home" "$text"
}

debian() {  # what stands for the base image, with this machine's way to the index of packages
    if [[ -d $root/debian ]]; then return; fi
    echo "   debootstrap ${tag##*-}, for python:$tag"
    rm -rf "$root/debian.new"
    debootstrap --variant=minbase --include=ca-certificates,python3-pip,python3-venv "${tag##*-}" "$root/debian.new" >"$root/debootstrap.log" 2>&1 \
        || { tail "$root/debootstrap.log"; failed "debootstrap"; }
    ln -s ../../bin/python3 "$root/debian.new/usr/local/bin/python"
    [[ $tag == $(chroot "$root/debian.new" python3 -c 'import sys; print("%d.%d." % sys.version_info[:2])')* ]] \
        || failed "the base image's Python is not that of ${tag##*-}"
    for file in /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt /etc/pip.conf ~/.config/pip/pip.conf; do
        if [[ -f $file ]]; then mkdir -p "$root/debian.new$(dirname "$file")" && cp -L "$file" "$root/debian.new$file"; fi
    done
    mv "$root/debian.new" "$root/debian"
}

from() {  # IMAGE, and what it is called here
    local settings=/dev/null
    if [[ -f $root/$1.settings ]]; then settings=$root/$1.settings; fi
    cat "$settings" >"$root/$stage.settings"
    if [[ ! $chrooted ]]; then return; fi
    rm -rf "${root:?}/$stage"
    if [[ $settings == /dev/null ]]; then debian; cp -a "$root/debian" "$root/$stage"; else cp -a "$root/$1" "$root/$stage"; fi
}

copy() {  # COPY [--from=STAGE] SOURCE... DESTINATION
    local words from=""
    read -ra words <<<"$1"
    if [[ ${words[0]} == --from=* ]]; then from=${words[0]#--from=}; words=("${words[@]:1}"); fi
    local last=$((${#words[@]} - 1))
    local destination
    destination=$(place "$stage" "${words[last]}")
    for source in "${words[@]:0:last}"; do
        if [[ -n $from ]]; then   # as hard links: a stage's environment takes gigabytes
            source=$(place "$from" "$source")
            [[ -e $source ]] || failed "COPY $1: there is no $source"
            if [[ $source != "$destination" ]]; then mkdir -p "$(dirname "$destination")" && cp -al "$source" "$destination"; fi
            continue
        fi
        grep -qxF "!$source" "$here/docker/Dockerfile.dockerignore" || failed "COPY $1: the build does not see $source"
        if [[ -d $here/$source ]]; then
            rm -rf "$destination" && mkdir -p "$(dirname "$destination")" && cp -r "$here/$source" "$destination"
            find "$destination" -name __pycache__ -prune -exec rm -rf {} +
        else
            mkdir -p "${destination%/*}" && cp "$here/$source" "$destination"
        fi
    done
}

run() {  # RUN COMMAND
    [[ $1 != --* ]] || failed "no way to try RUN $1"
    if [[ ! $chrooted && $1 == *groupadd* ]]; then
        echo "      left out, needs root: $1"
        mkdir -p "$root/workspace"
    else
        inside "$1" || failed "RUN $1"
    fi
}

rm -rf "$root"/*.settings "$root/src" "$root/wheels"
if ! command -v python >/dev/null; then   # the base image calls it so
    mkdir -p "$root/bin" && ln -sf "$(command -v python3)" "$root/bin/python" && export PATH=$PATH:$root/bin
fi
while read -r word rest; do
    if [[ $word == FROM ]]; then
        stage=${rest##* AS }
        if [[ $wanted == *" $stage "* ]]; then echo "== $stage"; from "${rest%% *}"; fi
        continue
    fi
    if [[ $wanted != *" $stage "* ]]; then continue; fi
    echo "   $word $rest"
    case $word in
        ARG) name=${rest%%=*}; if [[ -v $name ]]; then rest=$name=${!name@Q}; fi; echo "export $rest" >>"$root/$stage.settings" ;;
        ENV) echo "export $rest" >>"$root/$stage.settings" ;;
        COPY) copy "$rest" ;;
        RUN) run "$rest" ;;
        WORKDIR) mkdir -p "$(place "$stage" "$rest")" && echo "cd $rest" >>"$root/$stage.settings" ;;
        USER) user=$rest ;;
        ENTRYPOINT) entrypoint=$(tr -d '[],"' <<<"$rest") ;;
        CMD) arguments=$(tr -d '[],"' <<<"$rest") ;;
        HEALTHCHECK) ;;
        *) failed "no way to try $word" ;;
    esac
done < <(instructions)
[[ $entrypoint ]] || failed "the Dockerfile has no target $target"

echo "== the command, as user ${user:-root}"
stage=$target
workspace=$(place "$stage" /workspace)
fit="timeout 300 $entrypoint fit --config=/opt/infoprune/configs/quickstart.yaml --trainer.max_epochs=2 --trainer.callbacks=FilterPruning
    --trainer.callbacks.macs=0.5 --trainer.callbacks.schedule=1 --trainer.accelerator=cpu --trainer.enable_progress_bar=false"
fit="export OMP_NUM_THREADS=1; ${fit//$'\n'/ }"
report=$workspace/runs/quickstart/version_0/report.html
inside "$entrypoint $arguments" | grep "^usage: infoprune" || failed "$entrypoint $arguments"
inside "$entrypoint --version"
[[ $(inside "command -v $entrypoint") == "$(moved /opt/venv/bin/infoprune)" ]] || failed "$entrypoint is not the environment's"
rm -rf "$workspace/runs"
inside "$fit" >"$root/one.log" 2>&1 || { tail -20 "$root/one.log"; failed "infoprune fit"; }
[[ -s $report ]] || failed "no report"
[[ ! $chrooted || $(stat -c %u:%g "$report") == "$user" ]] || failed "the report is not the image's user's"

echo "== two workers, as the compose file starts them"
rm -rf "$workspace/runs"
workers() {  # NODE_RANK
    inside "export MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 NODE_RANK=$1; $fit --trainer.strategy=ddp --trainer.num_nodes=2 --trainer.devices=1" \
        >"$root/worker-$1.log" 2>&1 || { tail -20 "$root/worker-$1.log"; failed "worker $1"; }
}
workers 0 &
first=$!
healthy=no
for _ in {1..120}; do   # the compose file's health check
    if cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -qE ':733C 0+:0000 0A'; then healthy=yes; break; fi
    sleep 1
done
[[ $healthy == yes ]] || { tail -20 "$root/worker-0.log"; failed "the first worker never listened"; }
workers 1
wait $first || failed "worker 0"
grep -q "with 2 processes" "$root/worker-0.log" || failed "the workers did not find each other"
[[ -s $report ]] || failed "no report of two workers"
if [[ $chrooted ]]; then what="every step of target $target, in roots of its own"; else what="every step of target $target that does not need root"; fi
echo "== done: $what"
